"""The loop: failing saves, and impossible settings."""

import logging
import types

import pytest

from videoar_jax.train import loop
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.optimizer import OptimizerConfig


class Checkpointer:
  """Fails as configured."""

  def __init__(self, error):
    self.error = error

  def check(self):
    raise self.error

  wait = check

  def save(self, *_):
    raise self.error


PARTS = (
  types.SimpleNamespace(flush=lambda: None),
  7,
  {},
  types.SimpleNamespace(get_state=lambda: {}),
)


def test_a_save_that_fails_does_not_end_the_run_but_the_last_one_does(caplog):
  failing = Checkpointer(OSError("the disk is full"))
  with caplog.at_level(logging.ERROR):
    loop._save(failing, *PARTS, is_last=False)
    loop._check_saves(failing.check)
  assert "STEP 7 WAS NOT SAVED: the disk is full" in caplog.text and "A SAVE FAILED" in caplog.text
  with pytest.raises(OSError, match="disk is full"):
    loop._save(failing, *PARTS, is_last=True)


@pytest.mark.parametrize("is_last", [False, True])
def test_a_save_is_tried_where_the_one_before_it_failed(caplog, is_last):
  """Any background error, which is not always an OSError."""
  checkpointer, saved = Checkpointer(RuntimeError("the bucket is gone")), []
  checkpointer.save = lambda *what: saved.append(what)
  with caplog.at_level(logging.ERROR):
    loop._save(checkpointer, *PARTS, is_last=is_last)
  assert saved and "A SAVE FAILED: the bucket is gone" in caplog.text


def test_a_save_that_fails_in_a_way_of_its_own_does_not_end_the_run(caplog):
  failing = Checkpointer(RuntimeError("the bucket is gone"))
  with caplog.at_level(logging.ERROR):
    loop._save(failing, *PARTS, is_last=False)
  assert "STEP 7 WAS NOT SAVED" in caplog.text


def test_a_save_that_hangs_ends_the_run():
  hanging = Checkpointer(TimeoutError("hanging"))
  with pytest.raises(TimeoutError):
    loop._check_saves(hanging.check)
  with pytest.raises(TimeoutError):
    loop._save(hanging, *PARTS, is_last=False)


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
