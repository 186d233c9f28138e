#!/usr/bin/env bash
# A run on all hosts of a Cloud TPU slice that exists; JAX finds the hosts by itself.
#
#   TPU_NAME=pod ZONE=us-east5-a bash scripts/launch/tpu_vm.sh scripts/train.py --config=... --workdir=...
#
# Copies this checkout to every host, makes the environment where there is none, and starts the
# command on all of them at once. Datasets and workdir must be a folder that all hosts mount.
#
#   TPU_NAME, ZONE  of the slice                                      (required)
#   PROJECT         of the cloud                                      (default: gcloud's own)
#   FOLDER          of the checkout on the hosts                      (default: mmjax)
set -euo pipefail
: "${TPU_NAME:?name of the TPU slice}" "${ZONE:?its zone}"
[ $# -ge 1 ] || { echo "usage: tpu_vm.sh SCRIPT FLAGS" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${FOLDER:-mmjax}
at=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --worker=all)
bundle=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$bundle"' EXIT
git -C "$root" archive --format=tar.gz --output="$bundle" HEAD
gcloud compute tpus tpu-vm scp "$bundle" "$TPU_NAME:mmjax.tar.gz" "${at[@]}"
quoted=$(printf ' %q' "$@")
gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${at[@]}" --command="set -e
  mkdir -p $folder && tar xzf mmjax.tar.gz -C $folder && cd $folder
  [ -d .venv ] || { python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'; }
  exec .venv/bin/python$quoted"
