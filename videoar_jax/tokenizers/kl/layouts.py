"""Settings of the public continuous autoencoders, which are converted and not trained here.

Both have the layout of Stable Diffusion's: levels of residual blocks, and attention in the middle.

Source: NOVA section 13.
"""

import dataclasses
import math

import jax
from jaxtyping import Array, Float

from videoar_jax.tokenizers import shapes
from videoar_jax.tokenizers.kl import posterior

_TILE_FRAMES = 17  # In the public code of the video autoencoder.


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
  """The network.

  Attributes:
    block_channels: channels of each level; the first one is that of pixels.
    num_blocks: residual blocks of each level of the encoder; the decoder has one more.
    num_groups: groups of the group normalization.
    num_channels: channels of a latent cell.
    scaling_factor: multiplies latents, after the shift, so that their spread is about 1.
    shift_factor: is subtracted from latents.
  """

  block_channels: tuple[int, ...] = (128, 256, 512, 512)
  num_blocks: int = 2
  num_groups: int = 32
  num_channels: int = 4
  scaling_factor: float = 0.18215
  shift_factor: float = 0.0

  def __post_init__(self):
    object.__setattr__(self, "block_channels", tuple(self.block_channels))
    for field in ("num_blocks", "num_groups", "num_channels"):
      if getattr(self, field) < 1:
        raise ValueError(f"tokenizer.{field}={getattr(self, field)} must be at least 1")
    if len(self.block_channels) < 3:
      raise ValueError(f"tokenizer.block_channels={self.block_channels}: needs at least 3 levels")
    for width in self.block_channels:
      if width < 1 or width % self.num_groups:
        raise ValueError(
          f"tokenizer.num_groups={self.num_groups} does not divide tokenizer.block_channels="
          f"{self.block_channels}"
        )
    if not (math.isfinite(self.scaling_factor) and self.scaling_factor > 0):
      raise ValueError(f"tokenizer.scaling_factor={self.scaling_factor} must be more than 0")
    if not math.isfinite(self.shift_factor):
      raise ValueError(f"tokenizer.shift_factor={self.shift_factor} must be a number")

  @property
  def num_flat_levels(self) -> int:
    """The encoder's first levels, whose convolutions see one frame; those of others are causal."""
    raise NotImplementedError

  @property
  def is_flat(self) -> bool:
    """Whether every frame is coded alone."""
    return self.num_flat_levels == len(self.block_channels)

  @property
  def sees_whole_clips(self) -> bool:
    """Whether any frame of the result depends on all frames of a clip."""
    return not self.is_flat

  @property
  def tile_frames(self) -> int | None:
    """Frames of a tile; None if clips are coded whole."""
    return None

  @property
  def tile_latents(self) -> int | None:
    """Latent frames of a tile; None if clips are coded whole."""
    return self.tile_frames and 1 + (self.tile_frames - 1) // self.temporal_stride

  @property
  def temporal_stride(self) -> int:
    """Frames per latent frame, `tau`."""
    return 2 ** (len(self.block_channels) - self.num_flat_levels)

  @property
  def spatial_stride(self) -> int:
    """Side of a latent cell in pixels."""
    return 2 ** (len(self.block_channels) - 1)

  @property
  def num_encoded(self) -> int:
    """Channels that the encoder makes of a cell: mean and logarithm of the variance of each."""
    return 2 * self.num_channels

  def posterior_of(self, encoded: Float[Array, "b t h w e"]) -> Float[Array, "b t h w e"]:
    """Returns the encoder's output with bounded variances."""
    return posterior.bounded(encoded)

  def latents_of(
    self, encoded: Float[Array, "b t h w e"], key: jax.Array | None = None
  ) -> Float[Array, "b t h w d"]:
    """Draws latents from their distribution, or takes its means, and scales them."""
    return (posterior.latents_of(encoded, key) - self.shift_factor) * self.scaling_factor

  def latent_shape(self, num_frames: int, resolution: tuple[int, int]) -> tuple[int, int, int]:
    """Returns (t, h, w) of a clip's latent; see `shapes.latent_shape`."""
    return shapes.latent_shape(self.temporal_stride, self.spatial_stride, num_frames, resolution)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageKLConfig(AutoencoderKLConfig):
  """The network: Stable Diffusion's image autoencoder, which codes each frame alone."""

  @property
  def num_flat_levels(self) -> int:
    """All levels."""
    return len(self.block_channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenSoraConfig(AutoencoderKLConfig):
  """The network: the causal video autoencoder of Open-Sora-Plan.

  Attributes:
    tiling: code clips in tiles of 17 frames that overlap by one, as the public code does; a clip
      then has up to 17 frames, or 1 + 16 k. Otherwise a clip is coded whole.
  """

  tiling: bool = False

  @property
  def num_flat_levels(self) -> int:
    """Two, in the public network."""
    return 2

  @property
  def tile_frames(self) -> int | None:
    """Frames of a tile; None if clips are coded whole."""
    return _TILE_FRAMES if self.tiling else None

  def latent_shape(self, num_frames: int, resolution: tuple[int, int]) -> tuple[int, int, int]:
    """Returns (t, h, w) of a clip's latent.

    Raises:
      ValueError: as `shapes.latent_shape`, or the last of several tiles would be incomplete.
    """
    shape = super().latent_shape(num_frames, resolution)
    step = _TILE_FRAMES - 1
    if self.tiling and num_frames > _TILE_FRAMES and (num_frames - 1) % step:
      below = (num_frames - 1) // step * step + 1
      raise ValueError(
        f"data.num_frames={num_frames} ends in an incomplete tile, which the public code drops; "
        f"take {below} or {below + step}, or set tokenizer.tiling=False"
      )
    return shape
