"""Attention to caches: blocks of queries, partial caches, and how heads are split."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.nn import cache
from videoar_jax.nn.cache import Cache, PartialCache, attend_cached, cache_axes


@pytest.mark.parametrize("num_queries", [6, 7])
def test_blocks_of_queries_equal_all_at_once(monkeypatch, num_queries):
  """With a mask for each query, one for all, and none; the last block may have fewer queries."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  query = draw(2, num_queries, 4, 8)
  seen = [Cache(draw(2, 2, 8, length), draw(2, 2, length, 8)) for length in (5, 3, 4)]
  masks = [rng.random((2, num_queries, 5)) < 0.5, rng.random((1, 1, 3)) < 0.5, None]
  expected = attend_cached(query, seen, masks)
  monkeypatch.setattr(cache, "_MAX_QUERIES", 3)
  np.testing.assert_allclose(attend_cached(query, seen, masks), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_parts", [3, 6])
def test_a_partial_cache_is_read_as_far_as_it_is_written(monkeypatch, num_parts):
  """As if it were whole, with a mask; what is beyond the range that is read may be anything."""
  rng = np.random.default_rng(1)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  monkeypatch.setattr(cache, "_MIN_RANGE", 1)
  part, length = 2, 2 * num_parts
  query, other = draw(2, 3, 4, 8), Cache(draw(2, 2, 8, 5), draw(2, 2, 5, 8))
  caches = Cache(draw(3, 2, 2, 8, length), draw(3, 2, 2, length, 8))
  for num_written in range(0, length + 1, part):
    mask = (np.arange(length) < num_written)[None, None]
    whole = [Cache(caches.keys[1], caches.values[1]), other]
    expected = attend_cached(query, whole, (mask, None))
    partial = PartialCache.of(caches, jnp.int32(num_written), part)
    read = min(x for x in partial.lengths if x >= num_written)
    beyond = Cache(
      caches.keys.at[..., read:].set(jnp.nan), caches.values.at[..., read:, :].set(jnp.nan)
    )
    partial = dataclasses.replace(partial, caches=beyond, layer=jnp.int32(1))
    for seen, masks in (((partial, other), (mask, None)), ((other, partial), (None, mask))):
      np.testing.assert_allclose(attend_cached(query, seen, masks), expected, atol=1e-6)
    assert read < num_written + (4 if num_parts == 6 else 1)


def test_heads_are_split_over_the_axis_of_sequences_if_they_divide():
  assert cache_axes(8, 4) == ("batch", "attended_heads", None, None)
  assert cache_axes(8, 16) == ("batch", "kv_heads", None, None)
