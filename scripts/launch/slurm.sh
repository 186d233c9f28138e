#!/usr/bin/env bash
# A run on several nodes under SLURM, a task for each GPU; JAX reads the rest from SLURM.
#
#   sbatch --nodes=4 --gpus-per-node=8 scripts/launch/slurm.sh scripts/train.py --config=... --workdir=...
#
# On SIGTERM, which SLURM sends 90 s before the time is up, the run saves and ends with status 75;
# then the job puts itself into the queue again and goes on from there.
#
#   VENV          folder of the virtual environment on all nodes     (default: .venv)
#   CPUS_PER_GPU  cores of each task                                 (default: 8)
#SBATCH --job-name=mmjax
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@90
#SBATCH --output=slurm-%j.log
set -uo pipefail
: "${SLURM_JOB_ID:?start this with sbatch}"
[ $# -ge 1 ] || { echo "usage: sbatch [OPTIONS] slurm.sh SCRIPT FLAGS" >&2; exit 2; }
gpus=${SLURM_GPUS_ON_NODE:-1}
srun --ntasks-per-node="$gpus" --cpus-per-task="${CPUS_PER_GPU:-8}" \
  "${VENV:-.venv}/bin/python" "$@"
status=$?
if [ "$status" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
