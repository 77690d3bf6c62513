"""Converts pixels between uint8 and the floats of the networks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8


def to_float(video: UInt8[Array | np.ndarray, "*b"]) -> Float[Array, "*b"]:
  """Maps pixels 0..255 to [-1, 1]."""
  return jnp.asarray(video, jnp.float32) / 127.5 - 1.0


def to_uint8(video: Float[Array | np.ndarray, "*b"]) -> UInt8[Array, "*b"]:
  """Maps [-1, 1] to pixels 0..255, rounded; values outside are clipped."""
  video = jnp.clip(video, -1.0, 1.0).astype(jnp.float32)
  return jnp.round((video + 1.0) * 127.5).astype(jnp.uint8)


def in_type_of(module: nnx.Module, x: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """Returns what a network is to code, in the type of its weights, in which it then computes."""
  return x.astype(type_of(module))


def type_of(module: nnx.Module) -> np.dtype:
  """Returns the type of a network's weights."""
  return jax.tree.leaves(module)[0].dtype
