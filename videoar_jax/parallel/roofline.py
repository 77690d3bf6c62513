"""Measures peak FLOP/s and memory bandwidth, and times calls against each other."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

SIDE = 2048  # Side of the square matrices.
_LIMIT_S = 0.05  # In shorter measurements, dispatch would dominate.
_MAX_CALLS = 1000  # In a row, in one measurement.


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


def products(dtype: str, side: int = SIDE) -> Roofline:
  """Returns a loop that multiplies large matrices; its amount is in FLOPs.

  Args:
    dtype: of the matrices; "int8": a matrix of bfloat16 with one of int8, which is converted in
      every iteration, with a float32 result, as products with int8 weights are.
    side: of the square matrices.
  """
  matrix = jax.random.normal(jax.random.key(3), (side, side))
  if dtype == "int8":
    matrix = matrix.astype(jnp.bfloat16)
    weights = jnp.clip(jnp.round(32 * matrix), -127, 127).astype(jnp.int8)
    return Roofline(_int8_product, weights, matrix, 2 * side**3)
  matrix = matrix.astype(dtype)
  scale = jnp.asarray(side**-0.5, dtype)
  return Roofline(lambda x, y: (x @ y) * scale, matrix, matrix, 2 * side**3)


def _int8_product(weights, y):
  # Otherwise the compiler would convert the weights once, before the loop.
  weights, y = jax.lax.optimization_barrier((weights, y))
  product = jnp.matmul(y, weights.astype(y.dtype), preferred_element_type=jnp.float32)
  return (product * (weights.shape[0] ** -0.5 / 32)).astype(y.dtype)


def reads(dtype: str, length: int = 2**21) -> Roofline:
  """Returns a loop that reads a large array, `[64, length]`; its amount is in bytes."""
  array = jnp.ones((64, length), dtype)
  return Roofline(lambda x, y: jnp.max(x - y[:, None], axis=1), array, array[:, 0], array.nbytes)


def median_s(call: Callable, *, repeats: int = 5, limit_s: float = 10.0) -> float:
  """Returns the median time of a call, in seconds, without its first, which compiles.

  Short calls are made in a row before waiting for the last, so that dispatch does not count.

  Args:
    call: returns arrays.
    repeats: measurements.
    limit_s: begins no further measurement after so many seconds.
  """
  jax.block_until_ready(call())
  begin, num, times = time.perf_counter(), 1, []
  while len(times) < repeats and (not times or time.perf_counter() - begin < limit_s):
    start = time.perf_counter()
    for _ in range(num):
      out = call()
    jax.block_until_ready(out)
    took = time.perf_counter() - start
    if took < _LIMIT_S and num < _MAX_CALLS:
      num = min(_MAX_CALLS, max(2 * num, round(1.2 * num * _LIMIT_S / took)))
    else:
      times.append(took / num)
  return statistics.median(times)


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
