"""Profiles the steps in the config, and the next few steps on demand."""

import logging
import pathlib
import signal

import jax

log = logging.getLogger(__name__)

NUM_PROFILED_STEPS = 5  # At each SIGUSR1.


class Profiler:
  """Traces steps for TensorBoard and xprof: a range, and the next few steps at each SIGUSR1.

  Args:
    directory: folder of the traces.
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
    """Starts a trace if one is due; call it before each step."""
    if self._is_asked and not self._is_tracing:
      self._first, self._last = step, step + NUM_PROFILED_STEPS - 1
    self._is_asked = False
    if step == self._first:
      jax.profiler.start_trace(str(self._directory))
      self._is_tracing = True

  def after(self, step: int, results) -> None:
    """Stops a trace after its last step, once the step's results are ready."""
    if self._is_tracing and step >= self._last:
      jax.block_until_ready(results)
      self._stop()
      log.info("steps %d to %d are profiled in %s", self._first, self._last, self._directory)

  def _stop(self) -> None:
    if self._is_tracing:
      jax.profiler.stop_trace()
      self._is_tracing = False
