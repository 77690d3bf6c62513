"""Layers of InfinityStar's video autoencoder.

Time is causal: before a clip there are copies of its first frame, so the first latent frame is that
of an image. A clip may be processed in chunks: every layer returns the last frames of its
convolutions' inputs, which are the `past` of the next call; a call without `past` starts a clip.

Source: INFINITY section 6.7.
"""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float

from videoar_jax.nn.conv import CausalConv3d
from videoar_jax.nn.layers import Linear, RMSNorm

# The last inputs of each convolution: arrays in dicts that are nested like the modules.
State = dict


def convolution(rngs: nnx.Rngs, num_in: int, num_out: int) -> CausalConv3d:
  """Returns a 3x3x3 convolution that sees copies of the first frame before a clip."""
  return CausalConv3d(rngs, num_in, num_out, repeats_first=True)


def norm(rngs: nnx.Rngs, width: int) -> RMSNorm:
  """Returns the normalization of a cell's channels to mean square 1."""
  # The public one divides by the norm, which is at least 1e-12.
  return RMSNorm(rngs, width, epsilon=1e-24 / width)


class Modulated(nnx.Module):
  """Normalization with a scale and a shift that are linear in the latents of the same place."""

  def __init__(self, rngs: nnx.Rngs, width: int, z_channels: int):
    self.norm = norm(rngs, width)
    axes = ("conv_in", "conv_out")
    self.scale = Linear(rngs, z_channels, width, axes, use_bias=True)
    self.shift = Linear(rngs, z_channels, width, axes, use_bias=True)

  def __call__(
    self, x: Float[Array, "b u y x c"], z: Float[Array, "b t h w e"], is_start: bool
  ) -> Float[Array, "b u y x c"]:
    """Normalizes a chunk.

    Args:
      x: the chunk.
      z: its latents. Each frame stands for one, two or four of x, but the first frame of a clip
        for one; each cell for a square of cells.
      is_start: whether the chunk starts a clip.
    """
    # Linear maps of cells may as well be applied before cells are repeated.
    num_copies = max(1, (x.shape[1] - is_start) // max(1, z.shape[1] - is_start))
    skipped = num_copies - 1 if is_start else 0
    scale, shift = (
      jnp.repeat(layer(z), num_copies, axis=1)[:, skipped:] for layer in (self.scale, self.shift)
    )
    side = x.shape[2] // z.shape[2]
    cells = rearrange(self.norm(x), "b t (h p) (w q) c -> b t h p w q c", p=side, q=side)
    cells = cells * scale[:, :, :, None, :, None] + shift[:, :, :, None, :, None]
    return cells.reshape(x.shape)


class ResidualBlock(nnx.Module):
  """Norm, swish and convolution, twice; in the decoder, norms are `Modulated`."""

  def __init__(self, rngs: nnx.Rngs, width: int, z_channels: int | None = None):
    for i in (1, 2):
      layer = norm(rngs, width) if z_channels is None else Modulated(rngs, width, z_channels)
      setattr(self, f"norm{i}", layer)
      setattr(self, f"conv{i}", convolution(rngs, width, width))

  def __call__(
    self,
    x: Float[Array, "b t h w c"],
    past: State | None = None,
    *,
    z: Float[Array, "b u y x e"] | None = None,
    is_start=None,
  ) -> tuple[Float[Array, "b t h w c"], State]:
    y, last = x, {}
    for i in (1, 2):
      layer, name = getattr(self, f"norm{i}"), f"conv{i}"
      y = layer(y) if z is None else layer(y, z, past is None)
      y, last[name] = getattr(self, name)(jax.nn.silu(y), past and past[name], is_start)
    return x + y, last


class Blocks(nnx.Module):
  """Residual blocks in a row, named `block_0`, `block_1` and so on."""

  def __init__(self, rngs: nnx.Rngs, width: int, num: int, z_channels: int | None = None):
    self.num = num
    for i in range(num):
      setattr(self, f"block_{i}", ResidualBlock(rngs, width, z_channels))

  def __call__(self, x, past: State | None = None, *, z=None, is_start=None):
    last = {}
    for i in range(self.num):
      name = f"block_{i}"
      x, last[name] = getattr(self, name)(x, past and past[name], z=z, is_start=is_start)
    return x, last


class Downsample(nnx.Module):
  """Folds squares of cells into channels, and averages pairs of frames but the first one.

  The shortcut averages channels, too.
  """

  def __init__(self, rngs: nnx.Rngs, num_in: int, num_out: int, stride: tuple[int, int]):
    self.norm = norm(rngs, num_in)
    self.conv = convolution(rngs, num_in, num_out // stride[1] ** 2)
    self.stride = stride

  def __call__(
    self, x: Float[Array, "b t h w i"], past: State | None = None, *, is_start=None
  ) -> tuple[Float[Array, "b u y x o"], State]:
    y, last = self.conv(jax.nn.silu(self.norm(x)), past and past["conv"], is_start)
    y, shortcut = (self._folded(each, past is None) for each in (y, x))
    shortcut = rearrange(shortcut, "b t h w (g c) -> b t h w g c", c=y.shape[-1])
    return y + jnp.mean(shortcut, axis=-2), {"conv": last}

  def _folded(self, x, is_start: bool):
    time, space = self.stride
    if is_start:  # The average of copies of the first frame is the first frame.
      x = jnp.concatenate([x[:, :1]] * (time - 1) + [x], axis=1)
    x = rearrange(x, "b (t u) (h p) (w q) c -> b t u h w (p q c)", u=time, p=space, q=space)
    return jnp.mean(x, axis=2)


class Upsample(nnx.Module):
  """Unfolds channels to frames and squares of cells; the first frame of a clip stays one.

  The shortcut repeats channels.
  """

  def __init__(self, rngs: nnx.Rngs, num_in: int, num_out: int, stride: tuple[int, int]):
    time, space = stride
    self.norm = norm(rngs, num_in)
    self.conv = convolution(rngs, num_in, num_out * time * space**2)
    self.stride = stride

  def __call__(
    self, x: Float[Array, "b t h w i"], past: State | None = None
  ) -> tuple[Float[Array, "b u y x o"], State]:
    time, space = self.stride
    y, last = self.conv(jax.nn.silu(self.norm(x)), past and past["conv"])
    y = y + repeat(x, "b t h w c -> b t h w (r c)", r=y.shape[-1] // x.shape[-1])
    y = rearrange(y, "b t h w (u p q c) -> b (t u) (h p) (w q) c", u=time, p=space, q=space)
    if past is None:  # The frames that the first one became are averaged.
      first = jnp.mean(y[:, :time], axis=1, keepdims=True)
      y = jnp.concatenate([first, y[:, time:]], axis=1)
    return y, {"conv": last}


def fold(x: Float[Array, "b t y x c"], side: int) -> Float[Array, "b t h w d"]:
  """Folds squares of cells into channels, those of a channel side by side."""
  return rearrange(x, "b t (h p) (w q) c -> b t h w (c p q)", p=side, q=side)


def unfold(x: Float[Array, "b t h w d"], side: int) -> Float[Array, "b t y x c"]:
  """Reverses `fold`."""
  return rearrange(x, "b t h w (c p q) -> b t (h p) (w q) c", p=side, q=side)
