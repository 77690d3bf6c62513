"""Profiles of a range of steps, and on demand."""

import os
import signal

import jax

from videoar_jax.runtime.profiler import Profiler


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
