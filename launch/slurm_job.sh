#!/usr/bin/env bash
# Slurm runs this on the first node of a job, for slurm.sh: the arguments as one process a GPU.
#
# At USR1, which comes before the time limit, the processes are told to save, and the job is queued
# again; it goes on from there. A run that hung or lost a process is started again at once, up to 20
# times in a row of less than an hour each.
# shellcheck disable=SC2317,SC2329 # Traps call functions; versions say so by other numbers.
set -uo pipefail

# Slurm runs a copy of this file, in the folder where the job was sent: the repository.
# shellcheck source=launch/commands.sh
source launch/commands.sh
is_stopping=""
statuses="$PWD/videoar-$SLURM_JOB_ID.statuses" # A file for each process.

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

# Runs the arguments as one process a GPU, to its end. What srun says of several is the highest of
# their statuses, so each leaves its own. TERM is for the process, not for the shell that waits for it.
# shellcheck disable=SC2016 # That shell's own variables.
run_steps() {
  rm -rf -- "$statuses"
  mkdir -- "$statuses"
  # Since Slurm 22.05, srun does not take the number of CPUs over from the job.
  srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 bash -c \
    'trap : TERM; "$@"; status=$?; echo "$status" >"$0/$SLURM_PROCID"; exit "$status"' \
    "$statuses" "$@" &
  steps=$!
  wait_for_steps
  # shellcheck disable=SC2046 # A word for each process.
  status="$(telling_status "$status" $(cat -- "$statuses"/* 2>/dev/null))"
  rm -rf -- "$statuses"
}

trap queue_again USR1
# Pre-emption: Slurm itself queues the job again.
trap tell_to_save TERM
restarts=0
while true; do
  began="$(date +%s)"
  run_steps "$@"
  [[ -z "$is_stopping" ]] && count_restart "$status" "$began" || exit "$status"
done
