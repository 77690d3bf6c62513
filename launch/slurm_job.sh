#!/usr/bin/env bash
# Slurm runs this on the first node of a job, for slurm.sh: the arguments as one process a GPU.
#
# At USR1, which comes before the time limit, the processes are told to save, and the job is queued
# again; it goes on from there.
set -uo pipefail

# shellcheck disable=SC2317,SC2329 # The trap calls it; which number says not depends on the version.
queue_again() {
  kill -TERM "$steps"
  wait "$steps"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}

srun --kill-on-bad-exit=1 "$@" &
steps=$!
trap queue_again USR1
# Pre-emption: Slurm itself queues the job again.
trap 'kill -TERM "$steps"' TERM
wait "$steps"
status=$?
# A trapped signal ends the first wait before the processes have saved.
while kill -0 "$steps" 2>/dev/null; do
  wait "$steps"
  status=$?
done
exit "$status"
