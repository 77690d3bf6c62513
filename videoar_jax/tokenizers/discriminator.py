"""A 3-D convolutional patch discriminator.

Residual blocks and anti-aliased downsampling, without statistics over the batch or over positions,
as in MAGVIT. Unlike MAGVIT's, it returns one logit per position, so the same weights serve images
and clips of any length and size.

Source: VIDEOAR section 2.5.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from videoar_jax.nn import layers
from videoar_jax.nn.conv import conv3d

_SPACE, _TIME = (1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 1.0)


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
  """The discriminator's network.

  Attributes:
    base_channels: channels at full resolution.
    multipliers: channels of each level, in units of `base_channels`.
    strides: (time, space) stride of each level, each 1 or 2.
    patch_size: side in pixels of the patches that are folded into channels before the first
      convolution.
  """

  base_channels: int = 64
  multipliers: tuple[int, ...] = (2, 4, 4, 4)
  strides: tuple[tuple[int, int], ...] = ((1, 2), (2, 2), (2, 2), (1, 2))
  patch_size: int = 1

  def __post_init__(self):
    object.__setattr__(self, "multipliers", tuple(self.multipliers))
    object.__setattr__(self, "strides", tuple(tuple(pair) for pair in self.strides))
    for field in ("base_channels", "patch_size"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
    if not self.multipliers or min(self.multipliers) < 1:
      raise ValueError(f"multipliers={self.multipliers}: needs one or more, each at least 1")
    if len(self.strides) != len(self.multipliers):
      raise ValueError(
        f"strides has {len(self.strides)} entries, but there are {len(self.multipliers)} levels "
        "(multipliers)"
      )
    if not all(len(pair) == 2 and set(pair) <= {1, 2} for pair in self.strides):
      raise ValueError(f"strides={self.strides}: each is (time, space), of 1 and 2")

  def check_resolution(self, resolution: tuple[int, int]) -> None:
    """Checks that the stride divides a clip's sides.

    Raises:
      ValueError: it does not divide one of them.
    """
    stride = self.patch_size * math.prod(space for _, space in self.strides)
    for side, size in zip(("height", "width"), resolution, strict=True):
      if size % stride:
        raise ValueError(
          f"data.resolution: {side} {size} is not a multiple of {stride}, the discriminator's "
          "stride; take fewer levels or another size"
        )


class Conv3d(nnx.Module):
  """3x3x3 or 1x1x1 convolution, not causal: it sees as many later frames as earlier ones."""

  def __init__(self, rngs: nnx.Rngs, num_in: int, num_out: int, *, size: int = 3):
    shape = (size, size, size, num_in, num_out)
    axes = (None, None, None, "conv_in", "conv_out")
    self.kernel = layers.param(rngs, layers.fan_in(shape, 2.0), shape, axes)
    self.bias = layers.param(rngs, layers.zeros, (num_out,), ("conv_out",))

  def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h w o"]:
    half = self.kernel.shape[0] // 2
    pads = ((half, half), (half, half))
    y = conv3d(x, self.kernel[...].astype(x.dtype), pads=pads, time_pads=(half, half))
    return y + self.bias[...].astype(x.dtype)


def downsample(x: Float[Array, "b t h w c"], stride: tuple[int, int]) -> Float[Array, "b u y x c"]:
  """Blurs, then keeps every second frame (0, 2, 4 and so on) or cell where the stride is 2."""
  time, space = stride
  if time > 1:
    x = _blur(x, 1, _TIME, (1, 1))
  if space > 1:
    x = _blur(_blur(x, 2, _SPACE, (1, 1)), 3, _SPACE, (1, 1))
  return x


def _blur(x, axis: int, taps: tuple[float, ...], pads: tuple[int, int]):
  padding = [(0, 0)] * x.ndim
  padding[axis] = pads
  x = jnp.pad(x, padding, mode="edge")
  num = (x.shape[axis] - len(taps)) // 2 + 1
  parts = [
    tap / sum(taps) * jax.lax.slice_in_dim(x, i, i + 2 * num - 1, 2, axis)
    for i, tap in enumerate(taps)
  ]
  return sum(parts)


class DownBlock(nnx.Module):
  """Residual block: two convolutions with anti-aliased downsampling between them."""

  def __init__(self, rngs: nnx.Rngs, num_in: int, num_out: int, stride: tuple[int, int]):
    self.conv1 = Conv3d(rngs, num_in, num_in)
    self.conv2 = Conv3d(rngs, num_in, num_out)
    self.shortcut = Conv3d(rngs, num_in, num_out, size=1)
    self.stride = stride

  def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b u y x o"]:
    y = downsample(_activate(self.conv1(x)), self.stride)
    y = _activate(self.conv2(y))
    # Both summands have equal variance: dividing by sqrt(2) keeps it constant over depth.
    return (y + self.shortcut(downsample(x, self.stride))) / math.sqrt(2.0)


class Discriminator(nnx.Module):
  """Maps a clip to logits; positive means real."""

  def __init__(self, rngs: nnx.Rngs, config: DiscriminatorConfig):
    widths = [config.base_channels * multiplier for multiplier in config.multipliers]
    self.config = config
    self.conv_in = Conv3d(rngs, 3 * config.patch_size**2, config.base_channels)
    for level, (width, stride) in enumerate(zip(widths, config.strides, strict=True)):
      previous = widths[level - 1] if level else config.base_channels
      setattr(self, f"down_{level}", DownBlock(rngs, previous, width, stride))
    self.conv_out = Conv3d(rngs, widths[-1], widths[-1])
    self.head = layers.Linear(rngs, widths[-1], 1, ("conv_in", None), use_bias=True)

  def __call__(self, video: Float[Array, "b f H W 3"]) -> Float[Array, "b u y x"]:
    p = self.config.patch_size
    x = rearrange(video, "b f (h p) (w q) c -> b f h w (p q c)", p=p, q=p)
    x = _activate(self.conv_in(x))
    for level in range(len(self.config.multipliers)):
      x = getattr(self, f"down_{level}")(x)
    return layers.at_least_float32(self.head(_activate(self.conv_out(x)))[..., 0])


def _activate(x):
  return jax.nn.leaky_relu(x, 0.2)
