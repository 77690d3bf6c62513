"""Distances between clips and their reconstructions: PSNR, SSIM, LPIPS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from videoar_jax.tokenizers import lpips

_WINDOW = 11  # Side of SSIM's window in pixels.
_SIGMA = 1.5


def psnr(
  one: UInt8[np.ndarray, "b f H W 3"], other: UInt8[np.ndarray, "b f H W 3"]
) -> Float[np.ndarray, "b"]:
  """Returns the peak signal-to-noise ratio of each clip, in dB over all its pixels."""
  squared = np.square(one.astype(np.float64) - other.astype(np.float64)).mean((1, 2, 3, 4))
  return 10 * np.log10(255.0**2 / np.maximum(squared, 1e-10))


def ssim(
  one: UInt8[np.ndarray, "b f H W 3"], other: UInt8[np.ndarray, "b f H W 3"]
) -> Float[np.ndarray, "b"]:
  """Returns the structural similarity of each clip: a mean over frames, channels and positions.

  The window is a Gaussian of 11x11 pixels and sigma 1.5, and stays inside the frame.

  Raises:
    ValueError: frames are smaller than the window.
  Source: "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004).
  """
  if min(one.shape[2:4]) < _WINDOW:
    raise ValueError(f"SSIM needs frames of {_WINDOW} pixels a side, got {one.shape[2:4]}")
  # One clip at a time, since intermediate results are large.
  return np.array([_ssim_map(x, y).mean() for x, y in zip(one, other, strict=True)])


def _ssim_map(one, other) -> Float[np.ndarray, "f y x 3"]:
  x, y = one.astype(np.float64), other.astype(np.float64)
  mean_x, mean_y = _blur(x), _blur(y)
  var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
  covariance = _blur(x * y) - mean_x * mean_y
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
  return numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def _blur(x: Float[np.ndarray, "f H W 3"]) -> Float[np.ndarray, "f y x 3"]:
  """Averages over the windows that lie inside the frame."""
  taps = np.exp(-np.square(np.arange(_WINDOW) - _WINDOW // 2) / (2 * _SIGMA**2))
  taps /= taps.sum()
  height, width = x.shape[1] - _WINDOW + 1, x.shape[2] - _WINDOW + 1
  rows = sum(tap * x[:, i : i + height] for i, tap in enumerate(taps))
  return sum(tap * rows[:, :, i : i + width] for i, tap in enumerate(taps))


def lpips_of_clips(
  params: lpips.Params,
  one: UInt8[np.ndarray, "b f H W 3"],
  other: UInt8[np.ndarray, "b f H W 3"],
) -> Float[np.ndarray, "b"]:
  """Returns the perceptual distance of each clip, a mean over frames; see `tokenizers.lpips`."""
  distance = _jitted_lpips()
  # One clip at a time: the features of a frame take 50 times its memory.
  return np.array([distance(params, x, y) for x, y in zip(one, other, strict=True)])


@functools.cache
def _jitted_lpips():
  def distance(params, one, other):
    one, other = (jnp.asarray(x, jnp.float32) / 127.5 - 1.0 for x in (one, other))
    with jax.default_matmul_precision("highest"):
      return jnp.mean(lpips.lpips(params, one, other))

  return jax.jit(distance)
