#!/usr/bin/env bash
# Trains on a TPU slice: makes it, copies the code, installs, starts all workers, follows the log.
#
#   bash launch/tpu.sh --name=mine --zone=us-east5-a --type=v5p-128 --image=v2-alpha-tpuv5 \
#     --nfs=10.0.0.2:/share --workdir=/mnt/videoar/runs/one -- --config=configs/quickstart.py
#
#   --name=NAME      of the TPU VM; one that is there is used as it is
#   --zone=ZONE      such as us-east5-a
#   --type=TYPE      accelerator type, such as v5litepod-8, v5p-128, v6e-64
#   --image=IMAGE    runtime version: v2-alpha-tpuv5-lite, v2-alpha-tpuv5, v2-alpha-tpuv6e
#   --workdir=PATH   folder on the workers; that of several workers must be one that they share
#   --nfs=HOST:PATH  (Filestore, say) to mount at /mnt/videoar on each worker; only what is there
#                    outlives a pre-emption
#   --queue=yes      asks by a queued resource, and waits until it is granted
#   --spot=yes       cheaper, and may be pre-empted
#   --project=ID     if it is not gcloud's own
#   --dry-run        prints every command of a first start, and runs none
#   -- FLAGS         of videoar_jax.main
#
# Needs gcloud, logged in. A slice that was pre-empted is made again and the run goes on from its
# last checkpoint; so does one that SIGTERM stopped, as before maintenance. A run that hung or lost
# a process is started again, up to 20 times in a row of less than three hours each. Ctrl-C stops
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

# Prints how the TPU is; nothing where there is none.
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
  # One that waits already, from a start before this, is not asked for twice.
  if [[ -n "$is_dry_run" ]] || ! queue_state >/dev/null 2>&1; then
    tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$option_type" \
      --runtime-version="$option_image" "${spot[@]}"
  fi
  while [[ -z "$is_dry_run" ]]; do
    case "$(queue_state)" in
      ACTIVE) return ;;
      FAILED | SUSPENDED) fail "the queued resource $name ended; remove it and start again" ;;
    esac
    echo "waiting for the queued resource $name"
    sleep 60
  done
  queue_state
}

install() {
  local archive="/tmp/videoar_jax-$name.tar.gz" mount=""
  # Configs are copied before they are committed, too.
  run sh -c '{ git ls-files -z && git ls-files -z --others --exclude-standard -- "*.py"; } |
    tar --null --files-from=- -czf "$1"' sh "$archive"
  tpus tpu-vm scp "$archive" "$name:videoar_jax.tar.gz" --worker=all
  if [[ -n "${option_nfs:-}" ]]; then
    # A machine that has just started may still be updating itself.
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

# Starts a process on every worker that outlives the connection; its status is left in a file.
start() {
  local main
  began="$(date +%s)"
  main="$(quote .venv/bin/python -m videoar_jax.main --workdir="$workdir" --distributed \
    "${flags[@]}")"
  on all "cd videoar_jax && rm -f ../videoar_jax.status && { setsid nohup sh -c $(quote \
    "$main; echo \$? >../videoar_jax.status") >../videoar_jax.log 2>&1 </dev/null & } &&
    echo \$! >../videoar_jax.pid"
}

# Follows worker 0 to its end and prints the status that it left: a number, or nothing.
follow() {
  # shellcheck disable=SC2016 # The worker's own pid.
  on 0 'tail -n 100 --pid="$(cat videoar_jax.pid)" -F videoar_jax.log' || true
}

# Prints whether worker 0 is "running" or "idle"; nothing where it cannot be asked.
activity() {
  # shellcheck disable=SC2016 # The worker's own pid.
  on 0 'kill -0 "$(cat videoar_jax.pid 2>/dev/null)" 2>/dev/null && echo running || echo idle' || true
}

# Prints the statuses that the workers left.
statuses() {
  on all 'cat videoar_jax.status' 2>/dev/null | grep -Ex '[0-9]+' || true
}

# Ends what is left of a run whose other processes have ended: it would keep the TPU to itself.
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
began="$(date +%s)" # Of a run that is there already, at the latest.
while true; do
  # Else a gcloud that cannot answer would look like a TPU that is not there.
  now="$(state)" || fail "gcloud cannot list TPUs; see above"
  case "$now" in
    "") prepare ;;
    PREEMPTED | TERMINATED | STOPPED)
      echo "$name was pre-empted; making it again"
      remove
      continue
      ;;
    READY)
      # To start a second run beside one that is only out of reach would be worse than to wait.
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
    *) # On its way up or down.
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
    "") echo "lost $name; looking at how it is" ;;
    143) echo "SIGTERM stopped the run, which has saved; looking at how $name is" ;;
    *)
      count_restart "$status" || exit "$status"
      end_rest
      ;;
  esac
  sleep 30
done
