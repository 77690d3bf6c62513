#!/usr/bin/env bash
# Trains on the GPUs of a Slurm cluster, one process for each GPU.
#
#   bash launch/slurm.sh --nodes=4 --gpus=8 --time=24:00:00 --workdir=/shared/runs/one -- \
#     --config=configs/quickstart.py --config.mesh.fsdp=32
#
#   --nodes=N        number of nodes
#   --gpus=N         of each node
#   --time=TIME      limit of a job; before it is reached, the run saves and the job is requeued
#   --workdir=PATH   in a file system that all nodes share, as the repository and its .venv are
#   --partition=NAME, --account=NAME, --cpus=N (for each GPU; 8 by default)
#   --dry-run        print every command, and run none
#   -- FLAGS         of videoar_jax.main
#
# Needs the repository's .venv with JAX for GPUs: .venv/bin/python -m pip install -e '.[cuda13]'
# shellcheck disable=SC2154 # `read_options` sets the options.
set -euo pipefail

# shellcheck source=launch/commands.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/commands.sh"
read_options "nodes gpus time workdir partition account cpus" "$@"
need_options nodes gpus time workdir
check_flags
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

options=(
  --job-name=videoar --nodes="$option_nodes" --gpus-per-node="$option_gpus"
  --ntasks-per-node="$option_gpus" --cpus-per-task="${option_cpus:-8}" --time="$option_time"
  # Five minutes before the limit the job's script gets a signal; see slurm_job.sh.
  --signal=B:USR1@300 --requeue --open-mode=append --output=videoar-%j.log
)
[[ -z "${option_partition:-}" ]] || options+=(--partition="$option_partition")
[[ -z "${option_account:-}" ]] || options+=(--account="$option_account")

main=(.venv/bin/python -m videoar_jax.main --workdir="$option_workdir" --distributed "${flags[@]}")
if [[ -n "$is_dry_run" ]]; then
  run sbatch --parsable "${options[@]}" launch/slurm_job.sh "${main[@]}"
  run tail -F --retry videoar-JOB.log
  exit
fi
job="$(sbatch --parsable "${options[@]}" launch/slurm_job.sh "${main[@]}")"
echo "job ${job%%;*}; Ctrl-C stops following, not training; scancel ${job%%;*} stops it"
tail -F --retry "videoar-${job%%;*}.log"
