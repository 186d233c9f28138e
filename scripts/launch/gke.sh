#!/usr/bin/env bash
# A run on TPU slices of a GKE cluster by xpk, which starts a container on each host.
#
#   CLUSTER=pods TPU_TYPE=v5litepod-16 IMAGE=REGISTRY/mmjax NAME=run1 \
#     bash scripts/launch/gke.sh scripts/train.py --config=... --workdir=/mnt/runs/run1
#
#   CLUSTER, TPU_TYPE  as xpk names them                              (required)
#   IMAGE              a container with this checkout at /mmjax and its packages   (required)
#   NAME               of the workload                                (required)
#   SLICES             how many                                       (default: 1)
#   RESTARTS           after a preemption                             (default: 100)
set -euo pipefail
: "${CLUSTER:?cluster}" "${TPU_TYPE:?TPU type}" "${IMAGE:?container image}" "${NAME:?workload name}"
[ $# -ge 1 ] || { echo "usage: gke.sh SCRIPT FLAGS" >&2; exit 2; }
exec xpk workload create --cluster="$CLUSTER" --workload="$NAME" --tpu-type="$TPU_TYPE" \
  --num-slices="${SLICES:-1}" --max-restarts="${RESTARTS:-100}" --docker-image="$IMAGE" \
  --command="cd /mmjax && python$(printf ' %q' "$@")"
