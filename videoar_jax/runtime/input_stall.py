"""Measures how long a run waits for its data."""

import contextlib
import logging
import threading
import time

import jax

log = logging.getLogger(__name__)

LIMIT = 0.02  # Share of the time above which the log warns.


class InputStallMeter:
  """Measures the share of time that the device idles inside `with meter:` blocks.

  The first block does not count, since no batch can be ready then.

  Attributes:
    last: idle seconds in the last block.
  """

  def __init__(self):
    self._started: float | None = None
    self.last = self._waited = self._entered = 0.0
    self._ended: list[float] | None = None  # End time of the current step, once it has ended.
    self._has_warned = False

  def follow(self, results) -> None:
    """Records, in the background, when a step that was just dispatched ends."""
    ended: list[float] = []

    def note() -> None:
      # An error in the step is raised where its results are used.
      with contextlib.suppress(Exception):
        jax.block_until_ready(results)
      ended.append(time.perf_counter())

    self._ended = ended
    threading.Thread(target=note, daemon=True).start()

  def __enter__(self):
    self._entered = time.perf_counter()

  def __exit__(self, *error):
    now = time.perf_counter()
    # Only time in which the device is idle counts.
    idle_since = self._entered
    if self._ended is not None:
      idle_since = max(idle_since, self._ended[0] if self._ended else now)
    self.last = 0.0 if self._started is None else now - idle_since
    self._waited += self.last
    if self._started is None:
      self._started = now

  @property
  def share(self) -> float:
    """Idle share of the time since the first block; 0 before it."""
    if self._started is None:
      return 0.0
    return self._waited / max(time.perf_counter() - self._started, 1e-9)

  def warn(self, step: int) -> None:
    """Logs a warning, once, if the idle share is above the limit."""
    if self.share > LIMIT and not self._has_warned:
      self._has_warned = True
      log.warning(
        "up to step %d, the run waited for data %.0f%% of the time; raise data.num_threads (to the "
        "number of cores) or data.prefetch, or read shards made with `python -m "
        "videoar_jax.prepare`",
        step,
        100 * self.share,
      )
