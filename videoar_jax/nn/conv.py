"""3-D convolution over `[b, t, h, w, c]`.

XLA on CPU runs 3-D convolutions 3 to 40 times slower than their arithmetic allows. There, a 3-D
convolution is a sum of 2-D convolutions, one per temporal tap, and those to few channels are matrix
products. Elsewhere it is one `lax` convolution.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videoar_jax.nn import layers
from videoar_jax.parallel.processes import fetch
from videoar_jax.parallel.rules import is_for_cpu

# Default of `conv3d`'s `rewrite`; None: on CPU only. Tests of other things set it to False, because
# the many small convolutions take XLA six times as long to compile.
REWRITE: bool | None = None

Pads = tuple[tuple[int, int], tuple[int, int]]

FEW = 4  # Up to this many output channels, use matrix products; from 8, convolutions are faster.


def conv3d(
  x: Float[Array, "b t h w i"],
  kernel: Float[Array, "kt kh kw i o"],
  *,
  stride: tuple[int, int, int] = (1, 1, 1),
  pads: Pads,
  time_pads: tuple[int, int] | None = None,
  past: Float[Array, "b p h w i"] | None = None,
  rewrite: bool | None = None,
) -> Float[Array, "b u y x o"]:
  """Convolves over time and space.

  Args:
    x: input.
    kernel: kernel; if time is causal, its last temporal tap is that of the current frame.
    stride: (time, height, width).
    pads: zero rows (top, bottom) and columns (left, right).
    time_pads: zero frames (before, after); the default is causal: `kt - 1` before, or none if there
      is a past.
    past: the `num_past` frames before the input; None if the input starts a clip.
    rewrite: sum 2-D convolutions over the temporal taps; by default on CPU only. The result is the
      same.
  """
  if time_pads is None:
    time_pads = (kernel.shape[0] - 1 if past is None else 0, 0)
  rewrite = REWRITE if rewrite is None else rewrite
  if rewrite is None:
    rewrite = is_for_cpu()
  x = x if past is None else jnp.concatenate([past, x], axis=1)
  if not rewrite:
    # Taps that see only the padding before are left out: for single frames, all but the last one.
    front, behind = time_pads
    last = stride[0] * max(0, _num_out(x, kernel, stride, time_pads) - 1)
    num_unused = max(0, front - last)
    kernel, time_pads = kernel[num_unused:], (front - num_unused, behind)
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      stride,
      (time_pads, *pads),
      dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
    )
  return _sum_over_taps(x, kernel, stride, time_pads, pads)


def num_past(num_taps: int, stride: int) -> int:
  """Returns how many earlier frames a chunk needs, if chunk lengths are multiples of the stride."""
  return max(0, num_taps - stride)


def _num_out(x, kernel, stride, time_pads) -> int:
  """Returns the number of frames of the result."""
  return (sum(time_pads) + x.shape[1] - kernel.shape[0]) // stride[0] + 1


def _sum_over_taps(x, kernel, stride, time_pads, pads):
  b, t, h, w, c = x.shape
  step, front = stride[0], time_pads[0]
  num_out = _num_out(x, kernel, stride, time_pads)
  total = None
  for tap in reversed(range(kernel.shape[0])):
    # Output o uses frame o * step + tap - front. Skip outputs for which that is padding.
    first = max(0, -(-(front - tap) // step))
    end = min(num_out, (t - 1 + front - tap) // step + 1)
    if first >= end:
      continue
    start = first * step + tap - front
    frames = x[:, start : start + (end - first - 1) * step + 1 : step]
    y = _conv2d(frames.reshape(-1, h, w, c), kernel[tap], stride[1:], pads)
    y = y.reshape(b, end - first, *y.shape[1:])
    y = jnp.pad(y, ((0, 0), (first, num_out - end), (0, 0), (0, 0), (0, 0)))
    total = y if total is None else total + y
  return total


def _conv2d(x, kernel, stride, pads):
  height, width, num_in, num_out = kernel.shape
  if num_out > FEW or stride != (1, 1):
    return jax.lax.conv_general_dilated(
      x, kernel, stride, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
  # One matrix product for all taps, then a sum of its shifted parts.
  parts = x @ kernel.transpose(2, 0, 1, 3).reshape(num_in, -1)
  parts = jnp.pad(parts, ((0, 0), *pads, (0, 0)))
  parts = jnp.split(parts, height * width, axis=-1)
  _, rows, columns, _ = parts[0].shape
  rows, columns = rows - height + 1, columns - width + 1
  taps = itertools.product(range(height), range(width))
  return sum(y[:, i : i + rows, j : j + columns] for y, (i, j) in zip(parts, taps, strict=True))


def image_start(gain: float = 1.0) -> Callable:
  """Returns an initializer of a kernel `[kt, kh, kw, in, out]`: an image kernel on the last tap.

  The taps of earlier frames start at zero.
  """

  def init(key, shape):
    current = layers.fan_in(shape[1:], gain)(key, shape[1:])
    return jnp.zeros(shape).at[-1].set(current)

  return init


class CausalConv3d(nnx.Module):
  """Convolution with a kernel of `num_taps` frames by `size` x `size`; 3x3x3 by default.

  It sees the current frame and the `num_taps - 1` before it.

  It is initialized as an image convolution: the taps of earlier frames are zero. So a video network
  starts as an image network that encodes every frame alone, with new or imported weights.

  With spatial stride 2, padding is at the right and bottom only, as in Infinity's tokenizer.
  Temporal stride 2 keeps frames 0, 2, 4 and so on.

  A clip may be processed in chunks: each call returns the last frames of its input, which are the
  `past` of the next call; a call without `past` starts a clip. Where the next call needs no frames,
  one channel of the last one stands for them, and is not read. The first chunk has one frame more
  than a multiple of the temporal stride, every other chunk a multiple. If all chunks must have the
  same length, pass `is_start` with the first one: the clip then starts at its last frame, its
  other frames are ignored, and its `past` must be zeros.

  Before a clip there are zeros, or copies of its first frame with `repeats_first`.

  Source: VIDEOAR sections 2.1 and 2.2.
  """

  def __init__(
    self,
    rngs: nnx.Rngs,
    num_in: int,
    num_out: int,
    *,
    size: int = 3,
    num_taps: int | None = None,
    stride: tuple[int, int, int] = (1, 1, 1),
    gain: float = 1.0,
    repeats_first: bool = False,
  ):
    num_taps = size if num_taps is None else num_taps
    shape = (num_taps, size, size, num_in, num_out)
    axes = (None, None, None, "conv_in", "conv_out")
    self.kernel = layers.param(rngs, image_start(gain), shape, axes)
    self.bias = layers.param(rngs, layers.zeros, (num_out,), ("conv_out",))
    self.stride = stride
    self.repeats_first = repeats_first

  def __call__(
    self,
    x: Float[Array, "b t h w i"],
    past: Float[Array, "b p h w _"] | None = None,
    is_start: Bool[Array, ""] | None = None,
  ) -> tuple[Float[Array, "b u y x o"], Float[Array, "b q h w _"]]:
    num = num_past(len(self.kernel), self.stride[0])
    if past is not None:
      past = past[:, past.shape[1] - num :] if num else x[:, :0]
    if is_start is not None:
      is_before = is_start & (jnp.arange(x.shape[1]) < x.shape[1] - 1)
      before = x[:, -1:] if self.repeats_first else 0.0
      x = jnp.where(is_before[:, None, None, None], before, x)
    if self.repeats_first:
      past = _copies_before(x, past, is_start, num)
    # A checkpoint cannot hold arrays without elements.
    last = _last_frames(x, past, num) if num else x[:, -1:, :, :, :1]
    return self.convolve(x, past), last

  def convolve(
    self, x: Float[Array, "b t h w i"], past: Float[Array, "b p h w i"] | None
  ) -> Float[Array, "b u y x o"]:
    """Convolves frames, after any number of frames before them; None starts a clip."""
    half = self.kernel.shape[1] // 2
    pads = tuple((half, half) if step == 1 else (0, half) for step in self.stride[1:])
    y = conv3d(x, self.kernel[...].astype(x.dtype), stride=self.stride, pads=pads, past=past)
    return y + self.bias[...].astype(x.dtype)


def without_zero_taps(module: nnx.Module) -> nnx.Module:
  """Returns a network, with weights, that computes the same without taps that never count.

  These are the earliest temporal taps of each `CausalConv3d`, as far as they are zero: those of a
  network that started from images, until it is trained on clips. With temporal stride `s`, the last
  `s` taps stay, so that chunks of frames fit. States of chunks then hold fewer frames.

  It reads the weights, so it is not for use inside jit.
  """
  module = nnx.clone(module)
  for _, layer in nnx.iter_graph(module):
    if isinstance(layer, CausalConv3d):
      kernel = layer.kernel[...]
      num = _num_zero_taps(kernel, layer.stride[0])
      if num:
        layer.kernel.set_value(kernel[num:])
  return module


def _num_zero_taps(kernel: Float[Array, "kt kh kw i o"], num_kept: int) -> int:
  """Returns how many of the first temporal taps are zero, but for the last `num_kept`."""
  # On CPU this is no copy. Elsewhere JAX would keep the copy, so taps are fetched one by one.
  taps, num = fetch(kernel) if is_for_cpu() else kernel, 0
  while num < len(taps) - num_kept and not np.any(fetch(taps[num])):
    num += 1
  return num


def _copies_before(x, past, is_start, num):
  """Returns the past, which at the start of a clip is copies of its first frame."""
  first = jnp.broadcast_to(x[:, :1], (x.shape[0], num, *x.shape[2:]))
  if past is None:
    return first
  return past if is_start is None else jnp.where(is_start, first, past)


def _last_frames(x, past, num):
  if x.shape[1] < num:
    if past is None:
      past = jnp.zeros((x.shape[0], num, *x.shape[2:]), x.dtype)
    x = jnp.concatenate([past, x], axis=1)
  return x[:, x.shape[1] - num :]
