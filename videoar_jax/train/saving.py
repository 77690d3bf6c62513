"""Saves a stage at intervals; a few saves may fail, since a later one may succeed."""

import logging
from collections.abc import Callable, Iterator

from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.logging import NoLog, RunLog
from videoar_jax.train.state import State

log = logging.getLogger(__name__)

MAX_FAILED_IN_A_ROW = 3  # Saves; then the run ends, since its work would be lost.


class Saver:
  """Saves, logs what fails, and ends the run if saves fail repeatedly or hang.

  Args:
    checkpointer: of the stage.
    run_log: of the stage.
  """

  def __init__(self, checkpointer: Checkpointer, run_log: RunLog | NoLog):
    self._checkpointer, self._run_log = checkpointer, run_log
    self._is_started = False  # Whether a save has begun and is not known to have ended.
    self._num_failed = 0  # In a row.

  def check(self) -> None:
    """Looks after the save in progress, without waiting for it.

    Raises:
      TimeoutError: it hangs.
      OSError: it failed, as did those before it.
    """
    self._try(self._checkpointer.check, "A SAVE FAILED: %s. The run continues and tries again")

  def save(self, step: int, state: State, iterator: Iterator, is_last: bool) -> None:
    """Starts a save, after the previous one has ended; waits for the last one.

    Raises:
      TimeoutError: a save hangs.
      OSError: it failed, as did those before it.
      Exception: the last save failed.
    """
    # The log must be on disk before the checkpoint: a run that resumes from it needs its records.
    self._run_log.flush()
    # If the previous save failed, only log that, and still try this one.
    self._try(self._checkpointer.wait, "A SAVE FAILED: %s. The run tries again now")
    if self._is_started:
      self._is_started, self._num_failed = False, 0

    def begin() -> None:
      self._checkpointer.save(step, state, iterator.get_state())
      self._is_started = True

    if is_last:
      begin()
      self._checkpointer.wait()
    else:
      self._try(begin, f"STEP {step} WAS NOT SAVED: %s. The run continues and tries again")

  def _try(self, action: Callable[[], None], text: str) -> None:
    try:
      action()
    except TimeoutError:
      raise
    except Exception as error:
      self._is_started = False
      self._num_failed += 1
      if self._num_failed >= MAX_FAILED_IN_A_ROW:
        raise OSError(
          f"{self._num_failed} saves in a row failed, the last with: {error}. Check the disk of "
          f"{self._checkpointer.directory}, and run the same command again: it resumes from step "
          f"{self._checkpointer.latest_step or 0}"
        ) from error
      log.error(text, error)
