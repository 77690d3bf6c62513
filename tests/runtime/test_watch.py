"""Where time goes, steps that hang, profiles, and saves that fail while the loop runs."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import pytest

from videoar_jax.parallel import processes
from videoar_jax.runtime.preemption import handle_preemption
from videoar_jax.runtime.watch import GoodputTracker, Profiler, Watchdog
from videoar_jax.train.logging import RunLog
from videoar_jax.train.loop import LoopConfig, Trainer
from videoar_jax.train.optimizer import OptimizerConfig


def test_clock_parts_sum_to_one_and_compiling_is_counted_once(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  clock = GoodputTracker()
  with clock.measure("data"):
    now[0] = 0.25
    # What was compiled within is no data.
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 0.125)
  now[0] = 0.5
  expected = {"steps": 0.5, "compiling": 0.25, "data": 0.25}
  assert clock.shares() == pytest.approx(expected)


def test_clock_counts_the_start_and_what_a_run_before_lost(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  clock = GoodputTracker()
  clock.count("data", 1.0)
  now[0] = 5.0
  clock.count_rest("start")
  clock.lose(10.0)
  now[0] = 10.0
  expected = {"steps": 0.25, "compiling": 0, "data": 0.05, "start": 0.2, "lost work": 0.5}
  assert clock.shares() == pytest.approx(expected)
  assert "goodput of 20 s: steps 25%" in clock.report()


def test_clock_counts_the_wait_for_each_item_and_names_the_rest(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])

  def read():
    for item in "ab":
      now[0] += 1.0
      yield item

  clock, items = GoodputTracker("encoding"), []
  for item in clock.each("data", read()):
    items.append(item)
    now[0] += 3.0
  assert items == ["a", "b"]
  assert clock.shares() == pytest.approx({"encoding": 0.75, "compiling": 0, "data": 0.25})


def test_a_log_knows_the_time_of_the_steps_that_it_drops(tmp_path):
  records = [{"step": step, "steps_per_s": 4.0} for step in range(1, 9)]
  (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
  for first_step, expected in ((2, 1.5), (2, 0.0)):  # What was dropped is lost once.
    log = RunLog(tmp_path, first_step=first_step, num_steps=9, name="I", frame_rate=8.0)
    log.close()
    assert log.lost_s == expected


def test_clock_tells_what_came_from_the_cache():
  clock = GoodputTracker()
  for event in ("hits", "hits", "misses"):
    jax.monitoring.record_event(f"/jax/compilation_cache/cache_{event}")
  assert f"2 programs from {jax.config.jax_compilation_cache_dir}, 1 not" in clock.report()


def test_compiling_is_counted_where_jax_compiles():
  clock = GoodputTracker()
  jax.jit(lambda x: x * time.time())(1.0)  # A constant that no cache knows.
  assert clock.shares()["compiling"] > 0


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
  assert ("THE SAVE DOES NOT END" in capfd.readouterr().err) == is_ended


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


def test_profiles_a_range_and_at_a_signal(tmp_path, monkeypatch):
  calls, now = [], None
  monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append(("start", now)))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop", now)))
  before = signal.getsignal(signal.SIGUSR1)
  with Profiler(tmp_path, (2, 3)) as profiler:
    for now in range(1, 30):
      if now == 10:
        os.kill(os.getpid(), signal.SIGUSR1)
      if now == 27:
        os.kill(os.getpid(), signal.SIGUSR1)
      profiler.before(now)
      profiler.after(now, ())
  assert calls == [("start", 2), ("stop", 3), ("start", 10), ("stop", 14), *calls[4:]]
  assert calls[4:] == [("start", 27), ("stop", 29)]  # The end of the loop ends a trace.
  assert signal.getsignal(signal.SIGUSR1) == before


class Checkpointer:
  """Fails as it is told."""

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
    Trainer._save(failing, *PARTS, is_last=False)
    Trainer._check_saves(failing.check)
  assert "STEP 7 WAS NOT SAVED: the disk is full" in caplog.text and "A SAVE FAILED" in caplog.text
  with pytest.raises(OSError, match="disk is full"):
    Trainer._save(failing, *PARTS, is_last=True)


@pytest.mark.parametrize("is_last", [False, True])
def test_a_save_is_tried_where_the_one_before_it_failed(caplog, is_last):
  """Whatever went wrong in the background, which is not always an OSError."""
  checkpointer, saved = Checkpointer(RuntimeError("the bucket is gone")), []
  checkpointer.save = lambda *what: saved.append(what)
  with caplog.at_level(logging.ERROR):
    Trainer._save(checkpointer, *PARTS, is_last=is_last)
  assert saved and "A SAVE FAILED: the bucket is gone" in caplog.text


def test_a_save_that_fails_in_a_way_of_its_own_does_not_end_the_run(caplog):
  failing = Checkpointer(RuntimeError("the bucket is gone"))
  with caplog.at_level(logging.ERROR):
    Trainer._save(failing, *PARTS, is_last=False)
  assert "STEP 7 WAS NOT SAVED" in caplog.text


def test_a_save_that_hangs_ends_the_run():
  hanging = Checkpointer(TimeoutError("hanging"))
  with pytest.raises(TimeoutError):
    Trainer._check_saves(hanging.check)
  with pytest.raises(TimeoutError):
    Trainer._save(hanging, *PARTS, is_last=False)


def test_a_stop_that_takes_too_long_ends_the_process():
  """In a process of its own: TERM comes, nothing stops, and the time runs out."""
  program = """
import os, signal, time
from videoar_jax.runtime.preemption import handle_preemption
with handle_preemption(0.3):
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(60)
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=55)
  # As any run that was asked to stop: launchers take 1 for a mistake of the user's.
  assert done.returncode == 143 and "NOT STOPPED in 0.3 s" in done.stderr
  assert "time.sleep" not in done.stderr and 'File "<string>", line 6' in done.stderr
  assert "saving" in done.stdout


def test_the_time_of_a_stop_counts_from_its_last_signal(monkeypatch):
  timers = []

  class Timer:
    daemon = is_cancelled = False

    def __init__(self, seconds, function):
      timers.append(self)

    def start(self):
      pass

    def cancel(self):
      self.is_cancelled = True

  monkeypatch.setattr(threading, "Timer", Timer)
  with handle_preemption(9.0) as stop:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert [timer.is_cancelled for timer in timers] == [True, False]
    assert stop.signal == signal.SIGTERM
  assert [timer.is_cancelled for timer in timers] == [True, True]


def test_a_stop_that_processes_agree_on_is_bounded_too(monkeypatch):
  bounds, agreed = [], iter([False, True])
  monkeypatch.setattr("faulthandler.dump_traceback_later", lambda s, exit: bounds.append((s, exit)))
  monkeypatch.setattr(processes, "is_preemption_agreed", lambda: next(agreed))
  with handle_preemption(9.0) as stop:
    assert not stop.is_due() and not bounds
    assert stop.is_due() and stop.is_due()  # Nobody asks the others once it is agreed.
  # What holds Python itself up is ended from without it, a little later.
  assert bounds == [(19.0, True)] and stop.signal == signal.SIGTERM


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
