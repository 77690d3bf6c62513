"""Twenty kills, at any time and during saves: saves are correct, and the run ends like any other.

Takes minutes: `pytest -m slow tests/test_kills.py -s` shows what each kill interrupted.
"""

import json
import random
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import REPOSITORY, TINY, environment, run

NUM_KILLS = 20
STAGES = ("I", "II")
LAST_STEP = 60
SAVE_EVERY = 3


# Stages I and II of text to video, small, on a tokenizer that is trained before them.
CONFIG = f"""
from configs import videoar_t2v

def get_config(arg=None):
  config = videoar_t2v.get_config("size=tiny,data=sprites,steps={LAST_STEP}")
  config.stages = ("images", "tokenizer", *{STAGES})
  for name in ("images", "tokenizer"):
    config.stage[name].loop.update(num_steps=2, batch_size=4)
  for name in {STAGES}:
    config.stage[name].data.update(num_frames=5, resolution=(16, 16))
    keep_period = {SAVE_EVERY} if arg == "keep" else 0
    config.stage[name].loop.update(save_every={SAVE_EVERY}, keep_period=keep_period, batch_size=4)
  return config
"""


def command(workdir, config):
  """Returns the command that trains all stages."""
  main = [sys.executable, "-m", "videoar_jax.main", f"--workdir={workdir}", f"--config={config}"]
  return [*main, *(flag for flag in TINY if not flag.startswith("--config.stage."))]


def arrays(checkpoint):
  """Returns all arrays of a checkpoint, by name, and its iterator state."""
  found = {"iterator": (checkpoint / "iterator" / "metadata").read_text()}
  for item in ("params", "ema", "progress", "guard"):
    if (checkpoint / item).exists():
      with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(checkpoint / item)
      leaves = jax.tree_util.tree_leaves_with_path(tree)
      found |= {f"{item}{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}
  assert len(found) > 20
  return found


def steps_of(folder):
  """Returns the steps of complete checkpoints."""
  return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def assert_same(checkpoint, other):
  ours, theirs = arrays(checkpoint), arrays(other)
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    np.testing.assert_array_equal(ours[name], value, err_msg=f"{name} of {checkpoint}")


def numbers(workdir):
  """Returns each stage's logged metrics except times."""
  found = {}
  for stage in STAGES:
    lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    found[stage] = [{k: v for k, v in r.items() if not k.endswith("_per_s")} for r in records]
    assert [record["step"] for record in records] == list(range(1, LAST_STEP + 1))
  return found


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_as_one_that_is_not(tmp_path):
  seed = int(time.time())
  print(f"seed {seed}", flush=True)
  chance = random.Random(seed)
  whole, start, killed = (tmp_path / name for name in ("whole", "start", "killed"))
  config = tmp_path / "config.py"
  config.write_text(CONFIG)
  for stage in ("images", "tokenizer"):
    done = run([*command(whole, config), f"--stage={stage}"])
    assert done.returncode == 0, done.stderr[-3000:]
  shutil.copytree(whole, start)
  shutil.copytree(start, killed)
  # The run that is not killed keeps all checkpoints, to compare those of the other with.
  began = time.monotonic()
  done = run(command(whole, f"{config}:keep"))
  assert done.returncode == 0, done.stderr[-3000:]
  whole_s = time.monotonic() - began

  kills = amid_saves = 0
  while kills < NUM_KILLS:
    leftovers = set(_unfinished(killed))
    before = {stage: steps_of(killed / stage / "checkpoints") for stage in STAGES}
    process = subprocess.Popen(
      command(killed, config),
      cwd=REPOSITORY,
      env=environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    if kills % 2:
      time.sleep(chance.uniform(0, whole_s / 2))
      while process.poll() is None and not set(_unfinished(killed)) - leftovers:
        time.sleep(0.0005)
      time.sleep(chance.uniform(0, 0.05))
    else:
      time.sleep(chance.uniform(0, whole_s))
    is_killed = process.poll() is None
    is_amid_save = bool(set(_unfinished(killed)) - leftovers)
    process.kill()
    output, _ = process.communicate()
    if not is_killed:
      assert process.returncode == 0, output[-3000:]
      # It came to its end before all kills; another one takes the rest.
      _assert_ended_alike(killed, whole)
      shutil.rmtree(killed)
      shutil.copytree(start, killed)
      continue
    kills += 1
    amid_saves += is_amid_save
    after = {stage: steps_of(killed / stage / "checkpoints") for stage in STAGES}
    print(f"kill {kills}: {after}, {'amid a save' if is_amid_save else ''}", flush=True)
    for stage in STAGES:
      assert not before[stage] or max(after[stage]) >= max(before[stage]), "a checkpoint is lost"
      for step in after[stage][-2:]:  # Older ones were about to be removed.
        place = f"{stage}/checkpoints/{step}"
        assert_same(killed / place, whole / place)
  done = run(command(killed, config))
  assert done.returncode == 0, done.stderr[-3000:]
  _assert_ended_alike(killed, whole)
  assert amid_saves >= NUM_KILLS // 4


def _assert_ended_alike(workdir, other):
  assert numbers(workdir) == numbers(other)
  for stage in STAGES:
    place = f"{stage}/checkpoints/{LAST_STEP}"
    assert_same(workdir / place, other / place)


def _unfinished(workdir):
  return [path for stage in STAGES for path in (workdir / stage).glob("checkpoints/*tmp*")]
