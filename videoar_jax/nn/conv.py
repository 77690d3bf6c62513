"""Causal 3-D convolution over `[b, t, h, w, c]`.

XLA on CPU runs 3-D convolutions 3 to 40 times slower than their arithmetic allows; there the same
sum is written as 2-D convolutions, one for each temporal tap. Elsewhere it is one `lax`
convolution.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videoar_jax.nn import layers

Pads = tuple[tuple[int, int], tuple[int, int]]


def conv3d(
  x: Float[Array, "b t h w i"],
  kernel: Float[Array, "kt kh kw i o"],
  *,
  stride: tuple[int, int, int] = (1, 1, 1),
  pads: Pads,
  rewrite: bool | None = None,
) -> Float[Array, "b u y x o"]:
  """Convolves, with `kt - 1` zero frames in front and none behind.

  Args:
    x: input.
    kernel: taps; the last temporal one meets the current frame.
    stride: (time, height, width).
    pads: zero rows (top, bottom) and columns (left, right).
    rewrite: sum 2-D convolutions over the temporal taps; by default on CPU only. Same numbers.
  """
  if rewrite is None:
    rewrite = jax.default_backend() == "cpu"
  if not rewrite:
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      stride,
      ((kernel.shape[0] - 1, 0), *pads),
      dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
    )
  return _sum_over_taps(x, kernel, stride, pads)


def _sum_over_taps(x, kernel, stride, pads):
  b, t, h, w, c = x.shape
  num_out = (t - 1) // stride[0] + 1
  total = None
  for lag in range(kernel.shape[0]):
    # Outputs before `first` meet the zero frames in front: no work for them.
    first = -(-lag // stride[0])
    if first >= num_out:
      continue
    frames = x[:, stride[0] * first - lag :: stride[0]][:, : num_out - first]
    y = jax.lax.conv_general_dilated(
      frames.reshape(-1, h, w, c),
      kernel[-1 - lag],
      stride[1:],
      pads,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = y.reshape(b, num_out - first, *y.shape[1:])
    y = jnp.pad(y, ((0, 0), (first, 0), (0, 0), (0, 0), (0, 0)))
    total = y if total is None else total + y
  return total


def image_start(gain: float = 1.0) -> Callable:
  """Returns an initializer of a kernel `[kt, kh, kw, in, out]`: an image kernel on the last tap.

  The taps of earlier frames are zero.
  """

  def init(key, shape):
    current = layers.fan_in(shape[1:], gain)(key, shape[1:])
    return jnp.zeros(shape).at[-1].set(current)

  return init


class CausalConv3d(nnx.Module):
  """3x3x3 (or 1x1x1) convolution that sees the current and two earlier frames.

  It starts as an image convolution: the taps of earlier frames are zero. So a video network begins
  as the image network that codes every frame alone, whether its weights are new or imported.

  With spatial stride 2 the padding is right and bottom only, as in Infinity's tokenizer; temporal
  stride 2 keeps frames 0, 2, 4 and so on.

  Source: VIDEOAR sections 2.1 and 2.2.
  """

  def __init__(
    self,
    rngs: nnx.Rngs,
    num_in: int,
    num_out: int,
    *,
    size: int = 3,
    stride: tuple[int, int, int] = (1, 1, 1),
    gain: float = 1.0,
  ):
    shape = (size, size, size, num_in, num_out)
    axes = (None, None, None, "conv_in", "conv_out")
    self.kernel = layers.param(rngs, image_start(gain), shape, axes)
    self.bias = layers.param(rngs, layers.zeros, (num_out,), ("conv_out",))
    self.stride = stride

  def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b u y x o"]:
    half = self.kernel.shape[0] // 2
    pads = tuple((half, half) if step == 1 else (0, half) for step in self.stride[1:])
    y = conv3d(x, self.kernel[...].astype(x.dtype), stride=self.stride, pads=pads)
    return y + self.bias[...].astype(x.dtype)
