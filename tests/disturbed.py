"""Runs `videoar_jax.main` with a failure that the variable DISTURBANCE selects.

  DISTURBANCE="stop 3"            preempted after this many steps of the process
  DISTURBANCE="disk PLACE 4"      no file can be written from the save of step 4 until the next save
  DISTURBANCE="kill PLACE"        killed when it first reaches the place
  DISTURBANCE="hang PLACE"        hangs at the place forever

For "disk", PLACE is part of a stage's folder; otherwise it is "media", "save" or "report". Saves
and restores are logged to DISTURBANCE_LOG, if set: lines of event, stage, step and digest.
SIGUSR2 prints the stack of each thread.
"""

import faulthandler
import functools
import hashlib
import os
import pathlib
import resource
import signal
import sys
import time
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from absl import app
from jax.sharding import NamedSharding, PartitionSpec

from videoar_jax import main
from videoar_jax.evals import report
from videoar_jax.runtime import preemption
from videoar_jax.train import checkpoint, trainer


def stop(num_steps: str) -> None:
  """Preempts the run at the same step in all of its processes."""
  calls = iter(range(1, sys.maxsize))

  def is_due(self):
    if next(calls) == int(num_steps):
      self.signal = signal.SIGTERM
    return self.signal is not None

  preemption.PreemptionHandler.is_due = is_due


def disk(folder: str, at_step: str) -> None:
  """Limits a save to a few bytes per file, except for files that are already open."""
  save, (_, most) = checkpoint.Checkpointer.save, resource.getrlimit(resource.RLIMIT_FSIZE)

  def disturbed(self, step, *state):
    is_full = step == int(at_step) and folder in str(self.directory)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 if is_full else most, most))
    save(self, step, *state)

  checkpoint.Checkpointer.save = disturbed


def kill(place: str) -> None:
  """Kills the process at the place."""
  _replace(place, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))


def hang(place: str) -> None:
  """Hangs at the place."""
  _replace(place, lambda *_, **__: time.sleep(10**6))


def _replace(place: str, action) -> None:
  if place == "report":
    report.write_report = action
  elif place == "save":
    checkpoint.Checkpointer.save = action
  else:
    init = trainer.Trainer.__init__

    @functools.wraps(init)
    def disturbed(self, *arguments, **options):
      init(self, *arguments, **options)
      # What is asked of a program first by several processes.
      self.media = mock.Mock(lower=action)

    trainer.Trainer.__init__ = disturbed


def write_digests(path: str) -> None:
  """Logs digests of all saved and restored parameters, over all devices."""
  save, restore = checkpoint.Checkpointer.save, checkpoint.Checkpointer.restore_newest

  def write(what, directory, step, state):
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((state["params"], state["ema"], state["opt_state"])):
      whole = NamedSharding(leaf.sharding.mesh, PartitionSpec())
      digest.update(np.asarray(jax.jit(lambda x: x, out_shardings=whole)(leaf)).tobytes())
    with pathlib.Path(path).open("a") as file:
      file.write(f"{what} {directory.parent.name} {step} {digest.hexdigest()}\n")

  def saved(self, step, state, *rest):
    write("saved", self.directory, step, state)
    save(self, step, state, *rest)

  def restored(self, abstract):
    found = restore(self, abstract)
    write("restored", self.directory, *found[:2])
    return found

  checkpoint.Checkpointer.save, checkpoint.Checkpointer.restore_newest = saved, restored


if __name__ == "__main__":
  faulthandler.register(signal.SIGUSR2)
  for kind, *arguments in filter(None, [os.environ["DISTURBANCE"].split()]):
    {"stop": stop, "disk": disk, "kill": kill, "hang": hang}[kind](*arguments)
  if os.environ.get("DISTURBANCE_LOG"):
    write_digests(os.environ["DISTURBANCE_LOG"])
  app.run(main.main, flags_parser=main.parse_flags)
