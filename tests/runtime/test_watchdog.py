"""Steps that hang, and work between steps."""

import logging
import os
import threading
import time

import pytest

from videoar_jax.runtime.watchdog import Watchdog


@pytest.mark.parametrize("is_resting", [False, True])
def test_a_step_that_hangs_dumps_all_stacks_once(tmp_path, caplog, is_resting):
  with (tmp_path / "stacks").open("w+") as file, caplog.at_level(logging.ERROR):
    with Watchdog(floor_s=0.2, file=file) as watchdog:
      time.sleep(0.4)  # Nothing is usual yet.
      for _ in range(9):
        watchdog.beat()
      if is_resting:
        with watchdog.rest("the save"):
          time.sleep(0.5)
      else:
        time.sleep(0.5)
      watchdog.beat()
    file.seek(0)
    text = file.read()
  num_told = 0 if is_resting else 1
  assert caplog.text.count("A STEP HAS TAKEN") == num_told
  assert text.count("test_a_step_that_hangs_dumps_all_stacks_once") == num_told


@pytest.mark.parametrize("end_s", [0.01, 0.3])
def test_a_step_that_does_not_end_ends_the_process(tmp_path, caplog, monkeypatch, end_s):
  ended = threading.Event()

  def end(status):
    assert status == 134
    ended.set()

  monkeypatch.setattr(os, "_exit", end)
  with (tmp_path / "stacks").open("w+") as file, caplog.at_level(logging.ERROR):
    with Watchdog(end_s=end_s, floor_s=0.1, file=file) as watchdog:
      for _ in range(9):
        watchdog.beat()
      assert ended.wait(30)
    file.seek(0)
    assert file.read().count("test_a_step_that_does_not_end_ends_the_process") == 1
  assert "A STEP HAS TAKEN" in caplog.text


@pytest.mark.parametrize(("bound_s", "is_ended"), [(0.1, True), (60, False)])
def test_what_is_done_between_steps_is_bounded_from_the_first_step_on(
  tmp_path, monkeypatch, capfd, bound_s, is_ended
):
  ends = []
  monkeypatch.setattr(os, "_exit", ends.append)
  with (tmp_path / "stacks").open("w+") as file, Watchdog(0.2, floor_s=0.1, file=file) as watchdog:
    with watchdog.rest("the save", bound_s):
      time.sleep(0.4)
    time.sleep(0.05)
    num_ends = len(ends)
    # Nor does it count to what comes then.
    with watchdog.rest("the samples", 60):
      time.sleep(0.1)
    assert len(ends) == num_ends and (num_ends > 0) == is_ended
    file.seek(0)
    assert ("test_what_is_done_between" in file.read()) == is_ended
  assert set(ends) <= {134}
  assert ("THE SAVE HANGS: ending the process" in capfd.readouterr().err) == is_ended


def test_time_in_which_the_process_was_stopped_does_not_count(tmp_path, monkeypatch):
  ends, later, real = [], [0.0], time.monotonic
  monkeypatch.setattr(os, "_exit", ends.append)
  monkeypatch.setattr(time, "monotonic", lambda: real() + later[0])
  stacks = (tmp_path / "stacks").open("w+")
  with stacks, Watchdog(end_s=100, floor_s=0.1, file=stacks) as watchdog:
    for _ in range(9):
      watchdog.beat()
    time.sleep(0.05)
    later[0] = 1000.0
    time.sleep(0.05)
  assert not ends
