"""Detects steps that hang: dumps the stacks of all threads and, later, ends the process."""

import contextlib
import faulthandler
import logging
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque

log = logging.getLogger(__name__)

# A step hangs if it takes this many times its usual time, and at least this many seconds.
HANG_FACTOR = 10
HANG_FLOOR_S = 30.0
NUM_USUAL_STEPS = 5  # Steps to measure before the first check.


class Watchdog:
  """Dumps the stacks of all threads when a step takes ten times its usual time.

  Args:
    end_s: seconds after which a step that hangs ends the process, but never before its stacks are
      dumped; 0 for no limit. A step that waits for another process or a device cannot recover.
    floor_s: least number of seconds after which a step counts as hanging.
    file: file for the stacks; None for stderr.
  """

  def __init__(self, end_s: float = 0, floor_s: float = HANG_FLOOR_S, file=None):
    self._end_s, self._floor_s, self._file = end_s, floor_s, file or sys.__stderr__
    self._is_reported = False
    self._lock = threading.Lock()  # Guards the next four fields, which both threads change.
    self._usual: deque[float] = deque(maxlen=50)
    self._beat = time.monotonic()
    self._waited = 0.0  # Seconds since then, without time in which the process was suspended.
    self._rest: tuple[str, float] | None = None  # Work between steps: its name and time limit.
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
    self._reporter: threading.Thread | None = None

  def beat(self) -> None:
    """Marks the end of a step."""
    now = time.monotonic()
    with self._lock:
      self._usual.append(now - self._beat)
      self._beat, self._waited, self._is_reported = now, 0.0, False

  @contextlib.contextmanager
  def rest(self, what: str, bound_s: float = 0):
    """Excludes the work inside from the step's time; its own time limit is `end_s`.

    Args:
      what: name of the work, for the message.
      bound_s: a longer time limit, in seconds.
    """
    with self._lock:
      began, waited = time.monotonic(), self._waited
      self._waited, self._rest = 0.0, (what, bound_s)
    try:
      yield
    finally:
      with self._lock:
        self._beat += time.monotonic() - began
        self._waited, self._rest = waited, None

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._ended.set()
    self._thread.join()
    if self._reporter is not None:
      self._reporter.join(timeout=1)

  def _watch(self) -> None:
    tick = self._floor_s / 10
    before = time.monotonic()
    while not self._ended.wait(tick):
      now = time.monotonic()
      passed, before = min(now - before, 2 * tick), now
      with self._lock:
        rest, usual = self._rest, list(self._usual)
        is_checked = rest is not None or len(usual) >= NUM_USUAL_STEPS
        self._waited += passed if is_checked else 0.0
        waited = self._waited
      if rest is not None:
        self._check_rest(waited, *rest)
      elif is_checked:
        self._check_step(waited, statistics.median(usual))

  def _check_step(self, waited: float, usual_s: float) -> None:
    bound_s = max(HANG_FACTOR * usual_s, self._floor_s)
    if waited > bound_s and not self._is_reported:
      self._is_reported = True
      faulthandler.dump_traceback(file=self._file, all_threads=True)
      self._report(
        "A STEP HAS TAKEN %.0f s, usually %.2g s; all stacks are on stderr", waited, usual_s
      )
    if self._end_s and waited > max(bound_s, self._end_s):
      self._end("the step", waited)

  def _check_rest(self, waited: float, what: str, bound_s: float) -> None:
    if self._end_s and waited > max(bound_s, self._end_s, self._floor_s):
      faulthandler.dump_traceback(file=self._file, all_threads=True)
      self._end(what, waited)

  def _end(self, what: str, waited: float) -> None:
    text = f"{what.upper()} HANGS: ending the process after {waited:.0f} s\n"
    os.write(sys.__stderr__.fileno(), text.encode())
    os._exit(128 + signal.SIGABRT)

  def _report(self, *message) -> None:
    """Logs in a separate thread, since the log's own file system may be what hangs."""
    self._reporter = threading.Thread(target=log.error, args=message, daemon=True)
    self._reporter.start()
