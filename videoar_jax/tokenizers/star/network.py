"""InfinityStar's video autoencoder: stride 16 in space and 4 in time, 64 channels.

The convolutions have stride 8; squares of their cells are then folded into channels, and a linear
map makes latents of them whose size suits the quantizer. The encoder's output is a normal
distribution of each channel before that map. Public code draws from it, here the default is the
mean.

Source: INFINITY section 6.7.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videoar_jax.nn.layers import Linear
from videoar_jax.tokenizers.star.blocks import (
  Blocks,
  Downsample,
  Modulated,
  State,
  Upsample,
  convolution,
  fold,
  norm,
  unfold,
)
from videoar_jax.tokenizers.star.config import CELL, NUM_MID_BLOCKS, STRIDES, StarConfig

_LOG_VARIANCES = (-30.0, 20.0)


class Encoder(nnx.Module):
  """Pixels to latents."""

  def __init__(self, rngs: nnx.Rngs, config: StarConfig):
    widths = config.widths
    self.config = config
    self.conv_in = convolution(rngs, 3, widths[0])
    for level, stride in enumerate(STRIDES):
      setattr(self, f"down_{level}", Blocks(rngs, widths[level], config.num_blocks))
      if stride[1] > 1:
        layer = Downsample(rngs, widths[level], widths[level + 1], stride)
        setattr(self, f"downsample_{level}", layer)
    self.mid = Blocks(rngs, widths[-1], NUM_MID_BLOCKS)
    self.norm_out = norm(rngs, widths[-1])
    self.conv_out = convolution(rngs, widths[-1], 2 * config.z_channels)
    self.proj = _channels_map(rngs, config)

  def __call__(self, video: Float[Array, "b f H W 3"]) -> Float[Array, "b t h w d"]:
    return self.chunk(video)[0]

  def chunk(
    self,
    video: Float[Array, "b f H W 3"],
    past: State | None = None,
    is_start: Bool[Array, ""] | None = None,
  ) -> tuple[Float[Array, "b t h w d"], State]:
    """Encodes the next frames of a clip; without a past, the first ones.

    Args:
      video: the frames.
      past: state after the chunk before.
      is_start: whether the clip starts at the last of these frames, see `CausalConv3d`; may be
        traced.
    """
    moments, last = self.moments_chunk(video, past, is_start)
    return self.latents_of(moments), last

  def moments_chunk(
    self,
    video: Float[Array, "b f H W 3"],
    past: State | None = None,
    is_start: Bool[Array, ""] | None = None,
  ) -> tuple[Float[Array, "b t h w e"], State]:
    """Encodes the next frames of a clip to means and log-variances, in a row; see `chunk`."""
    x, last = video, {}
    for name in self._names():
      if name == "conv_out":
        x = jax.nn.silu(self.norm_out(x))
      x, last[name] = getattr(self, name)(x, past and past[name], is_start=is_start)
    mean, log_variance = jnp.split(x, 2, axis=-1)
    log_variance = jnp.clip(log_variance, *_LOG_VARIANCES)
    return jnp.concatenate([fold(mean, CELL), fold(log_variance, CELL)], axis=-1), last

  def latents_of(
    self, moments: Float[Array, "b t h w e"], key: jax.Array | None = None
  ) -> Float[Array, "b t h w d"]:
    """Returns the latents of the means, or with a key those of a draw."""
    x, log_variance = jnp.split(moments, 2, axis=-1)
    if key is not None:
      x = x + jnp.exp(0.5 * log_variance) * jax.random.normal(key, x.shape, x.dtype)
    return self.proj(x)

  def _names(self) -> list[str]:
    """Returns the names of the modules that have a state, in order."""
    levels = range(len(STRIDES))
    pairs = [name for level in levels for name in (f"down_{level}", f"downsample_{level}")]
    return ["conv_in", *(name for name in pairs if hasattr(self, name)), "mid", "conv_out"]


class Decoder(nnx.Module):
  """Latents to pixels, unclamped. The latents also scale and shift every normalization."""

  def __init__(self, rngs: nnx.Rngs, config: StarConfig):
    widths, z_channels = config.widths, config.z_channels
    self.config = config
    self.proj = _channels_map(rngs, config)
    self.conv_in = convolution(rngs, z_channels, widths[-1])
    self.mid = Blocks(rngs, widths[-1], NUM_MID_BLOCKS, z_channels)
    for level, stride in reversed(list(enumerate(STRIDES))):
      blocks = Blocks(rngs, widths[level + 1], config.num_blocks + 1, z_channels)
      setattr(self, f"up_{level}", blocks)
      if stride[1] > 1:
        layer = Upsample(rngs, widths[level + 1], widths[level], stride)
        setattr(self, f"upsample_{level}", layer)
    self.norm_out = Modulated(rngs, widths[0], z_channels)
    self.conv_out = convolution(rngs, widths[0], 3)

  def __call__(self, latents: Float[Array, "b t h w d"]) -> Float[Array, "b f H W 3"]:
    return self.chunk(latents)[0]

  def chunk(
    self, latents: Float[Array, "b t h w d"], past: State | None = None
  ) -> tuple[Float[Array, "b f H W 3"], State]:
    """Decodes the next latent frames of a clip; without a past, the first ones."""
    z, last = unfold(self.proj(latents), CELL), {}
    before = past and unfold(past["conv_in"], CELL)
    x, last_in = self.conv_in(z, before)
    # Kept in the shape of latents, by which a state shows what clips it is of.
    last["conv_in"] = fold(last_in, CELL)
    x, last["mid"] = self.mid(x, past and past["mid"], z=z)
    for level, stride in reversed(list(enumerate(STRIDES))):
      name = f"up_{level}"
      x, last[name] = getattr(self, name)(x, past and past[name], z=z)
      if stride[1] > 1:
        name = f"upsample_{level}"
        x, last[name] = getattr(self, name)(x, past and past[name])
    x = jax.nn.silu(self.norm_out(x, z, past is None))
    x, last["conv_out"] = self.conv_out(x, past and past["conv_out"])
    return x, last


def _channels_map(rngs: nnx.Rngs, config: StarConfig) -> Linear:
  num = config.num_channels
  return Linear(rngs, num, num, ("conv_in", "conv_out"), use_bias=True)


class StarAutoencoder(nnx.Module):
  """Encoder and decoder."""

  def __init__(self, rngs: nnx.Rngs, config: StarConfig):
    self.config = config
    self.encoder = Encoder(rngs, config)
    self.decoder = Decoder(rngs, config)


def autoencoder_of(config: StarConfig, params: dict) -> StarAutoencoder:
  """Returns the autoencoder with given parameters."""
  return nnx.merge(_abstract(config)[0], params)


def abstract_params(config: StarConfig) -> dict:
  """Returns the shapes of an autoencoder's parameters, without computing anything."""
  return _abstract(config)[1]


@functools.lru_cache(maxsize=8)
def _abstract(config: StarConfig) -> tuple[nnx.GraphDef, dict]:
  def make(key):
    return StarAutoencoder(nnx.Rngs(params=key), config)

  graphdef, variables = nnx.split(jax.eval_shape(make, jax.random.key(0)))
  return graphdef, nnx.to_pure_dict(variables)
