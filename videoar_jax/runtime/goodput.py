"""Where a run's time goes (steps, compiling, data and others), and its step rate."""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax

log = logging.getLogger(__name__)

T = TypeVar("T")

_compiled = {"hits": 0, "misses": 0, "seconds": 0.0}


def _count_event(event: str, **_) -> None:
  if event == "/jax/compilation_cache/cache_hits":
    _compiled["hits"] += 1
  elif event == "/jax/compilation_cache/cache_misses":
    _compiled["misses"] += 1


def _count_seconds(event: str, seconds: float, **_) -> None:
  # Includes the time of looking up the compilation cache.
  if event == "/jax/core/compile/backend_compile_duration":
    _compiled["seconds"] += seconds


jax.monitoring.register_event_listener(_count_event)
jax.monitoring.register_event_duration_secs_listener(_count_seconds)


class GoodputTracker:
  """Divides the time of a run among named activities.

  Args:
    rest: name of the time that is neither compiling nor counted under another name.
  """

  def __init__(self, rest: str = "steps"):
    self._rest = rest
    self._started = time.perf_counter()
    self._before = dict(_compiled)
    self._seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def measure(self, name: str):
    """Counts the time in the context as `name`, except for compilation."""
    started, compiled = time.perf_counter(), _compiled["seconds"]
    try:
      yield
    finally:
      self.count(name, time.perf_counter() - started - (_compiled["seconds"] - compiled))

  def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
    """Yields items; counts the time that it waits for them as `name`."""
    items, end = iter(items), object()
    while True:
      with self.measure(name):
        item = next(items, end)
      if item is end:
        return
      yield item

  def count_rest(self, name: str) -> None:
    """Counts all time so far that is not counted yet as `name`."""
    self.count(name, self.seconds()[self._rest])

  def lose(self, seconds: float) -> None:
    """Counts time that an earlier run spent on steps that must be repeated."""
    self._started -= seconds
    self.count("lost work", seconds)

  def count(self, name: str, seconds: float) -> None:
    """Counts seconds as `name`."""
    self._seconds[name] = self._seconds.get(name, 0.0) + seconds

  def seconds(self) -> dict[str, float]:
    """Returns the seconds since the start, by name."""
    total = time.perf_counter() - self._started
    counted = {"compiling": _compiled["seconds"] - self._before["seconds"], **self._seconds}
    return {self._rest: total - sum(counted.values()), **counted}

  def shares(self) -> dict[str, float]:
    """Returns the share of the time since the start, by name; they sum to 1."""
    seconds = self.seconds()
    total = max(sum(seconds.values()), 1e-9)
    return {name: value / total for name, value in seconds.items()}

  def report(self) -> str:
    """Returns a line with the shares and the number of hits of the compilation cache."""
    total = time.perf_counter() - self._started
    shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares().items())
    hits, misses = (_compiled[name] - self._before[name] for name in ("hits", "misses"))
    where = jax.config.jax_compilation_cache_dir
    cache = f"{hits} programs from {where}, {misses} not" if where else "no compilation cache"
    return f"goodput of {total:.0f} s: {shares}; {cache}"


class StepRate:
  """Steps per second since the last line of the log, over the time of steps and waiting for data.

  Saving, sampling, evaluation and compiling do not count.

  Args:
    goodput: the loop's tracker, which counts steps as "steps".
    step: the last step before the first that counts.
  """

  def __init__(self, goodput: GoodputTracker, step: int):
    self._goodput = goodput
    self.restart(step)

  def restart(self, step: int) -> None:
    """Starts the next window after a step."""
    self._step, self._began = step, self._training_s()

  def at(self, step: int) -> float:
    """Returns the steps per second from the start of the window to the end of a step."""
    return (step - self._step) / max(self._training_s() - self._began, 1e-9)

  def _training_s(self) -> float:
    seconds = self._goodput.seconds()
    return seconds["steps"] + seconds.get("data", 0.0)


@contextlib.contextmanager
def report_at_exit(goodput: GoodputTracker) -> Iterator[GoodputTracker]:
  """Yields a tracker, and logs its report at exit."""
  try:
    yield goodput
  finally:
    log.info("%s", goodput.report())
