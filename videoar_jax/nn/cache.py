"""Keys and values of what was decoded so far."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.tree_util.register_dataclass, data_fields=("keys", "values"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of every position, of one layer or with a leading layer axis.

  Attributes:
    keys: rotated keys `[..., b, l, g, k]`.
    values: `[..., b, l, g, k]`.
  """

  keys: Float[Array, "*layers b l g k"]
  values: Float[Array, "*layers b l g k"]

  @classmethod
  def zeros(cls, shape: tuple[int, ...], dtype=jnp.float32) -> "Cache":
    """Makes an empty cache."""
    return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  def write(self, keys: Array, values: Array, offset: Array) -> "Cache":
    """Returns the cache with `[b, q, g, k]` written at position `offset`."""
    start = (0, offset, 0, 0)
    return Cache(
      jax.lax.dynamic_update_slice(self.keys, keys.astype(self.keys.dtype), start),
      jax.lax.dynamic_update_slice(self.values, values.astype(self.values.dtype), start),
    )
