#!/usr/bin/env bash
# Slurm runs this on the first node of a job, for slurm.sh: the arguments as one process a GPU.
#
# At USR1, which comes before the time limit, the processes are told to save, and the job is queued
# again; it goes on from there.
# shellcheck disable=SC2317,SC2329 # Traps call functions; versions say so by other numbers.
set -uo pipefail

# Through Slurm: srun itself would answer TERM by killing the processes before they have saved.
tell_to_save() {
  scancel --signal=TERM "$SLURM_JOB_ID"
}

# A trapped signal ends a wait before the processes have saved.
wait_for_steps() {
  wait "$steps"
  status=$?
  while kill -0 "$steps" 2>/dev/null; do
    wait "$steps"
    status=$?
  done
}

queue_again() {
  tell_to_save
  wait_for_steps
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}

# Since Slurm 22.05, srun does not take the number of CPUs over from the job.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 "$@" &
steps=$!
trap queue_again USR1
# Pre-emption: Slurm itself queues the job again.
trap tell_to_save TERM
wait_for_steps
exit "$status"
