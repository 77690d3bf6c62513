#!/usr/bin/env bash
# Trains on a TPU slice: creates it, copies the code, installs, starts all workers, follows the log.
#
#   bash launch/tpu.sh --name=mine --zone=us-east5-a --type=v5p-128 --image=v2-alpha-tpuv5 \
#     --nfs=10.0.0.2:/share --workdir=/mnt/videoar/runs/one -- --config=configs/quickstart.py
#
#   --name=NAME      of the TPU VM; an existing one is used as it is
#   --zone=ZONE      such as us-east5-a
#   --type=TYPE      accelerator type, such as v5litepod-8, v5p-128, v6e-64
#   --image=IMAGE    runtime version: v2-alpha-tpuv5-lite, v2-alpha-tpuv5, v2-alpha-tpuv6e
#   --workdir=PATH   folder on the workers; several workers must share it
#   --nfs=HOST:PATH  share, such as Filestore, to mount at /mnt/videoar on each worker; nothing else
#                    survives a pre-emption
#   --queue=yes      request a queued resource, and wait until it is granted
#   --spot=yes       cheaper, and may be pre-empted
#   --project=ID     if it is not gcloud's default
#   --dry-run        print every command of a first start, and run none
#   -- FLAGS         of videoar_jax.main
#
# Needs gcloud, logged in. A pre-empted slice is created again and the run resumes from its last
# checkpoint; so does a run that SIGTERM stopped, as before maintenance. A run that hung or lost a
# process is restarted, up to 20 times in a row of less than three hours each. Ctrl-C stops
# following, not training: the same command follows again.
# shellcheck disable=SC2154 # `read_options` sets the options.
set -euo pipefail

# shellcheck source=launch/commands.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/commands.sh"
read_options "name zone type image workdir nfs queue spot project" "$@"
need_options name zone type image workdir
read_switches queue spot
check_flags
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

name="$option_name" workdir="$option_workdir"
place=(--zone="$option_zone")
[[ -z "${option_project:-}" ]] || place+=(--project="$option_project")
spot=()
[[ -z "${option_spot:-}" ]] || spot=(--spot)

tpus() {
  run gcloud compute tpus "$@" "${place[@]}" --quiet
}

# Runs a line of shell on workers: `on all LINE`, `on 0 LINE`.
on() {
  tpus tpu-vm ssh "$name" --worker="$1" --command="$2"
}

# Prints the TPU's state; nothing if there is none.
state() {
  tpus tpu-vm list --filter="name:$name" --format='value(name.basename(),state)' |
    awk -v name="$name" '$1 == name { print $2 }'
}

queue_state() {
  tpus queued-resources describe "$name" --format='value(state.state)'
}

remove() {
  if [[ -n "${option_queue:-}" ]]; then
    tpus queued-resources delete "$name" --force
  else
    tpus tpu-vm delete "$name"
  fi
}

create() {
  if [[ -z "${option_queue:-}" ]]; then
    tpus tpu-vm create "$name" --accelerator-type="$option_type" --version="$option_image" \
      "${spot[@]}"
    return
  fi
  # One that an earlier start requested is not requested twice.
  if [[ -n "$is_dry_run" ]] || ! queue_state >/dev/null 2>&1; then
    tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$option_type" \
      --runtime-version="$option_image" "${spot[@]}"
  fi
  while [[ -z "$is_dry_run" ]]; do
    case "$(queue_state)" in
      ACTIVE) return ;;
      FAILED | SUSPENDED) fail "the queued resource $name ended; delete it and start again" ;;
    esac
    echo "waiting for the queued resource $name"
    sleep 60
  done
  queue_state
}

install() {
  local archive="/tmp/videoar_jax-$name.tar.gz" mount=""
  # New configs are copied before they are committed, too.
  run sh -c '{ git ls-files -z && git ls-files -z --others --exclude-standard -- "*.py"; } |
    tar --null --files-from=- -czf "$1"' sh "$archive"
  tpus tpu-vm scp "$archive" "$name:videoar_jax.tar.gz" --worker=all
  if [[ -n "${option_nfs:-}" ]]; then
    # A machine that has just booted may still be updating itself.
    mount="sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq nfs-common &&
      sudo mkdir -p /mnt/videoar &&
      { mountpoint -q /mnt/videoar || sudo mount -t nfs $(quote "$option_nfs") /mnt/videoar; } && "
  fi
  # The images' own Python is too old.
  on all "${mount}mkdir -p videoar_jax && tar -xzf videoar_jax.tar.gz -C videoar_jax &&
    python3 -m pip install --quiet --user uv && cd videoar_jax &&
    { test -x .venv/bin/python || ~/.local/bin/uv venv --python 3.12; } &&
    ~/.local/bin/uv pip install --quiet --editable . 'jax[tpu]'"
}

# Starts a process on every worker that outlives the connection and leaves its status in a file.
start() {
  local main
  began="$(date +%s)"
  main="$(quote .venv/bin/python -m videoar_jax.main --workdir="$workdir" --distributed \
    "${flags[@]}")"
  on all "cd videoar_jax && rm -f ../videoar_jax.status && { setsid nohup sh -c $(quote \
    "$main; echo \$? >../videoar_jax.status") >../videoar_jax.log 2>&1 </dev/null & } &&
    echo \$! >../videoar_jax.pid"
}

# Follows the log of worker 0 until its process ends.
follow() {
  # shellcheck disable=SC2016 # The worker's own pid.
  on 0 'tail -n 100 --pid="$(cat videoar_jax.pid)" -F videoar_jax.log' || true
}

# Prints whether worker 0 is "running" or "idle"; nothing if it cannot be reached.
activity() {
  # shellcheck disable=SC2016 # The worker's own pid.
  on 0 'kill -0 "$(cat videoar_jax.pid 2>/dev/null)" 2>/dev/null && echo running || echo idle' || true
}

# Prints the exit statuses that the workers left.
statuses() {
  on all 'cat videoar_jax.status' 2>/dev/null | grep -Ex '[0-9]+' || true
}

# Kills what is left of a run whose other processes have ended: it would block the TPU.
end_rest() {
  # shellcheck disable=SC2016 # The workers' own pids.
  on all 'kill -KILL -- "-$(cat videoar_jax.pid)" 2>/dev/null; rm -f videoar_jax.status' || true
}

prepare() {
  create
  install
  start
}

if [[ -n "$is_dry_run" ]]; then
  prepare
  follow
  on 0 'cat videoar_jax.status'
  exit
fi

restarts=0
began="$(date +%s)" # At the latest, for a run that is under way already.
while true; do
  # Otherwise a failing gcloud would look like a missing TPU.
  now="$(state)" || fail "gcloud cannot list TPUs; see above"
  case "$now" in
    "") prepare ;;
    PREEMPTED | TERMINATED | STOPPED)
      echo "$name was pre-empted; creating it again"
      remove
      continue
      ;;
    READY)
      # A second run beside one that is merely unreachable would be worse than waiting.
      case "$(activity)" in
        running) ;;
        idle)
          install
          start
          ;;
        *)
          echo "cannot reach $name; trying again"
          sleep 30
          continue
          ;;
      esac
      ;;
    *) # Starting or stopping.
      sleep 30
      continue
      ;;
  esac
  follow
  forgive_restarts "$began"
  status="$(on 0 'cat videoar_jax.status' 2>/dev/null)" || status=""
  # shellcheck disable=SC2046 # A word for each worker.
  [[ -z "$status" ]] || status="$(telling_status "$status" $(statuses))"
  case "$status" in
    "") echo "lost $name; checking its state" ;;
    143) echo "SIGTERM stopped the run, which has saved; checking the state of $name" ;;
    *)
      count_restart "$status" || exit "$status"
      end_rest
      ;;
  esac
  sleep 30
done
