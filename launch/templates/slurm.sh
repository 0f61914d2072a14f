#!/usr/bin/env bash
# {{recipe}} on {{nodes}} nodes of {{gpus}} GPUs: sbatch THIS_FILE
#SBATCH --job-name={{name}}
#SBATCH --nodes={{nodes}}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={{gpus}}
#SBATCH --output={{name}}-%j.log
set -euo pipefail
cd {{folder}}
export PATH="$PWD/.venv/bin:$PATH" BRAID_SCRATCH="${BRAID_SCRATCH:-$PWD/scratch}"
export RENDEZVOUS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):${PORT:-29500}"
# DVC runs on the first node; srun starts each training on all of them.
launcher='srun --ntasks-per-node=1 torchrun --nnodes={{nodes}} --nproc-per-node={{gpus}} --rdzv-backend=c10d --rdzv-id=$SLURM_JOB_ID --rdzv-endpoint=$RENDEZVOUS -m'
python -m recipes {{recipe}} -S "launch.train='$launcher'" -S "launch.data='$launcher'" {{targets}}
