"""Barriers at which no process waits for one that has failed."""

import itertools
from collections.abc import Callable

import jax

from videoar_jax.parallel import compat


class Barrier:
  """The barriers of a task that all processes do together, one after the other, in one order.

  A process that fails comes to the last ones alone, and leaves out those before. Here processes
  say at which barrier they are: those that meet one that is further on learn that it has failed,
  and fail too. It waits for them at the last ones, where they all pass.

  It asks the service that processes find each other by, and no device: it may be used in a thread
  of its own. All is off once a barrier has run into its time limit.

  Args:
    name: that no other meeting has, the same in all processes.
    is_last: says whether a barrier is one of those that a process comes to that has failed.
  """

  def __init__(self, name: str, is_last: Callable[[str], bool]):
    self._name, self._is_last = name, is_last
    self._rounds = itertools.count()
    self._client = compat.distributed_state().client

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Returns once all processes are at a barrier.

    Args:
      key: of the barrier.
      timeout_ms: milliseconds after which it is an error.
    Raises:
      OSError: another process has failed before it came here.
      jax.errors.JaxRuntimeError: not all came in time.
    """
    while others := [who for who, at in self._meet(key, timeout_ms).items() if at != key]:
      if not self._is_last(key):
        failed = ", ".join(map(str, sorted(others)))
        raise OSError(f"process {failed} failed in its part; see what it says")

  def _meet(self, key: str, timeout_ms: int) -> dict[int, str]:
    """Returns at which barrier each process is, once all are at one."""
    # Nobody is further on than the next round before all have read this one: two places are enough.
    place = f"{self._name}/{next(self._rounds) % 2}/"
    self._client.key_value_set(f"{place}{jax.process_index()}", key, allow_overwrite=True)
    self._client.wait_at_barrier(self._name, timeout_ms)
    return {int(name.rpartition("/")[2]): at for name, at in self._client.key_value_dir_get(place)}
