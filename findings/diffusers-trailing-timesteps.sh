#!/usr/bin/env bash
# Diffusers' "trailing" spacing of timesteps has one step too many for some numbers of steps.
#
# With timestep_spacing="trailing", the schedulers of Diffusers take a range from the number of
# training steps down to 0, with a step that need not be a whole number. Rounding makes that range
# one longer for some numbers of inference steps: of 1 to 1000, for 62, such as 61, 103, 121, 122
# and 201, with 1000 training steps. The last timestep is then -1. It indexes the cumulative alphas
# from their end, so that the last step of sampling is one at almost pure noise. The default of 50
# steps is not among them.
#
# Seen with diffusers 0.42.1 and torch 2.13.0 on CPython 3.11, on 2026-11-29: DDPMScheduler and
# DDIMScheduler have 62 timesteps for 61, and the last is -1.
#
# Exits non-zero if this changes.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 "transformers==5.24.0"

"$folder/venv/bin/python" - <<'PYTHON'
from diffusers import DDIMScheduler, DDPMScheduler

for cls in (DDPMScheduler, DDIMScheduler):
  scheduler = cls(num_train_timesteps=1000, timestep_spacing="trailing")
  longer = []
  for number in range(1, 1001):
    scheduler.set_timesteps(number)
    if len(scheduler.timesteps) != number:
      longer.append((number, len(scheduler.timesteps), int(scheduler.timesteps[-1])))
  print(cls.__name__, len(longer), "numbers of steps, the first", longer[:5])
  assert len(longer) == 62 and longer[0] == (61, 62, -1), longer
  assert all(found == number + 1 and last == -1 for number, found, last in longer)
  scheduler.set_timesteps(50)
  assert len(scheduler.timesteps) == 50 and int(scheduler.timesteps[-1]) > 0
PYTHON
echo "as described"
