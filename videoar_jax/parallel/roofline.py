"""How fast the machine is at one thing, and how long calls take beside each other."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

SIDE = 2048  # Of the matrices.
_LIMIT_S = 0.05  # Shorter measurements would be of the dispatch.


class Roofline:
  """A call that does one thing as fast as the machine can, over and over.

  Args:
    body: `(array, carry) -> carry`, of which no turn can be left out.
    array: what it reads.
    amount: operations or bytes of a turn.
  Attributes:
    amount: of a call.
  """

  def __init__(self, body: Callable, array, carry, amount: float):
    @jax.jit
    def loop(num, array, carry):
      return jax.lax.fori_loop(0, num, lambda _, carry: body(array, carry), carry)

    self._loop, self._arguments, self._num = loop, (array, carry), 1
    self()
    while (took := self._time()) < _LIMIT_S:
      self._num = max(2 * self._num, round(1.2 * self._num * _LIMIT_S / took))
    self.amount = self._num * amount

  def __call__(self):
    return jax.block_until_ready(self._loop(self._num, *self._arguments))

  def _time(self) -> float:
    begin = time.perf_counter()
    self()
    return time.perf_counter() - begin


def products(dtype: str) -> Roofline:
  """Returns the call that multiplies large matrices; its amount is of operations."""
  matrix = jax.random.normal(jax.random.key(3), (SIDE, SIDE)).astype(dtype)
  scale = jnp.asarray(SIDE**-0.5, dtype)
  return Roofline(lambda x, y: (x @ y) * scale, matrix, matrix, 2 * SIDE**3)


def reads(dtype: str) -> Roofline:
  """Returns the call that reads a large array; its amount is of bytes."""
  array = jnp.ones((64, 2**21), dtype)
  return Roofline(lambda x, y: jnp.max(x - y[:, None], axis=1), array, array[:, 0], array.nbytes)


def interleave(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
  """Returns the median time of each call; in turns, so that all see the machine as it is."""
  times: dict[str, list[float]] = {name: [] for name in calls}
  for i in range(repeats + 1):
    for name, call in calls.items():
      begin = time.perf_counter()
      jax.block_until_ready(call())
      if i:  # The first call compiles.
        times[name].append(time.perf_counter() - begin)
  return {name: statistics.median(values) for name, values in times.items()}
