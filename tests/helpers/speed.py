"""Measures calls beside each other."""

import contextlib
import statistics
import time
from collections.abc import Callable

import jax


@contextlib.contextmanager
def optimized():
  """Lets XLA optimise what is compiled within; else, the suite saves that time."""
  jax.config.update("jax_disable_most_optimizations", False)
  try:
    yield
  finally:
    jax.config.update("jax_disable_most_optimizations", True)


def medians(calls: dict[str, Callable], num_turns: int) -> dict[str, float]:
  """Returns the median of each call's seconds, of turns in which each is made once.

  The turn before the first one does not count.
  """
  times = {name: [] for name in calls}
  for i in range(1 + num_turns):
    for name, call in calls.items():
      begin = time.perf_counter()
      call()
      if i:
        times[name].append(time.perf_counter() - begin)
  return {name: statistics.median(values) for name, values in times.items()}
