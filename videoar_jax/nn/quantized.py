"""Weights of sampling in a chosen type: float32, bfloat16, or int8 per output channel.

Of int8 are the kernels of stacked layers, which are nearly all weights; embeddings, norms and the
products at both ends are float32, and activations and the cache are as with float32 weights.
Products are of bfloat16 numbers with float32 results, for which int8 numbers are exact.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8

from videoar_jax.nn.layers import Linear

M = TypeVar("M", bound=nnx.Module)

DTYPES = ("float32", "bfloat16", "int8")
_LARGEST = 127


def check_dtype(dtype: str) -> None:
  """Raises ValueError if weights cannot be of a type, such as "fp8"."""
  if dtype not in DTYPES:
    raise ValueError(f"dtype={dtype!r} is no type of weights here; take {', '.join(DTYPES)}")


def with_dtype(module: M, dtype) -> M:
  """Returns a module whose weights have a type; with "int8", as this file says.

  Args:
    module: a trained network.
    dtype: one of `DTYPES`.
  Raises:
    ValueError: weights are to be int8 and are integers already, or none are in stacked layers.
  """
  if jnp.dtype(dtype) != jnp.int8:
    return jax.tree.map(lambda x: x.astype(dtype), module)
  # A copy, whose layers can be changed.
  module = jax.tree.map(lambda x: x, module)
  layers = [layer for _, layer in nnx.iter_modules(module) if isinstance(layer, Linear)]
  stacked = [layer for layer in layers if layer.kernel[...].ndim == 3]
  if not stacked:
    raise ValueError("dtype='int8': the network has no stacked layers; take float32 or bfloat16")
  for layer in stacked:
    if not jnp.issubdtype(layer.kernel[...].dtype, jnp.floating):
      raise ValueError(
        f"dtype='int8': the weights are {layer.kernel[...].dtype} already; load the checkpoint "
        "that they were made from"
      )
    axes = layer.kernel.get_metadata()["axes"]
    kernel, scale = quantize(layer.kernel[...])
    layer.kernel = nnx.Param(kernel, axes=axes)
    layer.kernel_scale = nnx.Param(scale, axes=axes[1:])
  # Others may have been stored in bfloat16.
  return jax.tree.map(lambda x: x if x.dtype == jnp.int8 else x.astype(jnp.float32), module)


@jax.jit
def quantize(
  kernel: Float[Array, "*layers i o"],
) -> tuple[Int8[Array, "*layers i o"], Float[Array, "*layers o"]]:
  """Returns rounded weights, and the scale of each output channel."""
  scale = jnp.max(jnp.abs(kernel.astype(jnp.float32)), axis=-2) / _LARGEST
  # Without the barrier, both passes read one copy in float32.
  scale, kernel = jax.lax.optimization_barrier((scale, kernel))
  kernel = kernel.astype(jnp.float32)
  scale = jnp.where(scale > 0, scale, 1.0)  # Of channels that are zero.
  return jnp.round(kernel / scale[..., None, :]).astype(jnp.int8), scale
