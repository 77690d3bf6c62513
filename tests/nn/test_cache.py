"""Attention to caches: blocks of queries, and how heads are split."""

import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.nn import cache
from videoar_jax.nn.cache import Cache, attend_cached, cache_axes


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


def test_heads_are_split_over_the_axis_of_sequences_if_they_divide():
  assert cache_axes(8, 4) == ("batch", "attended_heads", None, None)
  assert cache_axes(8, 16) == ("batch", "kv_heads", None, None)
