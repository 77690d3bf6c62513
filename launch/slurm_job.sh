#!/usr/bin/env bash
# Slurm runs this on the first node of a job, for slurm.sh: the arguments as one process a GPU.
#
# At USR1, which comes before the time limit, the processes are told to save, and the job is queued
# again; it goes on from there. A run that hung or lost a process is started again at once, up to 20
# times.
# shellcheck disable=SC2317,SC2329 # Traps call functions; versions say so by other numbers.
set -uo pipefail

max_restarts=20
is_stopping=""

# Through Slurm: srun itself would answer TERM by killing the processes before they have saved.
tell_to_save() {
  is_stopping=1
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

# Says whether the run may go well at another try: see `can_restart` in commands.sh, which is not at
# hand where Slurm runs this.
can_restart() {
  [[ -z "$is_stopping" && "$status" -gt 127 && "$status" -ne 130 && "$status" -ne 143 ]]
}

trap queue_again USR1
# Pre-emption: Slurm itself queues the job again.
trap tell_to_save TERM
for ((restarts = 1; ; restarts++)); do
  # Since Slurm 22.05, srun does not take the number of CPUs over from the job.
  srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 "$@" &
  steps=$!
  wait_for_steps
  { can_restart && ((restarts <= max_restarts)); } || exit "$status"
  echo "the run ended with status $status; starting it again ($restarts of $max_restarts)"
done
