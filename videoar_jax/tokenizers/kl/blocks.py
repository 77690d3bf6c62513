"""Layers of the public continuous autoencoders, whole or one frame at a time.

A deep layer sees a clip: its convolutions are causal, with the first frame repeated before the
clip, and its norms take their statistics over all frames. A flat layer sees single frames.

Since a deep norm needs the whole clip before its first result, a clip cannot be coded in chunks of
frames without another result. So memory is bounded within a layer: the statistics are computed
first; then each frame of the result is computed alone, from the few frames that it depends on.

Source: NOVA section 13.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videoar_jax.nn.attention import attention
from videoar_jax.nn.conv import CausalConv3d
from videoar_jax.nn.layers import GroupNorm, Linear

# Maps indices of frames, or None for all, to these frames.
Frames = Callable[[Int[Array, "n"] | None], Float[Array, "b n h w c"]]

# Attention scores of a frame to compute at once; beyond, row by row of cells.
_MAX_SCORES = 2**24


def conv(rngs: nnx.Rngs, num_in: int, num_out: int, *, is_flat: bool, **settings) -> CausalConv3d:
  """Makes a convolution of 3x3, or 3x3x3 if it is deep."""
  taps = {"num_taps": 1} if is_flat else {}
  return CausalConv3d(rngs, num_in, num_out, **settings | taps)


def frames_of(x: Float[Array, "b t h w c"]) -> Frames:
  """Returns a function from indices to frames."""
  return lambda index: x if index is None else jnp.take(x, index, axis=1, mode="clip")


def by_frame(
  one: Callable[[Int[Array, ""]], Float[Array, "b h w c"]], num: int, seed: Float[Array, "..."]
) -> Float[Array, "b t h w c"]:
  """Computes frames one after the other, into one array.

  Args:
    one: computes a frame by its number.
    num: of frames.
    seed: any array that the frames depend on, of their type.
  """
  b, *rest = jax.eval_shape(one, jnp.zeros((), jnp.int32)).shape
  # Not zeros, as `lax.map` would take: the compiler keeps one array of them for all layers, makes
  # all copies of it at the start, and memory holds the activations of all layers at once.
  empty = jnp.broadcast_to(seed.reshape(-1)[0], (b, num, *rest))

  def update(number, frames):
    return jax.lax.dynamic_update_index_in_dim(frames, one(number), number, axis=1)

  return jax.lax.fori_loop(0, num, update, empty)


def convolve(
  layer: CausalConv3d,
  num_frames: int,
  frames: Frames,
  is_sliced: bool,
  add: Frames | None = None,
) -> Float[Array, "b u y x o"]:
  """Convolves frames, with the first one repeated before them.

  Args:
    layer: the convolution.
    num_frames: of its input.
    frames: its input.
    is_sliced: compute each frame of the result alone.
    add: is added to the result.
  """
  num_past, stride = layer.kernel.shape[0] - 1, layer.stride[0]
  if not is_sliced:
    x = frames(None)
    y = layer.convolve(x, jnp.repeat(x[:, :1], num_past, axis=1) if num_past else None)
    return y if add is None else y + add(None)

  def one(number):
    index = jnp.maximum(number * stride - jnp.arange(num_past, -1, -1), 0)
    x = frames(index)
    y = layer.convolve(x[:, num_past:], x[:, :num_past] if num_past else None)
    return (y if add is None else y + add(number[None]))[:, 0]

  return by_frame(one, (num_frames - 1) // stride + 1, frames(jnp.zeros(1, jnp.int32)))


def normalized(norm: GroupNorm, x: Float[Array, "b t h w c"], *, is_flat: bool) -> Frames:
  """Returns the normalized frames of an input, each computed when it is asked for."""
  if is_flat:
    return lambda index: norm(frames_of(x)(index))
  mean, inverse = _statistics(norm, x)

  def frames(index):
    y = (frames_of(x)(index).astype(jnp.float32) - mean) * inverse
    return (y * norm.scale[...] + norm.bias[...]).astype(x.dtype)

  return frames


def _statistics(norm: GroupNorm, x: Float[Array, "b t h w c"]):
  """Returns the mean and the inverse deviation of each channel's group over a clip."""
  b, t, h, w, c = x.shape
  size = c // norm.num_groups
  grouped = x.astype(jnp.float32).reshape(b, t, h * w, norm.num_groups, size)
  mean = jnp.mean(grouped, (1, 2, 4), keepdims=True)
  variance = jnp.mean(jnp.square(grouped - mean), (1, 2, 4), keepdims=True)
  inverse = jax.lax.rsqrt(variance + norm.epsilon)
  return (jnp.repeat(y.reshape(b, 1, 1, 1, -1), size, axis=-1) for y in (mean, inverse))


def activated(norm: GroupNorm, x: Float[Array, "b t h w c"], *, is_flat: bool) -> Frames:
  """Returns the normalized frames of an input after the activation."""
  frames = normalized(norm, x, is_flat=is_flat)
  return lambda index: jax.nn.silu(frames(index))


class ResidualBlock(nnx.Module):
  """Residual block: norm, swish and convolution, twice."""

  def __init__(self, rngs: nnx.Rngs, num_in: int, num_out: int, num_groups: int, *, is_flat: bool):
    self.is_flat = is_flat
    self.norm1 = GroupNorm(rngs, num_in, num_groups)
    self.conv1 = conv(rngs, num_in, num_out, is_flat=is_flat)
    self.norm2 = GroupNorm(rngs, num_out, num_groups)
    self.conv2 = conv(rngs, num_out, num_out, is_flat=is_flat)
    self.shortcut = CausalConv3d(rngs, num_in, num_out, size=1) if num_in != num_out else None

  def __call__(
    self, x: Float[Array, "b t h w i"], is_sliced: bool = False
  ) -> Float[Array, "b t h w o"]:
    inputs, t = frames_of(x), x.shape[1]
    y = convolve(self.conv1, t, activated(self.norm1, x, is_flat=self.is_flat), is_sliced)
    y = activated(self.norm2, y, is_flat=self.is_flat)

    def added(index):
      x = inputs(index)
      return x if self.shortcut is None else self.shortcut(x)[0]

    return convolve(self.conv2, t, y, is_sliced, added)


class Blocks(nnx.Module):
  """Residual blocks in a row, named `block_0`, `block_1` and so on."""

  def __init__(
    self,
    rngs: nnx.Rngs,
    num_in: int,
    num_out: int,
    num: int,
    num_groups: int,
    *,
    is_flat: bool,
  ):
    self.num = num
    for i in range(num):
      width = num_in if i == 0 else num_out
      block = ResidualBlock(rngs, width, num_out, num_groups, is_flat=is_flat)
      setattr(self, f"block_{i}", block)

  def __call__(
    self, x: Float[Array, "b t h w i"], is_sliced: bool = False
  ) -> Float[Array, "b t h w o"]:
    for i in range(self.num):
      x = getattr(self, f"block_{i}")(x, is_sliced)
    return x


class Attention(nnx.Module):
  """Attention with one head between the cells of each frame, added to the input."""

  def __init__(self, rngs: nnx.Rngs, width: int, num_groups: int, *, is_flat: bool):
    self.is_flat = is_flat
    self.norm = GroupNorm(rngs, width, num_groups)
    axes = ("conv_in", "conv_out")
    for name in ("query", "key", "value", "out"):
      setattr(self, name, Linear(rngs, width, width, axes, use_bias=True))

  def __call__(
    self, x: Float[Array, "b t h w c"], is_sliced: bool = False
  ) -> Float[Array, "b t h w c"]:
    b, t, h, w, c = x.shape
    frames = normalized(self.norm, x, is_flat=self.is_flat)
    if is_sliced:
      return by_frame(lambda i: x[:, i] + self._attend(frames(i[None])[:, 0]), t, x)
    return x + self._attend(frames(None).reshape(b * t, h, w, c)).reshape(x.shape)

  def _attend(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    b, h, w, c = x.shape
    key, value = (layer(x).reshape(b, h * w, 1, c) for layer in (self.key, self.value))

    def attend(rows):
      query = self.query(rows).reshape(b, -1, 1, c)
      mask = jnp.ones((1, query.shape[1], h * w), bool)
      return attention(query, key, value, mask).reshape(rows.shape)

    if (h * w) ** 2 <= _MAX_SCORES:
      return self.out(attend(x))
    return self.out(jnp.moveaxis(jax.lax.map(attend, jnp.moveaxis(x, 1, 0)), 0, 1))


class Middle(nnx.Module):
  """Residual block, attention, residual block."""

  def __init__(self, rngs: nnx.Rngs, width: int, num_groups: int, *, is_flat: bool):
    self.block_0 = ResidualBlock(rngs, width, width, num_groups, is_flat=is_flat)
    self.attention = Attention(rngs, width, num_groups, is_flat=is_flat)
    self.block_1 = ResidualBlock(rngs, width, width, num_groups, is_flat=is_flat)

  def __call__(
    self, x: Float[Array, "b t h w c"], is_sliced: bool = False
  ) -> Float[Array, "b t h w c"]:
    return self.block_1(self.attention(self.block_0(x, is_sliced), is_sliced), is_sliced)


def repeated(x: Float[Array, "b t h w c"]) -> Float[Array, "b t y x c"]:
  """Repeats rows and columns."""
  return jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)


def interpolated(x: Float[Array, "b t h w c"]) -> tuple[int, Frames]:
  """Returns twice as many rows and columns, and twice as many frames but for the first one.

  All are interpolated linearly, the frames after the first one among themselves; so a frame
  depends on the next one, too.
  """
  num_frames = 1 + 2 * (x.shape[1] - 1)

  def frames(index):
    index = jnp.arange(num_frames) if index is None else index
    # Places among the frames after the first one, whose own place is -1.
    place = jnp.clip((index - 1.5) / 2, 0.0, x.shape[1] - 2.0)
    place = jnp.where(index == 0, -1.0, place)
    before = jnp.floor(place).astype(jnp.int32)
    weight = (place - before).astype(x.dtype)[:, None, None, None]
    first, second = (frames_of(x)(before + i) for i in (1, 2))
    return _doubled(_doubled((1 - weight) * first + weight * second, 2), 3)

  return num_frames, frames


def _doubled(x: Array, axis: int) -> Array:
  """Interpolates linearly to twice as many values along an axis, which are constant outside."""
  size = x.shape[axis]
  before, after = (
    jnp.take(x, jnp.clip(jnp.arange(size) + step, 0, size - 1), axis=axis) for step in (-1, 1)
  )
  pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
  return pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
