"""Settings of the continuous tokenizer's network."""

import dataclasses

import jax
from jaxtyping import Array, Float

from videoar_jax.tokenizers.autoencoder import AutoencoderConfig
from videoar_jax.tokenizers.kl import posterior


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLConfig(AutoencoderConfig):
  """The network.

  Attributes:
    num_channels: channels of a latent cell.
  """

  num_channels: int = 4

  def __post_init__(self):
    super().__post_init__()
    if self.num_channels < 1:
      raise ValueError(f"tokenizer.num_channels={self.num_channels} must be at least 1")

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
    """Draws latents from their distribution; without a key, returns the means."""
    return posterior.latents_of(encoded, key)
