"""The public continuous autoencoders: Stable Diffusion's for images, Open-Sora-Plan's for video.

Names of levels and blocks follow the public keys; see `convert`. The encoder gives means and
logarithms of variances, unscaled; the decoder takes scaled latents.

Source: NOVA section 13.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videoar_jax.nn.layers import GroupNorm
from videoar_jax.tokenizers.batch_parts import MAX_PIXELS
from videoar_jax.tokenizers.kl import blocks
from videoar_jax.tokenizers.kl.layouts import AutoencoderKLConfig
from videoar_jax.tokenizers.kl.tiling import in_tiles


class Encoder(nnx.Module):
  """Pixels to means and logarithms of variances."""

  def __init__(self, rngs: nnx.Rngs, config: AutoencoderKLConfig):
    widths, groups = config.block_channels, config.num_groups
    self.config = config
    self.conv_in = blocks.conv(rngs, 3, widths[0], is_flat=True)
    for level, width in enumerate(widths):
      is_flat = level < config.num_flat_levels
      previous = widths[max(level - 1, 0)]
      down = blocks.Blocks(rngs, previous, width, config.num_blocks, groups, is_flat=is_flat)
      setattr(self, f"down_{level}", down)
      if level + 1 < len(widths):
        # To the next level, of whose kind it is.
        is_flat = level + 1 < config.num_flat_levels
        stride = (1 if is_flat else 2, 2, 2)
        layer = blocks.conv(rngs, width, width, is_flat=is_flat, stride=stride)
        setattr(self, f"downsample_{level}", layer)
    self.middle = blocks.Middle(rngs, widths[-1], groups, is_flat=config.is_flat)
    self.norm_out = GroupNorm(rngs, widths[-1], groups)
    self.conv_out = blocks.conv(rngs, widths[-1], config.num_encoded, is_flat=config.is_flat)
    self.quant_conv = blocks.conv(
      rngs, config.num_encoded, config.num_encoded, is_flat=True, size=1
    )

  def __call__(
    self, video: Float[Array, "b f H W 3"], is_sliced: bool | None = None
  ) -> Float[Array, "b t h w e"]:
    """Encodes clips.

    Args:
      video: clips.
      is_sliced: compute each frame of a layer alone; None if the clips have many pixels.
    """
    return in_tiles(lambda tile: self._encode(tile, is_sliced), video, self.config.tile_frames)

  def chunk(self, video: Float[Array, "b f H W 3"], past: dict | None = None, is_start=None):
    """Encodes the next frames of a clip that are coded one by one; their state is empty."""
    return self(video), {}

  def _encode(self, video, is_sliced: bool | None):
    config = self.config
    if config.is_flat:
      return self._deep(self._flat(video), False)
    is_sliced = video[..., 0].size > MAX_PIXELS if is_sliced is None else is_sliced
    if not is_sliced:
      return self._deep(self._flat(video), False)
    # Of the flat levels, which have the most pixels, only one frame at a time is held.
    x = jax.lax.map(lambda frame: self._flat(frame[:, None])[:, 0], jnp.moveaxis(video, 1, 0))
    return self._deep(jnp.moveaxis(x, 0, 1), True)

  def _flat(self, video):
    """Applies the levels that see one frame."""
    x, _ = self.conv_in(video)
    for level in range(self.config.num_flat_levels):
      x = getattr(self, f"down_{level}")(x)
      if level + 1 < self.config.num_flat_levels:
        x, _ = getattr(self, f"downsample_{level}")(x)
    return x

  def _deep(self, x, is_sliced: bool):
    """Applies the other levels, and what follows."""
    config = self.config
    for level in range(config.num_flat_levels, len(config.block_channels)):
      layer = getattr(self, f"downsample_{level - 1}")
      x = blocks.convolve(layer, x.shape[1], blocks.frames_of(x), is_sliced)
      x = getattr(self, f"down_{level}")(x, is_sliced)
    x = self.middle(x, is_sliced)
    frames = blocks.activated(self.norm_out, x, is_flat=config.is_flat)
    return self.quant_conv(blocks.convolve(self.conv_out, x.shape[1], frames, is_sliced))[0]


class Decoder(nnx.Module):
  """Latents to pixels, unclamped. Its levels are counted from the latents."""

  def __init__(self, rngs: nnx.Rngs, config: AutoencoderKLConfig):
    widths, groups, is_flat = config.block_channels[::-1], config.num_groups, config.is_flat
    self.config = config
    self.post_quant_conv = blocks.conv(
      rngs, config.num_channels, config.num_channels, is_flat=True, size=1
    )
    self.conv_in = blocks.conv(rngs, config.num_channels, widths[0], is_flat=is_flat)
    self.middle = blocks.Middle(rngs, widths[0], groups, is_flat=is_flat)
    for level, width in enumerate(widths):
      previous = widths[max(level - 1, 0)]
      up = blocks.Blocks(rngs, previous, width, config.num_blocks + 1, groups, is_flat=is_flat)
      setattr(self, f"up_{level}", up)
      if level + 1 < len(widths):
        layer = blocks.conv(rngs, width, width, is_flat=not self._has_time(level))
        setattr(self, f"upsample_{level}", layer)
    self.norm_out = GroupNorm(rngs, widths[-1], groups)
    self.conv_out = blocks.conv(rngs, widths[-1], 3, is_flat=is_flat)

  def _has_time(self, level: int) -> bool:
    """Returns whether the step from a level to the next adds frames."""
    return level < len(self.config.block_channels) - self.config.num_flat_levels

  def __call__(
    self, latents: Float[Array, "b t h w d"], is_sliced: bool | None = None
  ) -> Float[Array, "b f H W 3"]:
    """Decodes clips; see `Encoder`."""
    return in_tiles(lambda tile: self._decode(tile, is_sliced), latents, self.config.tile_latents)

  def chunk(self, latents: Float[Array, "b t h w d"], past: dict | None = None):
    """Decodes the next frames of a clip that are coded one by one; their state is empty."""
    return self(latents), {}

  def _decode(self, latents, is_sliced: bool | None):
    config, (b, t, h, w, _) = self.config, latents.shape
    if config.is_flat:
      is_sliced = False
    elif is_sliced is None:
      num_frames = 1 + config.temporal_stride * (t - 1)
      is_sliced = b * num_frames * h * w * config.spatial_stride**2 > MAX_PIXELS
    x, _ = self.post_quant_conv(latents / config.scaling_factor + config.shift_factor)
    x = blocks.convolve(self.conv_in, t, blocks.frames_of(x), is_sliced)
    x = self.middle(x, is_sliced)
    for level in range(len(config.block_channels)):
      x = getattr(self, f"up_{level}")(x, is_sliced)
      if level + 1 < len(config.block_channels):
        x = self._upsample(level, x, is_sliced)
    frames = blocks.activated(self.norm_out, x, is_flat=config.is_flat)
    return blocks.convolve(self.conv_out, x.shape[1], frames, is_sliced)

  def _upsample(self, level: int, x, is_sliced: bool):
    layer = getattr(self, f"upsample_{level}")
    if self._has_time(level):
      return blocks.convolve(layer, *blocks.interpolated(x), is_sliced)
    inputs = blocks.frames_of(x)
    return blocks.convolve(
      layer, x.shape[1], lambda index: blocks.repeated(inputs(index)), is_sliced
    )


class AutoencoderKL(nnx.Module):
  """Encoder and decoder of a public network, with the convolutions next to the latents."""

  def __init__(self, rngs: nnx.Rngs, config: AutoencoderKLConfig):
    self.config = config
    self.encoder = Encoder(rngs, config)
    self.decoder = Decoder(rngs, config)
