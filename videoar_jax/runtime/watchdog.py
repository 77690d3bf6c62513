"""Finds steps that hang, dumps the stacks of all threads, and ends what does not end."""

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

# A step hangs after so many times its usual time, but never before so many seconds.
HANG_FACTOR = 10
HANG_FLOOR_S = 30.0
NUM_USUAL_STEPS = 5  # That are measured before any is judged.


class Watchdog:
  """Dumps the stacks of all threads when a step takes ten times its usual time.

  Args:
    end_s: seconds that a step may take until the process ends, if that is more than its stacks are
      waited for; 0 for any. What hangs with another process, or a device, is past mending from
      within.
    floor_s: seconds before which no step is taken to hang.
    file: for the stacks; None for stderr.
  """

  def __init__(self, end_s: float = 0, floor_s: float = HANG_FLOOR_S, file=None):
    self._end_s, self._floor_s, self._file = end_s, floor_s, file or sys.__stderr__
    self._is_told = False
    self._lock = threading.Lock()  # Of what two threads change together: the four below.
    self._usual: deque[float] = deque(maxlen=50)
    self._beat = time.monotonic()
    self._waited = 0.0  # Since then, but for time in which the process was stopped.
    self._rest: tuple[str, float] | None = None  # What is done between steps, and its bound.
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
    self._telling: threading.Thread | None = None

  def beat(self) -> None:
    """Says that a step is over."""
    now = time.monotonic()
    with self._lock:
      self._usual.append(now - self._beat)
      self._beat, self._waited, self._is_told = now, 0.0, False

  @contextlib.contextmanager
  def rest(self, what: str, bound_s: float = 0):
    """Counts what is done inside to no step; it may take as long as a step may until it ends.

    Args:
      what: is done, for the message.
      bound_s: seconds that it may take, if that is more.
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
    if self._telling is not None:
      self._telling.join(timeout=1)

  def _watch(self) -> None:
    tick = self._floor_s / 10
    before = time.monotonic()
    while not self._ended.wait(tick):
      now = time.monotonic()
      passed, before = min(now - before, 2 * tick), now
      with self._lock:
        rest, usual = self._rest, list(self._usual)
        is_judged = rest is not None or len(usual) >= NUM_USUAL_STEPS
        self._waited += passed if is_judged else 0.0
        waited = self._waited
      if rest is not None:
        self._judge_rest(waited, *rest)
      elif is_judged:
        self._judge_step(waited, statistics.median(usual))

  def _judge_step(self, waited: float, usual_s: float) -> None:
    bound_s = max(HANG_FACTOR * usual_s, self._floor_s)
    if waited > bound_s and not self._is_told:
      self._is_told = True
      faulthandler.dump_traceback(file=self._file, all_threads=True)
      self._tell(
        "A STEP HAS TAKEN %.0f s, usually %.2g s; all stacks are on stderr", waited, usual_s
      )
    if self._end_s and waited > max(bound_s, self._end_s):
      self._end("the step", waited)

  def _judge_rest(self, waited: float, what: str, bound_s: float) -> None:
    if self._end_s and waited > max(bound_s, self._end_s, self._floor_s):
      faulthandler.dump_traceback(file=self._file, all_threads=True)
      self._end(what, waited)

  def _end(self, what: str, waited: float) -> None:
    text = f"{what.upper()} DOES NOT END: after {waited:.0f} s, the process does\n"
    os.write(sys.__stderr__.fileno(), text.encode())
    os._exit(128 + signal.SIGABRT)

  def _tell(self, *message) -> None:
    """Logs in a thread of its own: the file of the log may be what hangs."""
    self._telling = threading.Thread(target=log.error, args=message, daemon=True)
    self._telling.start()
