"""What watches a training loop: where its time goes, whether it hangs, profiles on demand."""

import contextlib
import faulthandler
import logging
import os
import pathlib
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax

log = logging.getLogger(__name__)

# A step hangs after so many times its usual time, but never before so many seconds.
HANG_FACTOR = 10
HANG_FLOOR_S = 30.0
NUM_USUAL_STEPS = 5  # That are measured before any is judged.
NUM_PROFILED_STEPS = 5  # At each SIGUSR1.

T = TypeVar("T")

_compiled = {"hits": 0, "misses": 0, "seconds": 0.0}


def _count_event(event: str, **_) -> None:
  if event == "/jax/compilation_cache/cache_hits":
    _compiled["hits"] += 1
  elif event == "/jax/compilation_cache/cache_misses":
    _compiled["misses"] += 1


def _count_seconds(event: str, seconds: float, **_) -> None:
  # With a cache, the time to look there is in it.
  if event == "/jax/core/compile/backend_compile_duration":
    _compiled["seconds"] += seconds


jax.monitoring.register_event_listener(_count_event)
jax.monitoring.register_event_duration_secs_listener(_count_seconds)


class GoodputTracker:
  """Where time goes.

  Args:
    rest: name of what is neither compiling nor counted by another name.
  """

  def __init__(self, rest: str = "steps"):
    self._rest = rest
    self._started = time.perf_counter()
    self._before = dict(_compiled)
    self._seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def measure(self, name: str):
    """Counts the time inside as `name`, less what is compiled meanwhile."""
    started, compiled = time.perf_counter(), _compiled["seconds"]
    try:
      yield
    finally:
      self.count(name, time.perf_counter() - started - (_compiled["seconds"] - compiled))

  def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
    """Yields items; counts the time until each is there as `name`."""
    items, end = iter(items), object()
    while True:
      with self.measure(name):
        item = next(items, end)
      if item is end:
        return
      yield item

  def count_rest(self, name: str) -> None:
    """Counts the time so far, but for what is counted, as `name`."""
    self.count(name, self.shares()[self._rest] * (time.perf_counter() - self._started))

  def lose(self, seconds: float) -> None:
    """Counts time that was spent before on steps that are made again."""
    self._started -= seconds
    self.count("lost work", seconds)

  def count(self, name: str, seconds: float) -> None:
    """Counts seconds as `name`."""
    self._seconds[name] = self._seconds.get(name, 0.0) + seconds

  def shares(self) -> dict[str, float]:
    """Returns the share of the time since the beginning, by name; they sum to 1."""
    total = max(time.perf_counter() - self._started, 1e-9)
    seconds = {"compiling": _compiled["seconds"] - self._before["seconds"], **self._seconds}
    shares = {name: value / total for name, value in seconds.items()}
    return {self._rest: 1.0 - sum(shares.values()), **shares}

  def report(self) -> str:
    """Returns the shares, and how many programs came from the compilation cache, as a line."""
    total = time.perf_counter() - self._started
    shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares().items())
    hits, misses = (_compiled[name] - self._before[name] for name in ("hits", "misses"))
    where = jax.config.jax_compilation_cache_dir
    cache = f"{hits} programs from {where}, {misses} not" if where else "no compilation cache"
    return f"goodput of {total:.0f} s: {shares}; {cache}"


@contextlib.contextmanager
def report_at_exit(clock: GoodputTracker) -> Iterator[GoodputTracker]:
  """Yields a clock, and logs what it counted."""
  try:
    yield clock
  finally:
    log.info("%s", clock.report())


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


class Profiler:
  """Traces steps for TensorBoard and xprof: a range of them, and the next few at each SIGUSR1.

  Args:
    directory: where traces go.
    steps: first and last step to trace; empty for none.
  """

  def __init__(self, directory: pathlib.Path, steps: tuple[int, ...] = ()):
    self._directory = directory
    self._first, self._last = steps or (None, None)
    self._is_asked = self._is_tracing = False

  def __enter__(self):
    self._previous = signal.signal(signal.SIGUSR1, self._ask)
    return self

  def __exit__(self, *_):
    signal.signal(signal.SIGUSR1, self._previous)
    self._stop()

  def _ask(self, *_) -> None:
    self._is_asked = True

  def before(self, step: int) -> None:
    """Begins a trace where one is due; to be called before each step."""
    if self._is_asked and not self._is_tracing:
      self._first, self._last = step, step + NUM_PROFILED_STEPS - 1
    self._is_asked = False
    if step == self._first:
      jax.profiler.start_trace(str(self._directory))
      self._is_tracing = True

  def after(self, step: int, results) -> None:
    """Ends a trace with its last step, once the step's results are there."""
    if self._is_tracing and step >= self._last:
      jax.block_until_ready(results)
      self._stop()
      log.info("steps %d to %d are profiled in %s", self._first, self._last, self._directory)

  def _stop(self) -> None:
    if self._is_tracing:
      jax.profiler.stop_trace()
      self._is_tracing = False
