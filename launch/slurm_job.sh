#!/usr/bin/env bash
# Slurm runs this on the first node of a job, for slurm.sh: the arguments as one process for each GPU.
#
# On USR1, which comes before the time limit, the processes are told to save, and the job is requeued,
# to resume from there. A run that hung or lost a process is restarted at once, up to 20 times in a
# row of less than three hours each.
# shellcheck disable=SC2317,SC2329 # Traps call functions; the number depends on the version.
set -uo pipefail

# Slurm runs a copy of this file, in the folder that the job was submitted from: the repository.
# shellcheck source=launch/commands.sh
source launch/commands.sh || exit
is_stopping=""
# Where processes write their exit statuses. srun reports one of them all, perhaps that of a process
# which it killed because another one failed. (A shell in between, which could tell them apart, would
# receive the signals in their place.)
export VIDEOAR_STATUSES="$PWD/videoar-$SLURM_JOB_ID.statuses"

# By scancel: srun itself would respond to TERM by killing the processes before they have saved.
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

# Runs the arguments as one process for each GPU, until all have ended.
run_steps() {
  rm -rf -- "$VIDEOAR_STATUSES"
  mkdir -- "$VIDEOAR_STATUSES"
  # Since Slurm 22.05, srun does not inherit the number of CPUs from the job.
  srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 "$@" &
  steps=$!
  wait_for_steps
  local left
  left="$(cat -- "$VIDEOAR_STATUSES"/* 2>/dev/null)"
  # Processes told to stop write a status. A TERM without one is srun's own: a process was lost.
  [[ -n "$left" || -n "$is_stopping" || "$status" -ne 143 ]] || status=137
  # shellcheck disable=SC2086 # A word for each process.
  status="$(telling_status "$status" $left)"
  rm -rf -- "$VIDEOAR_STATUSES"
}

trap queue_again USR1
# Pre-emption: Slurm itself queues the job again.
trap tell_to_save TERM
restarts=0
while true; do
  began="$(date +%s)"
  run_steps "$@"
  forgive_restarts "$began"
  { [[ -z "$is_stopping" ]] && count_restart "$status"; } || exit "$status"
done
