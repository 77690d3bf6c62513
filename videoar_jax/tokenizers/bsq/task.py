"""Trains the bitwise tokenizer: the losses on pixels, and the quantizer's.

Source: VIDEOAR sections 2.3 and 2.5.
"""

import dataclasses

import jax
import jax.numpy as jnp

from videoar_jax.tokenizers.autoencoder import Autoencoder
from videoar_jax.tokenizers.bsq import quantizer
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.bsq.schedules import Schedule
from videoar_jax.tokenizers.decoding import decode
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.tokenizers.task import AutoencoderTask, ReconstructionLoss


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig(ReconstructionLoss):
  """Weights of the terms of the tokenizer's loss.

  Attributes:
    commitment: commitment loss: pulls each scale's direction to its code.
    quantization_error: pulls the latents to the sum of their codes.
    entropy: entropy loss: rewards bits that are certain for each token and varied over the batch.
    scale_dropout: share of clips that are decoded from a random number of their first scales, so
      that coarse scales carry as much as they can.
  """

  commitment: float = 0.25
  quantization_error: float = 0.0
  entropy: float = 0.1
  scale_dropout: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    for name in ("commitment", "quantization_error", "entropy"):
      if not getattr(self, name) >= 0:
        raise ValueError(f"{name}={getattr(self, name)} must not be negative")
    if not 0 <= self.scale_dropout <= 1:
      raise ValueError(f"scale_dropout={self.scale_dropout} must be in [0, 1]")


class TokenizerTask(AutoencoderTask):
  """The training task of the bitwise tokenizer.

  Args:
    config: its network.
    schedule: scales to quantize with.
    loss: weights.
    frozen: see `AutoencoderTask`.
  """

  def __init__(
    self,
    config: BSQConfig,
    schedule: Schedule,
    loss: TokenizerLossConfig,
    frozen: dict | None = None,
  ):
    super().__init__(config, loss, frozen)
    self.schedule = schedule

  def code(self, module: Autoencoder, video, key, is_training: bool):
    """Encodes and quantizes; in training, some clips with fewer scales."""
    num_scales = None
    if is_training and self.weights.scale_dropout > 0:
      num_scales = self.draw_num_scales(key, video.shape[0])[:, None]
    quantized = quantizer.quantize(module.encoder(video), self.schedule, num_scales)
    return quantized.quantized, quantized

  def regularisation(self, coded: quantizer.Quantized):
    """Returns the weighted sum of the quantizer's losses, and each loss."""
    metrics = {
      "commitment": quantizer.commitment_loss(coded),
      "quantization_error": quantizer.quantization_error_loss(coded),
      "entropy": quantizer.entropy_loss(coded),
    }
    return sum(getattr(self.weights, name) * value for name, value in metrics.items()), metrics

  def draw_num_scales(self, key, batch_size: int):
    """Draws how many scales each clip is decoded from, `[b]`: all, or a random number."""
    keys = jax.random.split(key)
    is_dropped = jax.random.bernoulli(keys[0], self.weights.scale_dropout, (batch_size,))
    fewer = jax.random.randint(keys[1], (batch_size,), 1, len(self.schedule))
    return jnp.where(is_dropped, fewer, len(self.schedule))

  def media(self, module: Autoencoder, frozen, batch):
    """Returns originals above their reconstructions."""
    latents = encode(module.encoder, batch["video"])
    codes = quantizer.quantize(latents, self.schedule).quantized
    both = jnp.concatenate([batch["video"], decode(module.decoder, codes)], axis=2)
    return {"original_and_reconstruction": both}
