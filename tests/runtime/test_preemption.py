"""Preemption that takes too long."""

import os
import signal
import subprocess
import sys
import threading

from videoar_jax.parallel import processes
from videoar_jax.runtime.preemption import handle_preemption


def test_a_stop_that_takes_too_long_ends_the_process():
  """In a subprocess: TERM comes, nothing stops, and the timeout passes."""
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
