"""PSNR and SSIM against known values and a slow reference; LPIPS over clips."""

import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.evals import metrics
from videoar_jax.tokenizers import lpips


def test_psnr_of_known_error():
  one = np.zeros((2, 1, 4, 4, 3), np.uint8)
  other = one.copy()
  other[0] += 10
  other[1, :, :2] += 20  # Half of the pixels.
  expected = [20 * np.log10(25.5), 10 * np.log10(255**2 / 200)]
  np.testing.assert_allclose(metrics.psnr(one, other), expected)


@pytest.fixture
def noisy():
  rng = np.random.default_rng(0)
  clean = rng.integers(0, 256, (2, 2, 20, 16, 3)).astype(np.uint8)
  return clean, np.clip(clean + rng.normal(0, 40, clean.shape), 0, 255).astype(np.uint8)


def test_ssim_equals_scikit_image(noisy):
  """From scikit-image 0.25.2: structural_similarity(x, y, channel_axis=-1, sigma=1.5,
  gaussian_weights=True, use_sample_covariance=False, data_range=255), mean over frames."""
  expected = [0.8833734656916306, 0.8810572216529833]
  np.testing.assert_allclose(metrics.ssim(*noisy), expected, rtol=1e-12)


def test_ssim_by_its_definition(noisy):
  """The mean over all windows inside the frame, one at a time."""
  x, y = (clips[1, 0].astype(np.float64) for clips in noisy)
  near = np.arange(-5, 6)
  weights = np.exp(-(near[:, None] ** 2 + near**2) / (2 * 1.5**2))[..., None]
  weights /= weights.sum()
  values = []
  for top in range(20 - 10):
    for left in range(16 - 10):
      a, b = (picture[top : top + 11, left : left + 11] for picture in (x, y))
      mean_a, mean_b = ((weights * patch).sum((0, 1)) for patch in (a, b))
      var_a = (weights * (a - mean_a) ** 2).sum((0, 1))
      var_b = (weights * (b - mean_b) ** 2).sum((0, 1))
      both = (weights * (a - mean_a) * (b - mean_b)).sum((0, 1))
      c1, c2 = 6.5025, 58.5225
      top_part = (2 * mean_a * mean_b + c1) * (2 * both + c2)
      bottom = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
      values.append(top_part / bottom)
  result = metrics.ssim(noisy[0][1:, :1], noisy[1][1:, :1])
  np.testing.assert_allclose(result, [np.mean(values)], rtol=1e-12)


def test_ssim_of_equal_and_of_small_clips(noisy):
  np.testing.assert_allclose(metrics.ssim(noisy[0], noisy[0]), 1)
  with pytest.raises(ValueError, match="11 pixels a side"):
    metrics.ssim(noisy[0][:, :, :10], noisy[1][:, :, :10])


def test_lpips_of_a_clip_is_the_mean_of_its_frames(noisy):
  rng = np.random.default_rng(0)
  params = {key: rng.random(shape, np.float32) for key, shape in lpips.shapes().items()}
  result = metrics.lpips_of_clips(params, *noisy)
  pictures = [jnp.asarray(clips, jnp.float32) / 127.5 - 1 for clips in noisy]
  expected = np.asarray(lpips.lpips(params, *pictures)).mean(1)
  assert result.shape == (2,)
  np.testing.assert_allclose(result, expected, rtol=1e-4)
