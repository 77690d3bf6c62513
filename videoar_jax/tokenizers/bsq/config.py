"""Settings of the bitwise tokenizer's network."""

import dataclasses

from videoar_jax.tokenizers.autoencoder import AutoencoderConfig
from videoar_jax.tokenizers.bsq.schedules import Schedule, default_schedule, parse_schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class BSQConfig(AutoencoderConfig):
  """The network.

  Attributes:
    num_bits: bits per token, which are the channels of the latent.
    schedule: scales of the quantizer, such as "1 2 4 8" or "2x3 4x6", ending with the latent grid
      of the run's clips. If it is "", and for clips of other sizes, the default is Infinity's
      table, or growing steps for small grids.
  """

  num_bits: int = 48
  schedule: str = ""

  def __post_init__(self):
    super().__post_init__()
    if self.num_bits < 1:
      raise ValueError(f"tokenizer.num_bits={self.num_bits} must be at least 1")
    parse_schedule(self.schedule)

  @property
  def num_channels(self) -> int:
    """Channels of a latent cell: one per bit."""
    return self.num_bits

  def scales(self, resolution: tuple[int, int]) -> Schedule:
    """Returns the scales for frames of (H, W) pixels."""
    _, *grid = self.latent_shape(1, resolution)
    own = parse_schedule(self.schedule)
    return own if own and own[-1] == tuple(grid) else default_schedule(tuple(grid))
