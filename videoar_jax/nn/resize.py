"""Separable resizing of feature maps `[..., h, w, d]` by constant matrices.

The two modes equal torch's `interpolate(mode="area")` and `mode="trilinear", align_corners=False`.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.lru_cache(maxsize=1024)
def area_matrix(num_in: int, num_out: int) -> Float[np.ndarray, "o i"]:
  """Returns weights that average cells [floor(o*in/out), ceil((o+1)*in/out)) for each output o."""
  matrix = np.zeros((num_out, num_in), np.float32)
  for o in range(num_out):
    start, stop = (o * num_in) // num_out, -((-(o + 1) * num_in) // num_out)
    matrix[o, start:stop] = 1.0 / (stop - start)
  return matrix


@functools.lru_cache(maxsize=1024)
def linear_matrix(num_in: int, num_out: int) -> Float[np.ndarray, "o i"]:
  """Returns weights of linear interpolation: half-pixel centres, clamped edges, no antialiasing."""
  matrix = np.zeros((num_out, num_in), np.float32)
  position = np.maximum((np.arange(num_out) + 0.5) * num_in / num_out - 0.5, 0.0)
  low = np.minimum(position.astype(int), num_in - 1)
  high = np.minimum(low + 1, num_in - 1)
  weight = position - low
  np.add.at(matrix, (np.arange(num_out), low), 1.0 - weight)
  np.add.at(matrix, (np.arange(num_out), high), weight)
  return matrix


def _resize(x, size, num_channels, matrix):
  height, width, channels = x.shape[-3:]
  is_fewer = num_channels is not None and num_channels < channels
  if is_fewer:  # First, so that the other axes have less to resize.
    x = x @ matrix(channels, num_channels).T.astype(x.dtype)
  if height != size[0]:
    x = jnp.einsum("yh,...hwd->...ywd", matrix(height, size[0]).astype(x.dtype), x)
  if width != size[1]:
    x = jnp.einsum("xw,...ywd->...yxd", matrix(width, size[1]).astype(x.dtype), x)
  if num_channels is not None and num_channels > channels:
    x = x @ matrix(channels, num_channels).T.astype(x.dtype)
  return x


def area_resize(
  x: Float[Array, "*b h w d"], size: tuple[int, int], num_channels: int | None = None
) -> Float[Array, "*b y x e"]:
  """Resizes by averaging cells.

  Args:
    x: feature maps.
    size: (y, x) of the result.
    num_channels: of the result, for channels that are resized as a third axis; None keeps them.
  Source: VIDEOAR section 2.3; INFINITY section 6.3 for channels.
  """
  return _resize(x, size, num_channels, area_matrix)


def linear_resize(
  x: Float[Array, "*b h w d"], size: tuple[int, int], num_channels: int | None = None
) -> Float[Array, "*b y x e"]:
  """Resizes by bilinear interpolation, or trilinear with channels as the third axis.

  Args:
    x: feature maps.
    size: (y, x) of the result.
    num_channels: of the result, for channels that are resized as a third axis; None keeps them.
  Source: VIDEOAR section 2.3; INFINITY section 6.3 for channels.
  """
  return _resize(x, size, num_channels, linear_matrix)
