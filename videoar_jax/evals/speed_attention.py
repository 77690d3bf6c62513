"""Attention by every backend that could run it, at the shapes of a training step, for `bench all`.

Besides the package's own backends these are cuDNN, by `jax.nn.dot_product_attention`, and the
kernels of tokamax, if it is installed. Training uses neither.
"""

import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videoar_jax.evals.speed_programs import relative_error
from videoar_jax.evals.speed_rows import Measurement, UnavailableError
from videoar_jax.nn.attention import attend, attention
from videoar_jax.nn.mask import AttentionMask, BlockCausalMask
from videoar_jax.parallel import compat, roofline

_MULTIPLE = 8  # Lengths of sequences that cuDNN takes with a mask and a gradient are even.
_CHECKED = 2  # Clips that are compared with the reference.
# Kernels of tokamax, by JAX's platform.
_TOKAMAX = {"gpu": ("mosaic_gpu", "triton"), "tpu": ("mosaic_tpu",), "cpu": ("xla_chunked",)}

Attend = Callable[[Array, Array, Array], Array]


class AttentionBench:
  """Measures backends on random queries, keys and values of one shape.

  Args:
    rule: the attention rule; all prompts are without padding.
    shape: queries, `(b, l, n, k)`.
    num_kv_heads: heads of keys and values.
    dtype: of queries, keys and values.
    num_flops: of a forward pass of the batch; one with a gradient has three times as many.
    limit: FLOP/s of matrix products in that type, asked for once it is needed; None if unknown.
  """

  def __init__(
    self,
    rule: BlockCausalMask,
    shape: tuple[int, int, int, int],
    num_kv_heads: int,
    dtype: str,
    num_flops: float,
    limit: Callable[[], float | None],
  ):
    self.rule, self.shape, self.num_kv_heads, self.dtype = rule, shape, num_kv_heads, dtype
    self.num_flops, self.limit = num_flops, limit
    self._references: dict[bool, tuple] = {}

  def measurements(self) -> list[Measurement]:
    """Returns a measurement for each backend, forward and with the gradient."""
    makers = {
      "blocked": functools.partial(self._own, "blocked"),
      "cuDNN, a frame at a time": self._cudnn,
    }
    platform = jax.default_backend()
    for name in _TOKAMAX.get(platform, ("xla_chunked",)):
      makers[f"tokamax {name}"] = functools.partial(self._tokamax, name)
    makers["dense"] = functools.partial(self._own, "dense")
    makers["splash"] = self._splash
    return [
      Measurement(
        f"attention, {name}, {'with gradient' if has_gradient else 'forward'}",
        8.0,
        functools.partial(self._measure, make, has_gradient),
      )
      for name, make in makers.items()
      for has_gradient in (False, True)
    ]

  def _own(self, backend: str) -> Attend:
    def run(query, key, value):
      present = jnp.ones((len(query), self.rule.prefix), bool)
      return attend(query, key, value, AttentionMask(self.rule, present, None, backend))

    return run

  def _splash(self) -> Attend:
    if jax.default_backend() != "tpu":
      raise UnavailableError("a kernel for TPU; elsewhere it is only interpreted")
    return self._own("splash")

  def _cudnn(self) -> Attend:
    if jax.default_backend() != "gpu":
      raise UnavailableError("cuDNN needs an NVIDIA GPU")
    return functools.partial(by_frames, self.rule)

  def _tokamax(self, name: str) -> Attend:
    if importlib.util.find_spec("tokamax") is None:
      raise UnavailableError("tokamax is not installed")
    if self.rule.summary or self.rule.window is not None:
      raise UnavailableError("these keys are more than one range")
    return functools.partial(by_ranges, name, self.rule)

  def _measure(self, make: Callable[[], Attend], has_gradient: bool) -> dict:
    run = make()
    program = jax.jit(_with_gradient(run) if has_gradient else run)
    arguments = self._arguments()[: 4 if has_gradient else 3]
    seconds = roofline.median_s(lambda: program(*arguments))
    found = jax.tree.map(lambda x: x[:_CHECKED], program(*arguments))
    rate = self.num_flops * (3 if has_gradient else 1) / seconds
    limit = self.limit()
    return {
      "seconds": seconds,
      "rate": rate,
      "unit": "FLOP",
      "share": None if limit is None else rate / limit,
      "check": lambda: relative_error(found, self._reference(has_gradient)),
      "note": f"{self.dtype}, {'x'.join(map(str, self.shape))}",
    }

  def _arguments(self) -> list[Array]:
    """Returns queries, keys, values, and the gradient of the result."""
    b, l, n, k = self.shape
    heads = (n, self.num_kv_heads, self.num_kv_heads, n)
    keys = jax.random.split(jax.random.key(6), 4)
    return [
      jax.random.normal(key, (b, l, num, k)).astype(self.dtype)
      for key, num in zip(keys, heads, strict=True)
    ]

  def _reference(self, has_gradient: bool):
    """Returns the first clips' results by dense attention in float32, computed once."""
    if has_gradient not in self._references:
      mask = jnp.asarray(self.rule.visible())[None]

      def run(query, key, value):
        return attention(query, key, value, mask)

      arguments = [x[:_CHECKED].astype(jnp.float32) for x in self._arguments()]
      with jax.default_matmul_precision("highest"):
        program = jax.jit(_with_gradient(run) if has_gradient else run)
        found = program(*arguments[: 4 if has_gradient else 3])
      # On the host: it is small, but the device's memory is the next measurement's.
      self._references[has_gradient] = jax.tree.map(np.asarray, found)
    return self._references[has_gradient]


def _with_gradient(run: Attend) -> Callable:
  def gradients(query, key, value, gradient):
    return jax.vjp(run, query, key, value)[1](gradient)

  return gradients


def by_frames(
  rule: BlockCausalMask,
  query: Float[Array, "b l n k"],
  key: Float[Array, "b l g k"],
  value: Float[Array, "b l g k"],
  *,
  implementation: str = "cudnn",
) -> Float[Array, "b l n k"]:
  """Computes attention one frame group at a time, over the keys up to the group's end.

  The first group's queries include the prefix's. Sequences are padded to even lengths.

  Args:
    rule: the attention rule.
    query: queries.
    key: keys.
    value: values.
    implementation: of `jax.nn.dot_product_attention`.
  """
  parts, start = [], 0
  for group in range(rule.num_groups):
    rows = slice(start, rule.slice_of(group).stop)
    mask = rule.visible(rows)[:, : rows.stop]
    rest, more = (-size % _MULTIPLE for size in mask.shape)
    # Rows that are filler see what is there, so that their softmax is defined.
    mask = np.pad(np.pad(mask, ((0, rest), (0, 0)), constant_values=True), ((0, 0), (0, more)))
    queries = _padded(query[:, rows], rest)
    keys, values = (_padded(x[:, : rows.stop], more) for x in (key, value))
    out = jax.nn.dot_product_attention(
      queries, keys, values, mask=jnp.asarray(mask)[None, None], implementation=implementation
    )
    parts.append(out[:, : rows.stop - rows.start])
    start = rows.stop
  return jnp.concatenate(parts, axis=1)


def _padded(x: Float[Array, "b l n k"], num: int) -> Float[Array, "b _ n k"]:
  return jnp.pad(x, ((0, 0), (0, num), (0, 0), (0, 0)))


def by_ranges(
  name: str,
  rule: BlockCausalMask,
  query: Float[Array, "b l n k"],
  key: Float[Array, "b l g k"],
  value: Float[Array, "b l g k"],
) -> Float[Array, "b l n k"]:
  """Computes attention with a kernel of tokamax, which skips keys beyond each query's last one.

  Args:
    name: of the kernel.
    rule: a rule without summaries and window, in which a query sees all keys up to its last one.
    query: queries.
    key: keys.
    value: values.
  Raises:
    ImportError: the installed tokamax has moved or removed what this needs.
    ValueError: it has no such kernel.
  """
  tokamax = compat.tokamax_attention()
  if name not in tokamax.implementations:
    raise ValueError(f"tokamax has no {name}; it has {', '.join(tokamax.implementations)}")
  ends = jnp.asarray(rule.own[1], jnp.int32)[None]
  return tokamax.implementations[name](query, key, value, mask=tokamax.Mask(k_end=ends))
