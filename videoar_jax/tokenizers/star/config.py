"""Settings of InfinityStar's video autoencoder."""

import dataclasses
import math

import jax
from jaxtyping import Array, Float

from videoar_jax.tokenizers import shapes

# (time, space) strides from each level of the encoder to the next.
STRIDES = ((2, 2), (2, 2), (1, 2), (1, 1))
NUM_MID_BLOCKS = 2
CELL = 2  # Side of the squares of the encoder's cells that are one cell of the latents.


@dataclasses.dataclass(frozen=True, kw_only=True)
class StarConfig:
  """The network. The defaults are those of the public one.

  Attributes:
    widths: channels of each of the encoder's four levels and of its last blocks.
    num_blocks: residual blocks of a level of the encoder; those of the decoder have one more.
    z_channels: channels of the decoder's input; a cell of the latents has four times as many.
  """

  widths: tuple[int, ...] = (96, 192, 384, 384, 384)
  num_blocks: int = 2
  z_channels: int = 16

  def __post_init__(self):
    object.__setattr__(self, "widths", tuple(self.widths))
    if len(self.widths) != len(STRIDES) + 1 or min(self.widths) < 1:
      raise ValueError(
        f"tokenizer.widths={self.widths} needs {len(STRIDES) + 1} numbers of at least 1"
      )
    for field in ("num_blocks", "z_channels"):
      if getattr(self, field) < 1:
        raise ValueError(f"tokenizer.{field}={getattr(self, field)} must be at least 1")
    for fine, coarse, (_, space) in zip(self.widths, self.widths[1:], STRIDES, strict=False):
      # Shortcuts average groups of the channels that squares of cells are folded into.
      if space == 1 and fine != coarse:
        raise ValueError(f"tokenizer.widths={self.widths}: the last two must be equal")
      if space > 1 and (coarse % 4 or 4 * fine % coarse):
        raise ValueError(
          f"tokenizer.widths={self.widths}: {coarse} must be a multiple of 4 and divide 4 x {fine}"
        )

  @property
  def num_channels(self) -> int:
    """Channels of a latent cell."""
    return CELL**2 * self.z_channels

  @property
  def temporal_stride(self) -> int:
    """Frames per latent frame."""
    return math.prod(time for time, _ in STRIDES)

  @property
  def spatial_stride(self) -> int:
    """Side of a latent cell in pixels."""
    return CELL * math.prod(space for _, space in STRIDES)

  @property
  def patch_size(self) -> int:
    """Side of the patches of pixels that the first convolution sees: one pixel."""
    return 1

  @property
  def sees_whole_clips(self) -> bool:
    """Whether any frame of the result depends on all frames of a clip."""
    return False

  @property
  def num_encoded(self) -> int:
    """Channels that stand for a cell of the latents: its own, since latents are not drawn."""
    return self.num_channels

  def posterior_of(self, encoded: Float[Array, "b t h w d"]) -> Float[Array, "b t h w d"]:
    """Returns what a token cache stores of what the encoder made: itself."""
    return encoded

  def latents_of(
    self, encoded: Float[Array, "b t h w d"], key: jax.Array | None = None
  ) -> Float[Array, "b t h w d"]:
    """Returns the latents that what the encoder made stands for: itself, with any key."""
    return encoded

  def latent_shape(self, num_frames: int, resolution: tuple[int, int]) -> tuple[int, int, int]:
    """Returns (t, h, w) of a clip's latent; see `shapes.latent_shape`."""
    return shapes.latent_shape(self.temporal_stride, self.spatial_stride, num_frames, resolution)
