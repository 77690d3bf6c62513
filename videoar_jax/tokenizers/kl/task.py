"""Trains the continuous tokenizer: the losses on pixels, and the divergence from a normal.

Source: NOVA section 13; arXiv 1312.6114.
"""

import dataclasses

import jax
import jax.numpy as jnp

from videoar_jax.tokenizers.autoencoder import Autoencoder
from videoar_jax.tokenizers.decoding import decode
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.tokenizers.kl.posterior import Posterior, posterior_of
from videoar_jax.tokenizers.task import AutoencoderTask, ReconstructionLoss


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLLossConfig(ReconstructionLoss):
  """Weights of the terms of the tokenizer's loss.

  Attributes:
    kl: divergence of a latent channel's distribution from a standard normal one, in nats. It also
      gives latents a spread of about 1, which the generator's noise assumes.
  """

  kl: float = 1e-4

  def __post_init__(self):
    super().__post_init__()
    if not self.kl >= 0:
      raise ValueError(f"kl={self.kl} must not be negative")


class KLTask(AutoencoderTask):
  """The training task of the continuous tokenizer."""

  def code(self, module: Autoencoder, video, key, is_training: bool):
    """Encodes, and in training draws from the posterior."""
    encoded = module.encoder(video)
    key = jax.random.fold_in(key, 3) if is_training else None
    return self.config.latents_of(encoded, key), posterior_of(encoded)

  def regularisation(self, coded: Posterior):
    """Returns the weighted divergence, the divergence, and the latents' spread."""
    mean, log_variance = coded
    divergence = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)
    metrics = {"kl": divergence, "latent_deviation": jnp.std(mean)}
    return self.weights.kl * divergence, metrics

  def media(self, module: Autoencoder, frozen, batch):
    """Returns originals above their reconstructions."""
    latents = self.config.latents_of(encode(module.encoder, batch["video"]))
    both = jnp.concatenate([batch["video"], decode(module.decoder, latents)], axis=2)
    return {"original_and_reconstruction": both}
