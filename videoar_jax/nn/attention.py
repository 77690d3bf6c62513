"""Attention over arrays, with grouped key and value heads."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
  query: Float[Array, "b q n k"],
  key: Float[Array, "b l g k"],
  value: Float[Array, "b l g k"],
  mask: Bool[Array, "#b q l"],
) -> Float[Array, "b q n k"]:
  """Softmax attention; heads `n` share the `g` key and value heads in equal groups.

  Args:
    query: queries.
    key: keys.
    value: values.
    mask: true where a query may attend; every query needs one such key.
  """
  b, q, n, k = query.shape
  groups = key.shape[2]
  # Batch and head first: XLA on CPU multiplies these matrices half as fast otherwise.
  grouped = query.reshape(b, q, groups, n // groups, k).transpose(0, 2, 3, 1, 4)
  keys, values = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
  scores = jnp.einsum("bgrqk,bglk->bgrql", grouped, keys) / math.sqrt(k)
  scores = jnp.where(mask[:, None, None], scores.astype(jnp.float32), -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  out = jnp.einsum("bgrql,bglk->bgrqk", weights, values)
  return out.transpose(0, 3, 1, 2, 4).reshape(b, q, n, k)
