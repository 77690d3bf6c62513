"""Resizing of height, width and channels against brute force."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.nn.resize import area_resize, linear_resize


def _area(x, size):
  result = np.zeros(size)
  for index in np.ndindex(*size):
    cells = tuple(
      slice(i * old // new, math.ceil((i + 1) * old / new))
      for i, old, new in zip(index, x.shape, size, strict=True)
    )
    result[index] = x[cells].mean()
  return result


def _linear(x, size):
  result = np.zeros(size)
  for index in np.ndindex(*size):
    neighbours = []
    for i, old, new in zip(index, x.shape, size, strict=True):
      position = max((i + 0.5) * old / new - 0.5, 0.0)
      low = min(int(position), old - 1)
      neighbours.append([(low, 1 - position + low), (min(low + 1, old - 1), position - low)])
    for corner in itertools.product(*neighbours):
      cell, weights = zip(*corner, strict=True)
      result[index] += x[cell] * math.prod(weights)
  return result


@pytest.mark.parametrize(
  ("resize", "brute_force"), [(area_resize, _area), (linear_resize, _linear)]
)
@pytest.mark.parametrize("size", [(2, 3, 2), (5, 4, 8), (7, 9, 20), (3, 6, 8)])
def test_resizing_equals_brute_force(resize, brute_force, size):
  x = np.random.default_rng(0).normal(size=(2, 5, 4, 8)).astype(np.float32)
  resized = np.asarray(resize(jnp.asarray(x), size[:2], size[2]))
  expected = np.stack([brute_force(each, size) for each in x])
  np.testing.assert_allclose(resized, expected, atol=1e-6)


def test_the_own_size_changes_nothing():
  x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 6)), jnp.float32)
  for resize in (area_resize, linear_resize):
    np.testing.assert_array_equal(resize(x, (3, 4), 6), x)
    np.testing.assert_array_equal(resize(x, (3, 4)), x)
