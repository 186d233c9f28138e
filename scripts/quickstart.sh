#!/usr/bin/env bash
# From nothing to a table: makes .venv, installs the project, generates a world with images and
# texts, extracts features, trains five recommenders and compares them. No data is downloaded.
#
#   bash scripts/quickstart.sh                    # writes runs/quickstart
#   OUT=DIR PYTHON=python3.12 bash scripts/quickstart.sh
set -euo pipefail
out=${OUT:-}
[[ -z "$out" || "$out" == /* ]] || out=$PWD/$out
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
out=${out:-runs/quickstart}

environment project -e .
say() { printf '\n== %s\n' "$*"; }
script() { .venv/bin/python "scripts/$1.py" "${@:2}"; }

say "a world of 2000 users and 2000 items with images and texts"
script prepare --source=world --users=2000 --items=2000 --interactions=30000 --seed=0 \
  --out="$out/world" --overwrite

say "features of the images and of the texts"
script extract --dataset="$out/world" --encoder=plain_image --out="$out/world/features/visual"
script extract --dataset="$out/world" --encoder=plain_text --out="$out/world/features/textual"

# The few flags were picked on the validation split of such worlds, with more care for some models
# than for others: this shows that everything runs, the README's tables compare.
train() {
  say "$1"
  rm -rf "$out/$1" # else a run that is finished already would be left as it is
  script train --config="configs/$1.py" --config.dataset="$out/world" --workdir="$out/$1" "${@:2}"
}
train mostpop
train itemknn
train bprmf --config.patience=10
train lightgcn --config.model.l_w=0.01 --config.model.layers=3 --config.lr=0.005 \
  --config.patience=10
train vbpr --config.patience=10

say "the comparison"
script report --out="$out" "$out"/{mostpop,itemknn,bprmf,lightgcn,vbpr}
echo "the dataset is in $out/world; each run's results.json, metrics and checkpoints in $out/NAME"
