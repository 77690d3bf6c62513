"""Keys and values of what was decoded so far, and attention to them.

A step of decoding reads the cache and returns its own keys and values beside it. The cache is
written once a frame, so that a step never copies it.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from videoar_jax.nn.layers import product
from videoar_jax.parallel.mesh import constrain


@functools.partial(jax.tree_util.register_dataclass, data_fields=("keys", "values"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of some positions, of one layer or with a leading layer axis.

  Heads stand before positions, which is how the products of attention want them.

  Attributes:
    keys: rotated keys `[..., b, g, l, k]`.
    values: `[..., b, g, l, k]`.
  """

  # JAX puts what is no array into the fields as well: shardings, placeholders.
  __no_type_check__ = True

  keys: Float[Array, "*layers b g l k"]
  values: Float[Array, "*layers b g l k"]

  @classmethod
  def of(cls, keys: Float[Array, "b l g k"], values: Float[Array, "b l g k"]) -> "Cache":
    """Makes the cache of one layer's step."""
    axes = ("batch", "kv_heads", None, None)
    return cls(*(constrain(x.transpose(0, 2, 1, 3), axes) for x in (keys, values)))


def write(caches, new, offset: Array):
  """Returns caches, stacked or a list with one a layer, with new ones written at a position."""
  return jax.tree.map(
    lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, offset, axis=old.ndim - 2),
    caches,
    new,
  )


def join(first, second):
  """Returns caches, stacked or a list with one a layer, with those of later positions behind."""
  return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=-2), first, second)


def make_room(caches, length: int):
  """Returns caches with as many empty positions behind them."""
  pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, length), (0, 0)])  # noqa: E731
  return jax.tree.map(pad, caches)


def attend_cached(
  query: Float[Array, "b q n k"],
  seen: Sequence[Cache],
  masks: Sequence[Bool[Array | np.ndarray, "#b #q l"] | None],
) -> Float[Array, "b q n k"]:
  """Softmax attention to several caches of one layer as to one, without joining them.

  Args:
    query: queries; heads `n` share the `g` key and value heads in equal groups.
    seen: keys and values.
    masks: where a query may attend, for each cache; None for everywhere.
  """
  b, q, n, k = query.shape
  g = seen[0].keys.shape[1]
  # All queries of a key head are rows of one product.
  rows = (query / math.sqrt(k)).reshape(b, q, g, n // g, k).transpose(0, 2, 3, 1, 4)
  rows = rows.reshape(b, g, -1, k)
  scores = []
  for cache, mask in zip(seen, masks, strict=True):
    part = product("bgrk,bglk->bgrl", rows, cache.keys)
    if mask is not None:
      part = part.reshape(b, g, n // g, q, -1) + jnp.where(mask, 0.0, -1e30)[:, None, None]
    scores.append(part.reshape(b, g, rows.shape[2], -1))
  # One softmax over all parts, without a copy that holds them together.
  highest = functools.reduce(jnp.maximum, [jnp.max(part, -1, keepdims=True) for part in scores])
  weights = [jnp.exp(part - highest) for part in scores]
  total = sum(jnp.sum(part, -1, keepdims=True) for part in weights)
  out = sum(
    product("bgrl,bglk->bgrk", part.astype(query.dtype), cache.values)
    for part, cache in zip(weights, seen, strict=True)
  )
  out = (out / total).astype(query.dtype)
  out = out.reshape(b, g, n // g, q, k).transpose(0, 3, 1, 2, 4)
  return out.reshape(b, q, n, k)
