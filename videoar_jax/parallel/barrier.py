"""Barriers that raise, instead of waiting, when another process has failed."""

import itertools
from collections.abc import Callable

import jax

from videoar_jax.parallel import compat


class Barrier:
  """A sequence of barriers that all processes pass in the same order.

  A process that fails skips to the last barriers. Here, processes publish which barrier they are
  at: those that see another process further on know that it has failed, and fail, too. The failed
  process waits for them at the last barriers, which all processes pass.

  It uses JAX's coordination service and no device, so that it can run in a background thread. Once
  a barrier has timed out, the object is not usable any more.

  Args:
    name: a unique name, the same in all processes.
    is_last: returns whether a barrier is one that failed processes reach, too.
  """

  def __init__(self, name: str, is_last: Callable[[str], bool]):
    self._name, self._is_last = name, is_last
    self._rounds = itertools.count()
    self._client = compat.distributed_state().client

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Returns once all processes are at a barrier.

    Args:
      key: key of the barrier.
      timeout_ms: time limit in milliseconds.
    Raises:
      OSError: another process failed before this barrier.
      jax.errors.JaxRuntimeError: not all processes came in time.
    """
    while others := [who for who, at in self._meet(key, timeout_ms).items() if at != key]:
      if not self._is_last(key):
        failed = ", ".join(map(str, sorted(others)))
        raise OSError(f"process {failed} failed; see its log")

  def _meet(self, key: str, timeout_ms: int) -> dict[int, str]:
    """Returns the barrier that each process is at, once all are at one."""
    # No process gets past the next round before all have read this one: two slots are enough.
    place = f"{self._name}/{next(self._rounds) % 2}/"
    self._client.key_value_set(f"{place}{jax.process_index()}", key, allow_overwrite=True)
    self._client.wait_at_barrier(self._name, timeout_ms)
    return {int(name.rpartition("/")[2]): at for name, at in self._client.key_value_dir_get(place)}
