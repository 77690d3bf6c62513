"""How long a run waits for its data."""

import logging
import time

log = logging.getLogger(__name__)

LIMIT = 0.02  # Of the time; the log warns of more.


class Waits:
  """Measures the time inside of `with waits:`, as a share of all time.

  The first time does not count: nothing can be ready then.
  """

  def __init__(self):
    self._started: float | None = None
    self._waited = self._entered = 0.0
    self._has_warned = False

  def __enter__(self):
    self._entered = time.perf_counter()

  def __exit__(self, *error):
    now = time.perf_counter()
    if self._started is None:
      self._started = now
    else:
      self._waited += now - self._entered

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
        "videoar_jax.data.prepare` made",
        step,
        100 * self.share,
      )
