"""Parameters with named axes, and layers shared by tokenizers and generators.

Parameters are float32 `nnx.Param`s with logical axis names, which `parallel/rules.py` maps to the
mesh. Layers compute in the dtype of their input; normalisation statistics are float32.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from videoar_jax.parallel.rules import is_for_cpu, num_shards

# Modules are plain pytrees, which jax.jit, jax.grad and jax.lax.scan accept.
nnx.set_graph_mode(False)
nnx.set_graph_updates(False)

Axes = tuple[str | None, ...]


# What the backward pass recomputes, by the value of `generator.remat`; "none" has no policy.
REMAT_POLICIES = {
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def normal(scale: float) -> Callable:
  """Returns an initializer that draws from N(0, scale^2)."""
  return lambda key, shape: scale * jax.random.normal(key, shape)


def fan_in(shape: tuple[int, ...], gain: float = 1.0) -> Callable:
  """Returns a normal initializer that keeps the variance for a kernel `[..., in, out]`."""
  return normal(math.sqrt(gain / math.prod(shape[:-1])))


def zeros(key: Array, shape: tuple[int, ...]) -> Array:
  """Initializes with zeros."""
  return jnp.zeros(shape)


def ones(key: Array, shape: tuple[int, ...]) -> Array:
  """Initializes with ones."""
  return jnp.ones(shape)


# Whether parameters are made without values, see `without_values`.
_IS_WITHOUT_VALUES = contextvars.ContextVar("is_without_values", default=False)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
  """Makes parameters zeros without memory of their own, for modules whose structure is all.

  Tracing the initializers takes most of the time in which a module is made abstractly.
  """
  token = _IS_WITHOUT_VALUES.set(True)
  try:
    yield
  finally:
    _IS_WITHOUT_VALUES.reset(token)


def param(rngs: nnx.Rngs, init: Callable, shape: tuple[int, ...], axes: Axes) -> nnx.Param:
  """Makes a parameter with a logical name for each axis.

  Raises:
    ValueError: the number of names differs from the number of axes.
  """
  if len(axes) != len(shape):
    raise ValueError(f"axes {axes} do not name the {len(shape)} axes of shape {shape}")
  if _IS_WITHOUT_VALUES.get():
    return nnx.Param(np.broadcast_to(np.float32(0), shape), axes=axes)
  return nnx.Param(init(rngs.params(), shape), axes=axes)


class Linear(nnx.Module):
  """`[..., in] -> [..., out]`, maybe with an adapter of low rank (LoRA, arXiv 2106.09685).

  An adapter adds the product of two narrow kernels to the kernel, at first zero.
  """

  def __init__(
    self,
    rngs: nnx.Rngs,
    num_in: int,
    num_out: int,
    axes: Axes,
    *,
    use_bias: bool = False,
    init: Callable | None = None,
    lora_rank: int = 0,
  ):
    self.kernel = param(rngs, init or fan_in((num_in, num_out)), (num_in, num_out), axes)
    self.bias = param(rngs, zeros, (num_out,), axes[1:]) if use_bias else None
    self.kernel_scale = nnx.data(None)  # Of int8 kernels, see `quantized`.
    down, up = (num_in, lora_rank), (lora_rank, num_out)
    has_adapter = lora_rank > 0
    self.lora_down = param(rngs, fan_in(down), down, (axes[0], None)) if has_adapter else None
    self.lora_up = param(rngs, zeros, up, (None, axes[1])) if has_adapter else None

  def __call__(
    self, x: Float[Array, "*b i"], *, has_float32_result: bool = False
  ) -> Float[Array, "*b o"]:
    kernel, kind, shape = self.kernel[...], x.dtype, x.shape[:-1]
    multiply = functools.partial(product, "...i,io->...o")
    if is_for_cpu() and num_shards("sequence") == 1:
      # The kernel's gradient contracts all leading axes; XLA on CPU is 1.6 times faster if they are
      # one axis. Not if the sequence is sharded: flattening would gather it.
      x = x.reshape(-1, x.shape[-1])
      multiply = functools.partial(product, "ti,io->to")
    if self.kernel_scale is not None:
      x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    else:
      kernel = kernel.astype(x.dtype)
      if not (has_float32_result or (is_for_cpu() and x.dtype == jnp.bfloat16)):
        multiply = jnp.matmul
    y = multiply(x, kernel)
    if self.kernel_scale is not None:
      y = y * self.kernel_scale[...]
    if self.lora_down is not None:
      down, up = (weights[...].astype(x.dtype) for weights in (self.lora_down, self.lora_up))
      y = y + multiply(jnp.matmul(x, down), up)
    if not has_float32_result:
      y = y.astype(kind)
    y = y.reshape(*shape, y.shape[-1])
    return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def merge_adapters(params: Mapping[str, Array]) -> dict[str, Array]:
  """Returns parameters by name in which adapters are added to their kernels.

  Args:
    params: by dotted name; adapters, `lora_down` and `lora_up`, may be stacked.
  """
  merged = {name: x for name, x in params.items() if ".lora_" not in name}
  for name in params:
    if name.endswith(".lora_down"):
      linear = name.removesuffix(".lora_down")
      added = jnp.matmul(params[name], params[f"{linear}.lora_up"], precision="highest")
      merged[f"{linear}.kernel"] = params[f"{linear}.kernel"] + added
  return merged


class Embedding(nnx.Module):
  """A learned table `[num, width]`, looked up by row."""

  def __init__(self, rngs: nnx.Rngs, num: int, width: int, *, scale: float = 0.02):
    self.table = param(rngs, normal(scale), (num, width), ("vocabulary", "embed"))

  def __call__(self, index: Int[Array | np.ndarray, "*b"]) -> Float[Array, "*b m"]:
    return jnp.take(self.table[...], index, axis=0)


def at_least_float32(x: Array) -> Array:
  """Returns numbers as float32; float64, which tests may use, stays."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class RMSNorm(nnx.Module):
  """Root-mean-square normalisation over the last axis."""

  def __init__(self, rngs: nnx.Rngs, width: int, *, epsilon: float = 1e-6):
    self.scale = param(rngs, ones, (width,), (None,))
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
    x32 = at_least_float32(x)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.epsilon)
    return (x32 * inverse * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
  """Normalisation to mean 0 and variance 1 over the last axis, with scale and bias by default."""

  def __init__(self, rngs: nnx.Rngs, width: int, *, epsilon: float = 1e-5, is_affine: bool = True):
    self.scale = param(rngs, ones, (width,), (None,)) if is_affine else None
    self.bias = param(rngs, zeros, (width,), (None,)) if is_affine else None
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
    x32 = at_least_float32(x)
    centred = x32 - jnp.mean(x32, -1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + self.epsilon)
    if self.scale is not None:
      y = y * self.scale[...] + self.bias[...]
    return y.astype(x.dtype)


class GroupNorm(nnx.Module):
  """Group normalisation with per-frame statistics, so that no frame depends on a later one.

  Source: VIDEOAR section 2.1.
  """

  def __init__(self, rngs: nnx.Rngs, width: int, num_groups: int, *, epsilon: float = 1e-6):
    if width % num_groups:
      raise ValueError(f"{width} channels do not divide into tokenizer.num_groups={num_groups}")
    self.scale = param(rngs, ones, (width,), (None,))
    self.bias = param(rngs, zeros, (width,), (None,))
    self.num_groups = num_groups
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    b, t, h, w, c = x.shape
    grouped = at_least_float32(x).reshape(b, t, h * w, self.num_groups, c // self.num_groups)
    mean = jnp.mean(grouped, (2, 4), keepdims=True)
    variance = jnp.mean(jnp.square(grouped - mean), (2, 4), keepdims=True)
    normed = ((grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
    return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(spec: str, x: Array, y: Array) -> Array:
  """Returns an einsum accumulated in float32, with a gradient in the operands' dtype.

  Autodiff would compute the gradient from float32 arrays, which is slow on accelerators. On CPU,
  XLA uses its instructions of bfloat16 only for float32 results, which takes half the time.
  """
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _product_forward(spec, x, y):
  return product(spec, x, y), (x, y)


def _product_backward(spec, kept, gradient):
  (x, y), gradient = kept, gradient.astype(kept[0].dtype)
  if is_for_cpu() and x.dtype == jnp.bfloat16 and "..." not in spec:
    left, right, out = spec.replace("->", ",").split(",")
    by_x = product(f"{out},{right}->{left}", gradient, y)
    by_y = product(f"{left},{out}->{right}", x, gradient)
    return by_x.astype(x.dtype), by_y.astype(y.dtype)
  (by_x,) = jax.linear_transpose(lambda x: jnp.einsum(spec, x, y), x)(gradient)
  (by_y,) = jax.linear_transpose(lambda y: jnp.einsum(spec, x, y), y)(gradient)
  return by_x, by_y


product.defvjp(_product_forward, _product_backward)


def stack_layers(make: Callable[[nnx.Rngs], nnx.Module], key: Array, num: int) -> nnx.Module:
  """Makes `num` layers with stacked parameters (leading layer axis), for `jax.lax.scan`."""
  if _IS_WITHOUT_VALUES.get():
    layer = make(nnx.Rngs(params=key))
    return jax.tree.map(lambda x: np.broadcast_to(x, (num, *x.shape)), layer)
  return jax.vmap(lambda layer_key: make(nnx.Rngs(params=layer_key)))(jax.random.split(key, num))


def run_stacked(
  body: Callable, x: PyTree, stacked: PyTree, *, is_scanned: bool = True, remat: str = "none"
):
  """Runs stacked layers one after the other.

  Args:
    body: from `x` and one layer's part of `stacked` to the next `x` and anything to keep.
    x: what layers hand on.
    stacked: the layers, and what belongs to each, with a leading layer axis.
    is_scanned: run layers as a loop, which compiles faster, instead of unrolled.
    remat: what the backward pass recomputes; "none" or a name of `REMAT_POLICIES`. On CPU, layers
      are then a loop: XLA would find unrolled ones in the forward pass, and keep those.
  Returns:
    The last `x`, and what each layer kept, with a leading layer axis.
  """
  if remat != "none":
    body = jax.checkpoint(body, policy=REMAT_POLICIES[remat])
    is_scanned = is_scanned or is_for_cpu()
  if is_scanned:
    return jax.lax.scan(body, x, stacked)
  kept = []
  for i in range(jax.tree.leaves(stacked)[0].shape[0]):
    x, new = body(x, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
    kept.append(new)
  return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)


def count_parameters(params) -> int:
  """Returns the number of elements in a tree of arrays or abstract arrays."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
