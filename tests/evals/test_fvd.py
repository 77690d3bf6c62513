"""The Frechet distance against closed forms, and the protocol around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.evals import fvd, i3d


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def whitened(n, d):
  """Returns vectors with mean 0 and identity covariance, up to rounding."""
  x = draw(n, d)
  x -= x.mean(0)
  return np.linalg.qr(x)[0] * np.sqrt(n - 1)


# More vectors than dimensions, and fewer.
@pytest.mark.parametrize("n", [50, 8])
def test_equal_sets_and_shifted_ones(n):
  x = draw(n, 20) * 1e3 + 5e3
  assert fvd.frechet_distance(x, x) == pytest.approx(0, abs=1e-4)
  shift = draw(20, seed=1)
  assert fvd.frechet_distance(x, x + shift) == pytest.approx((shift**2).sum(), abs=1e-4)
  # In another order, and of another type, it is the same set.
  assert fvd.frechet_distance(x, x[::-1].astype(np.float32)) == pytest.approx(0, abs=1)


def test_gaussians_of_known_covariances():
  x = whitened(60, 4)
  # Covariances that commute: the sum of squared differences of the deviations.
  one, other = np.array([1.0, 2, 3, 4]), np.array([5.0, 1, 3, 0])
  expected = ((one - other) ** 2).sum()
  assert fvd.frechet_distance(x * one, whitened(45, 4) * other) == pytest.approx(expected)
  # Ones that do not commute, against a square root of matrices.
  a, b = draw(4, 4, seed=1), draw(4, 4, seed=2)
  cov_a, cov_b = a.T @ a, b.T @ b
  values, vectors = np.linalg.eigh(cov_a)
  root = vectors * np.sqrt(values) @ vectors.T
  middle = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root)).sum()
  expected = np.trace(cov_a) + np.trace(cov_b) - 2 * middle
  assert fvd.frechet_distance(x @ a, x @ b) == pytest.approx(expected)


def test_fewer_vectors_than_dimensions_is_the_same_in_their_span():
  one, other = draw(6, 3, seed=1), draw(7, 3, seed=2) * 2 + 1
  basis = np.linalg.qr(draw(40, 3))[0].T
  expected = fvd.frechet_distance(one, other)
  assert fvd.frechet_distance(one @ basis, other @ basis) == pytest.approx(expected)
  assert expected > 1


def test_protocol_of_numbers():
  x = draw(fvd.MIN_CLIPS, 5)
  assert fvd.fvd(x, x + 1) == pytest.approx(5)
  with pytest.raises(ValueError, match="at least 256 clips, got 255"):
    fvd.fvd(x[1:], x[1:])
  with pytest.raises(ValueError, match="equal size, got 256 and 255"):
    fvd.fvd(x, x[1:])
  with pytest.raises(ValueError, match="two vectors, got 256 and 1"):
    fvd.frechet_distance(x, x[:1])


def test_features_are_logits_of_enlarged_frames(monkeypatch):
  seen = []

  def logits(params, video):
    seen.append(video.shape)
    shown = video[:, 0, ::75, 0, 0] * params["gain"]
    return jnp.pad(shown, ((0, 0), (0, i3d.NUM_CLASSES - 3)))

  monkeypatch.setattr(i3d, "logits", logits)
  fvd._jitted_features.cache_clear()
  clips = np.zeros((3, 9, 2, 2, 3), np.uint8)
  clips[1, :, 1] = 255
  try:
    result = fvd.features({"gain": np.array(2, np.float32)}, clips)
  finally:
    fvd._jitted_features.cache_clear()
  assert seen == [(1, 9, 224, 224, 3)]  # One program serves all clips.
  # From a row at -1 to one at 1: half of a row of 112 pixels is flat at either end.
  ramp = np.interp((np.arange(0, 224, 75) + 0.5) / 112, [0.5, 1.5], [-1, 1])
  np.testing.assert_allclose(result[:, :3], 2 * np.array([[-1] * 3, ramp, [-1] * 3]), atol=1e-5)


def test_real_clips_are_nearer_to_real_ones_than_noise_is(weights_of):
  params = weights_of("i3d", i3d.shapes())
  rng = np.random.default_rng(0)
  # Plain clips of random brightness that grow lighter, and noise.
  plain = rng.integers(0, 128, (6, 1, 1, 1, 3)) + np.arange(0, 90, 10)[None, :, None, None, None]
  plain = np.broadcast_to(plain, (6, 9, 16, 16, 3)).astype(np.uint8)
  noise = rng.integers(0, 256, (3, 9, 16, 16, 3)).astype(np.uint8)
  found = fvd.features(params, np.concatenate([plain, noise]))
  assert found.shape == (9, i3d.NUM_CLASSES)
  assert isinstance(found, np.ndarray)
  assert not isinstance(found, jax.Array)
  near = fvd.frechet_distance(found[:3], found[3:6])
  assert fvd.frechet_distance(found[:3], found[6:]) > 3 * near
