"""How long a run waits for its data."""

import contextlib
import logging
import threading
import time

import jax

log = logging.getLogger(__name__)

LIMIT = 0.02  # Of the time; the log warns of more.


class InputStallMeter:
  """Measures the time inside of `with waits:` in which no step runs, as a share of all time.

  The first time does not count: nothing can be ready then.

  Attributes:
    last: seconds of the last wait that count.
  """

  def __init__(self):
    self._started: float | None = None
    self.last = self._waited = self._entered = 0.0
    self._ended: list[float] | None = None  # When the step under way did, once it has.
    self._has_warned = False

  def follow(self, results) -> None:
    """Notes when the results of a step that was just begun are there."""
    ended: list[float] = []

    def note() -> None:
      # What goes wrong in a step is told by whoever needs its results.
      with contextlib.suppress(Exception):
        jax.block_until_ready(results)
      ended.append(time.perf_counter())

    self._ended = ended
    threading.Thread(target=note, daemon=True).start()

  def __enter__(self):
    self._entered = time.perf_counter()

  def __exit__(self, *error):
    now = time.perf_counter()
    # While the device is busy, nothing is lost.
    idle_since = self._entered
    if self._ended is not None:
      idle_since = max(idle_since, self._ended[0] if self._ended else now)
    self.last = 0.0 if self._started is None else now - idle_since
    self._waited += self.last
    if self._started is None:
      self._started = now

  @property
  def share(self) -> float:
    """Share of the time; 0 before there is any."""
    if self._started is None:
      return 0.0
    return self._waited / max(time.perf_counter() - self._started, 1e-9)

  def warn(self, step: int) -> None:
    """Says so, once, where more time is lost than is allowed."""
    if self.share > LIMIT and not self._has_warned:
      self._has_warned = True
      log.warning(
        "until step %d the run waited for data %.0f%% of the time; raise data.num_threads (to the "
        "number of cores) or data.prefetch, or read shards that `python -m "
        "videoar_jax.prepare` made",
        step,
        100 * self.share,
      )
