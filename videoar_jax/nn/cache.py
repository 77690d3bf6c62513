"""The key-value cache of decoding, and attention to it.

A decoding step reads the cache and returns its own keys and values separately. The cache is written
once per frame, so that a step need not write it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videoar_jax.nn.layers import product
from videoar_jax.parallel.rules import constrain, num_shards

# Queries whose scores are held at once: a scale of many tokens sees all of a long clip.
_MAX_QUERIES = 256
# Ranges of a partly written cache, and their least positions: each takes time to compile.
_MAX_RANGES = 4
_MIN_RANGE = 128


def cache_axes(num_heads: int, num_head_shards: int) -> tuple[str | None, ...]:
  """Returns the logical axes of keys `[b, g, k, l]` and of values `[b, g, l, k]`.

  Args:
    num_heads: of keys and values.
    num_head_shards: shards of "attended_heads". The mesh axis for sequences splits no tokens in
      decoding, so it splits heads, if they divide.
  """
  is_divisible = num_heads % num_head_shards == 0
  return ("batch", "attended_heads" if is_divisible else "kv_heads", None, None)


def _constrain(x: Array) -> Array:
  """Constrains the sharding of keys or values, `[..., b, g, _, _]`; layers are not sharded."""
  axes = cache_axes(x.shape[-3], num_shards("attended_heads"))
  return constrain(x, (None,) * (x.ndim - 4) + axes)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("keys", "values"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of some positions, for one layer or with a leading layer axis.

  These are the layouts that attention's matrix products read as they are. On CPU, products of few
  queries with keys in the layout of values take half as long again.

  Attributes:
    keys: rotated keys `[..., b, g, k, l]`.
    values: `[..., b, g, l, k]`.
  """

  # JAX also puts other objects into the fields: shardings, placeholders.
  __no_type_check__ = True

  keys: Float[Array, "*layers b g k l"]
  values: Float[Array, "*layers b g l k"]

  @classmethod
  def of(cls, keys: Float[Array, "b l g k"], values: Float[Array, "b l g k"]) -> "Cache":
    """Makes the cache of one layer from the keys and values of a step."""
    return cls(_constrain(keys.transpose(0, 2, 3, 1)), _constrain(values.transpose(0, 2, 1, 3)))


def length_of(caches) -> int:
  """Returns the number of positions of caches, stacked or a list of one per layer."""
  first = caches[0] if isinstance(caches, list) else caches
  return first.values.shape[-2]


def _map(function: Callable, *caches):
  """Applies a function of arrays and of their axis of positions to caches, stacked or a list."""

  def apply(*parts: Cache) -> Cache:
    keys, values = ([getattr(part, name) for part in parts] for name in ("keys", "values"))
    return Cache(function(*keys, axis=keys[0].ndim - 1), function(*values, axis=values[0].ndim - 2))

  return jax.tree.map(apply, *caches, is_leaf=lambda x: isinstance(x, Cache))


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("caches", "num_written", "layer"),
  meta_fields=("lengths",),
)
@dataclasses.dataclass(frozen=True)
class PartialCache:
  """Stacked caches of which only the first positions are written.

  A loop over layers copies each layer's cache, and attention reads all of it. This copies and reads
  the shortest of some ranges that holds what is written.

  Attributes:
    caches: with a leading layer axis.
    num_written: how many positions are written.
    lengths: of the ranges, ascending; the last one is that of the caches.
    layer: the layer that attends.
  """

  __no_type_check__ = True

  caches: Cache
  num_written: Int[Array, ""]
  lengths: tuple[int, ...]
  layer: Int[Array, ""] | None = None

  @classmethod
  def of(cls, caches: Cache, num_written: Int[Array, ""], part: int) -> "PartialCache":
    """Makes it of caches that are written a part at a time.

    Args:
      caches: with a leading layer axis.
      num_written: how many positions are written.
      part: positions of a part, which divide those of the caches.
    """
    length = length_of(caches)
    num_ranges = min(_MAX_RANGES, length // _MIN_RANGE)
    if not num_ranges:
      return cls(caches, num_written, (length,))
    parts = {-(-length // part * i // num_ranges) for i in range(num_ranges + 1)}
    return cls(caches, num_written, tuple(part * num for num in sorted(parts)))

  def attend(
    self, query: Float[Array, "b q n k"], at: int, seen: Sequence[Cache], masks: Sequence
  ) -> Float[Array, "b q n k"]:
    """Attends to the written part of the layer's cache and to others; see `attend_cached`.

    Args:
      query: queries.
      at: place of this cache among them all.
      seen: the others.
      masks: of all.
    """

    def attend_to(length: int):
      caches, parts = list(seen), list(masks)
      mask = parts.pop(at)
      if length:
        caches.insert(at, self._first(length))
        parts.insert(at, None if mask is None else mask[..., :length])
      return attend_cached(query, caches, parts)

    branches = [functools.partial(attend_to, length) for length in self.lengths]
    is_longer = jnp.asarray(self.lengths[:-1]) < self.num_written
    return jax.lax.switch(jnp.sum(is_longer), branches)

  def _first(self, length: int) -> Cache:
    """Returns the first positions of the layer's cache."""

    def first(x, axis):
      sizes = [1, *x.shape[1:]]
      sizes[axis] = length
      return jax.lax.dynamic_slice(x, (self.layer, *(0,) * (x.ndim - 1)), sizes)[0]

    return _map(first, self.caches)


def write(caches, new, offset: Array | int):
  """Returns caches, stacked or a list of one per layer, with `new` written at a position."""

  def one(old, x, axis):
    return jax.lax.dynamic_update_slice_in_dim(old, x, offset, axis)

  return _map(one, caches, new)


def join(first, second):
  """Returns caches, stacked or a list of one per layer, concatenated along positions."""
  return _map(lambda x, y, axis: jnp.concatenate([x, y], axis), first, second)


def make_ring(caches, length: int):
  """Returns empty caches of `length` positions that are otherwise like `caches`."""

  def empty(x, axis):
    shape = list(x.shape)
    shape[axis] = length
    return _constrain(jnp.zeros(shape, x.dtype))

  return _map(empty, caches)


def num_query_blocks(num_queries: int) -> int:
  """Returns in how many blocks `attend_cached` takes queries, one after the other."""
  return -(-num_queries // _MAX_QUERIES)


def attend_cached(
  query: Float[Array, "b q n k"],
  seen: Sequence[Cache | PartialCache],
  masks: Sequence[Bool[Array | np.ndarray, "#b #q _l"] | None],
) -> Float[Array, "b q n k"]:
  """Softmax attention to several caches of one layer, without concatenating them.

  Args:
    query: queries; heads `n` share the `g` key and value heads in equal groups.
    seen: caches to attend to.
    masks: for each cache, where a query may attend; None for everywhere.
  """
  for at, cache in enumerate(seen):
    if isinstance(cache, PartialCache):
      return cache.attend(query, at, (*seen[:at], *seen[at + 1 :]), masks)
  q = query.shape[1]
  num_blocks = num_query_blocks(q)
  if num_blocks == 1:
    return _attend(query, seen, masks)
  size = -(-q // num_blocks)

  def split(x: Array) -> Array:
    """Splits the axis of the queries, padded, into blocks, which come first."""
    x = jnp.pad(x, ((0, 0), (0, num_blocks * size - q), *((0, 0),) * (x.ndim - 2)), mode="edge")
    return jnp.moveaxis(x.reshape(x.shape[0], num_blocks, size, *x.shape[2:]), 1, 0)

  own = {i: split(jnp.asarray(x)) for i, x in enumerate(masks) if x is not None and x.shape[1] > 1}

  def attend_block(block):
    query, own = block
    return _attend(query, seen, [own.get(i, mask) for i, mask in enumerate(masks)])

  out = jax.lax.map(attend_block, (split(query), own))
  out = jnp.moveaxis(out, 0, 1)
  return out.reshape(out.shape[0], num_blocks * size, *out.shape[3:])[:, :q]


def _attend(query, seen, masks):
  """Attends with all queries at once; see `attend_cached`."""
  b, q, n, k = query.shape
  g = seen[0].keys.shape[1]
  # All queries that share a key head are rows of one matrix product.
  rows = (query / math.sqrt(k)).reshape(b, q, g, n // g, k).transpose(0, 2, 3, 1, 4)
  rows = rows.reshape(b, g, -1, k)
  scores = []
  for cache, mask in zip(seen, masks, strict=True):
    part = product("bgrk,bgkl->bgrl", rows, cache.keys)
    if mask is not None:
      part = part.reshape(b, g, n // g, q, -1) + jnp.where(mask, 0.0, -1e30)[:, None, None]
    scores.append(part.reshape(b, g, rows.shape[2], -1))
  # One softmax over all parts, without concatenating them.
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
