"""The loop: saves and pictures that fail, and impossible settings."""

import contextlib
import logging
import pathlib

import jax
import numpy as np
import pytest
from tiny_tasks import Batches, Log, Task

from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.train import loop, trainer
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.logging import NoLog
from videoar_jax.train.optimizer import OptimizerConfig
from videoar_jax.train.saving import Saver


class Failing(Checkpointer):
  """Fails as configured: `begin` when a save starts, `end` in the background; None for neither."""

  latest_step = 3

  def __init__(self, begin=None, end=None):
    self.directory = pathlib.Path("runs/one/I/checkpoints")
    self.begin, self.end, self.is_saving = begin, end, False

  def check(self):
    is_saving, self.is_saving = self.is_saving, False
    if is_saving and self.end is not None:
      raise self.end

  wait = check

  def save(self, *_):
    if self.begin is not None:
      raise self.begin
    self.is_saving = True


def save(saver, step, *, is_last=False):
  saver.save(step, {}, Batches({}), is_last)


FULL, GONE = OSError("the disk is full"), RuntimeError("the bucket is gone")


@pytest.mark.parametrize("error", [FULL, GONE])
def test_a_save_that_fails_does_not_end_the_run_but_the_last_one_does(caplog, error):
  """Any error, which is not always an OSError, at the start of a save or in the background."""
  with caplog.at_level(logging.ERROR):
    save(Saver(Failing(begin=error), NoLog()), 7)
    saver = Saver(Failing(end=error), NoLog())
    save(saver, 8)
    saver.check()
  assert [record.getMessage() for record in caplog.records] == [
    f"STEP 7 WAS NOT SAVED: {error}. The run continues and tries again",
    f"A SAVE FAILED: {error}. The run continues and tries again",
  ]
  for failing in (Failing(begin=error), Failing(end=error)):
    with pytest.raises(type(error), match=str(error)):
      save(Saver(failing, NoLog()), 7, is_last=True)


@pytest.mark.parametrize("place", ["begin", "end"])
def test_three_saves_that_fail_in_a_row_end_the_run(place):
  """Those before a save that succeeds do not count."""
  failing = Failing()
  saver = Saver(failing, NoLog())
  for error in (GONE, GONE, None, GONE, GONE):
    setattr(failing, place, error)
    save(saver, 7)
    saver.check()
  with pytest.raises(OSError, match=r"3 saves in a row failed.*bucket is gone.*from step 3"):
    save(saver, 9)
    saver.check()


def test_a_save_that_hangs_ends_the_run():
  with pytest.raises(TimeoutError):
    save(Saver(Failing(begin=TimeoutError("hanging")), NoLog()), 7)
  saver = Saver(Failing(end=TimeoutError("hanging")), NoLog())
  save(saver, 7)
  with pytest.raises(TimeoutError):
    saver.check()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"keep_period": 3}, "keep_period=3 must be a multiple of save_every=2"),
    ({"profile_steps": (5, 4)}, "profile_steps"),
    ({"max_to_keep": 0}, "max_to_keep=0"),
  ],
)
def test_bad_settings_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    LoopConfig(10, 4, OptimizerConfig(), save_every=2, **fields)


class Showing(Task):
  """Shows its clips."""

  def media(self, module, frozen, batch):
    return {"clips": batch["video"]}


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_picture_that_cannot_be_made_is_logged_and_training_continues(
  tmp_path, monkeypatch, caplog, num_devices
):
  monkeypatch.setattr(trainer, "NUM_SHOWN", 3)  # Which two devices do not share evenly.
  mesh = make_mesh(MeshConfig(), jax.devices()[:num_devices])
  config = LoopConfig(4, 2, OptimizerConfig(), save_every=4, media_every=1)
  clips = np.arange(3, dtype=np.uint8)[:, None] + np.zeros((3, 2), np.uint8)
  seen = {}

  class Failing(Log):
    def videos(self, step, videos):
      if step == 2:
        raise OverflowError("int too big to convert")
      seen[step] = videos["clips"]

  logged = Failing()
  with contextlib.closing(Checkpointer(tmp_path / "checkpoints")) as checkpointer:
    training = trainer.Trainer(Showing(), config, mesh, seed=0)
    loop.train(training, training.init(), Batches({}), checkpointer, logged, {"video": clips})
  assert list(logged.records) == [1, 2, 3, 4] and list(seen) == [1, 3, 4]
  for shown in seen.values():
    np.testing.assert_array_equal(shown, clips)
  [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
  assert "STEP 2 HAS NO SAMPLES" in record.getMessage()
  assert "OverflowError: int too big to convert" in caplog.text
