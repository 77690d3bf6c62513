"""Measures peak FLOP/s and memory bandwidth, and times calls against each other."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

SIDE = 2048  # Side of the square matrices.
_LIMIT_S = 0.05  # In shorter measurements, dispatch would dominate.


class Roofline:
  """A jitted loop that repeats one operation at the machine's peak speed.

  Args:
    body: `(array, carry) -> carry`; the compiler must not be able to skip an iteration.
    array: input of every iteration.
    carry: first carry.
    amount: FLOPs or bytes of an iteration.
  Attributes:
    amount: FLOPs or bytes of a call.
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
  """Returns a loop that multiplies large matrices; its amount is in FLOPs."""
  matrix = jax.random.normal(jax.random.key(3), (SIDE, SIDE)).astype(dtype)
  scale = jnp.asarray(SIDE**-0.5, dtype)
  return Roofline(lambda x, y: (x @ y) * scale, matrix, matrix, 2 * SIDE**3)


def reads(dtype: str) -> Roofline:
  """Returns a loop that reads a large array; its amount is in bytes."""
  array = jnp.ones((64, 2**21), dtype)
  return Roofline(lambda x, y: jnp.max(x - y[:, None], axis=1), array, array[:, 0], array.nbytes)


def interleave(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
  """Returns the median time of each call, in seconds.

  The calls alternate, so that changes in the machine's load affect them equally.
  """
  times: dict[str, list[float]] = {name: [] for name in calls}
  for i in range(repeats + 1):
    for name, call in calls.items():
      begin = time.perf_counter()
      jax.block_until_ready(call())
      if i:  # The first call compiles.
        times[name].append(time.perf_counter() - begin)
  return {name: statistics.median(values) for name, values in times.items()}
