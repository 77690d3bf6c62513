#!/usr/bin/env bash
# Sets up this machine and trains the quickstart: a tokenizer, a generator, a report.
#
#   bash launch/local.sh                          about 7 minutes on two idle CPU cores
#   WORKDIR=runs/mine bash launch/local.sh        another folder for what it writes
#   bash launch/local.sh --config.seed=1          flags are passed to videoar_jax.main
#   bash launch/local.sh --config=configs/quickstart.py:data=/my/clips
#
# Needs bash and Python 3.11 or newer. After an interruption, the same command resumes.
set -euo pipefail

start="$PWD"
# shellcheck source=launch/setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up run

workdir="${WORKDIR:-runs/quickstart}"
# A folder that the caller names is relative to the caller's.
if [[ -n "${WORKDIR:-}" && "$WORKDIR" != /* ]]; then
  workdir="$start/$WORKDIR"
fi

config="--config=configs/quickstart.py"
for argument in "$@"; do
  case "$argument" in
    --config=* | --config) config="" ;; # The caller's own; a second one would be refused.
    --workdir=* | --workdir) fail "name the folder in front: WORKDIR=FOLDER bash launch/local.sh" ;;
  esac
done

status=0
"$venv_python" -m videoar_jax.main ${config:+"$config"} --workdir="$workdir" "$@" || status=$?
if [[ $status -ne 0 || ! -f "$workdir/report.md" ]]; then
  exit "$status"
fi

python="$venv_python"
if [[ "$start" != "$PWD" ]]; then
  # The commands below must work in the caller's folder.
  python="$PWD/$venv_python"
  [[ "$workdir" == /* ]] || workdir="$PWD/$workdir"
fi
python="$(printf '%q' "$python")"
quoted="$(printf '%q' "$workdir")"
cat <<TEXT

Look at
  $workdir/report.md            scores and pictures
  $workdir/report/*.png         the pictures
  $workdir/samples/             generated clips
Training curves and videos, in TensorBoard:
  $python -m pip install tensorboard
  $python -m tensorboard.main --logdir $quoted
More clips:
  $python -m videoar_jax.sample --workdir=$quoted \\
    --prompt="a large red circle moves left" --num_samples=4 --out=more
TEXT
