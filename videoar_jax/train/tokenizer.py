"""Trains the tokenizer: reconstruction, commitment, entropy. Source: VIDEOAR 2.3 and 2.5."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from videoar_jax.tokenizer import quantizer
from videoar_jax.tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from videoar_jax.tokenizer.schedules import Schedule
from videoar_jax.tokenizer.tokenizer import to_float, to_uint8


@dataclasses.dataclass(frozen=True)
class TokenizerLossConfig:
  """Weights of the loss's parts.

  Attributes:
    absolute: L1 between pixels, the paper's reconstruction loss.
    squared: squared error between pixels; small networks that start from nothing need it to see
      objects at all, since the median of most pixels is the background.
    commitment: pulls each scale's direction to its code.
    remainder: pulls latents to the sum of their codes, see `quantizer.remainder_loss`.
    entropy: rewards decided and varied bits.
    scale_dropout: share of clips that are decoded from a random number of their first scales, so
      that coarse scales say as much as they can: what and where, before any detail.
  """

  absolute: float = 1.0
  squared: float = 0.0
  commitment: float = 0.25
  remainder: float = 0.0
  entropy: float = 0.1
  scale_dropout: float = 0.0

  def __post_init__(self):
    if not 0 <= self.scale_dropout <= 1:
      raise ValueError(f"scale_dropout={self.scale_dropout} must be in [0, 1]")


class TokenizerTask:
  """The autoencoder as a trainable thing.

  Args:
    config: its network.
    schedule: scales to quantize with.
    loss: weights.
  """

  def __init__(self, config: AutoencoderConfig, schedule: Schedule, loss: TokenizerLossConfig):
    self.config, self.schedule, self.weights = config, schedule, loss
    self.frozen: dict = {}

  def init(self, key) -> Autoencoder:
    """Makes the autoencoder."""
    return Autoencoder(nnx.Rngs(params=key), self.config)

  def loss(self, module: Autoencoder, frozen, batch, key, is_training: bool):
    """Returns the loss and its parts; the batch needs `video`, uint8 `[b, f, H, W, 3]`."""
    video = to_float(batch["video"])
    num_scales = None
    if is_training and self.weights.scale_dropout > 0:
      num_scales = self.draw_num_scales(key, video.shape[0])[:, None]
    quantized = quantizer.quantize(module.encoder(video), self.schedule, num_scales)
    difference = module.decoder(quantized.latents) - video
    absolute, squared = jnp.mean(jnp.abs(difference)), jnp.mean(jnp.square(difference))
    commitment = quantizer.commitment_loss(quantized)
    remainder = quantizer.remainder_loss(quantized)
    entropy = quantizer.entropy_loss(quantized)
    weights = self.weights
    loss = (
      weights.absolute * absolute
      + weights.squared * squared
      + weights.commitment * commitment
      + weights.remainder * remainder
      + weights.entropy * entropy
    )
    return loss, {
      "absolute": absolute,
      "squared": squared,
      "psnr": 10 * jnp.log10(4.0 / squared),
      "commitment": commitment,
      "remainder": remainder,
      "entropy": entropy,
    }

  def draw_num_scales(self, key, batch_size: int):
    """Draws how many scales each clip is decoded from, `[b]`: all, or a random number."""
    keys = jax.random.split(key)
    is_dropped = jax.random.bernoulli(keys[0], self.weights.scale_dropout, (batch_size,))
    fewer = jax.random.randint(keys[1], (batch_size,), 1, len(self.schedule))
    return jnp.where(is_dropped, fewer, len(self.schedule))

  def media(self, module: Autoencoder, frozen, batch):
    """Returns originals above their reconstructions."""
    video = to_float(batch["video"])
    codes = quantizer.quantize(module.encoder(video), self.schedule).latents
    both = jnp.concatenate([batch["video"], to_uint8(module.decoder(codes))], axis=2)
    return {"original_and_reconstruction": both}
