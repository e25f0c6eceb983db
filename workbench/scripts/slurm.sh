#!/usr/bin/env bash
# One training on several nodes of a SLURM cluster: Ray on every node for as long as the job lasts, the run sent to it.
#
#   sbatch workbench/scripts/slurm.sh poyo-reach data=/shared/day1.nwb --run /shared/runs/day1 --gpus 8
#
# What follows the script is what `python -m workbench train` takes; folders and recordings are named as every node sees
# them. Change the lines below to the cluster's own. Queued again, the same command goes on from the last checkpoint.
#SBATCH --job-name=workbench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# On every node the same line: it starts Ray there, runs the command on the first, and ends Ray again.
srun --kill-on-bad-exit=1 ray symmetric-run --address "$HEAD:6379" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    python -m workbench train "$@" --on http://127.0.0.1:8265 --shared --wait
