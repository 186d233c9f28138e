#!/usr/bin/env bash
# A run under Open MPI 5, a process for each accelerator; start it on the first of the hosts.
#
#   HOSTS=node1:8,node2:8 bash scripts/launch/openmpi.sh scripts/train.py --config=... --workdir=...
#
#   HOSTS      HOST:PROCESSES,...; without it all run here            (default: this machine)
#   PROCESSES  how many altogether                                    (default: 2)
#   VENV       folder of the virtual environment on all hosts         (default: .venv)
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: openmpi.sh SCRIPT FLAGS" >&2; exit 2; }
exec mpirun -n "${PROCESSES:-2}" ${HOSTS:+--host "$HOSTS"} --map-by :OVERSUBSCRIBE \
  "${VENV:-.venv}/bin/python" "$@"
