"""Attention over arrays, with grouped key and value heads."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Queries, and where all keys lie that they see.
Blocks = tuple[tuple[slice, tuple[slice, ...]], ...]


def attention(
  query: Float[Array, "b q n k"],
  key: Float[Array, "b l g k"],
  value: Float[Array, "b l g k"],
  mask: Bool[Array, "#b q l"],
  blocks: Blocks = (),
) -> Float[Array, "b q n k"]:
  """Softmax attention; heads `n` share the `g` key and value heads in equal groups.

  Args:
    query: queries.
    key: keys.
    value: values.
    mask: true where a query may attend; every query needs one such key.
    blocks: what is known of the mask beforehand, so that its empty part costs nothing; together
      they hold every query once, in order. Empty for nothing known.
  """
  if blocks:
    parts = []
    for queries, keys in blocks:
      seen = [jnp.concatenate([x[:, part] for part in keys], axis=1) for x in (key, value)]
      rows = jnp.concatenate([mask[:, queries, part] for part in keys], axis=2)
      parts.append(attention(query[:, queries], *seen, rows))
    return jnp.concatenate(parts, axis=1)
  b, q, n, k = query.shape
  groups = key.shape[2]
  # Batch and head first: XLA on CPU multiplies these matrices half as fast otherwise.
  grouped = query.reshape(b, q, groups, n // groups, k).transpose(0, 2, 3, 1, 4)
  keys, values = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
  scores = jnp.einsum("bgrqk,bglk->bgrql", grouped / math.sqrt(k), keys).astype(jnp.float32)
  # An addend, since XLA on CPU takes half as long again for a choice and its gradient.
  hidden = jnp.where(mask, 0.0, -1e30)
  weights = jax.nn.softmax(scores + hidden[:, None, None], axis=-1).astype(value.dtype)
  out = jnp.einsum("bgrql,bglk->bgrqk", weights, values)
  return out.transpose(0, 3, 1, 2, 4).reshape(b, q, n, k)
