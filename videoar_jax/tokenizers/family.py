"""What families of convolutional autoencoders share; see `tokenizers.base.TokenizerFamily`."""

import jax
import numpy as np
from flax import nnx

from videoar_jax.tokenizers import lpips
from videoar_jax.tokenizers.autoencoder import Autoencoder, AutoencoderConfig
from videoar_jax.tokenizers.batch_parts import part_of
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.tokenizers.flops import decoder_flops, encoder_flops
from videoar_jax.tokenizers.task import ReconstructionLoss, adversary_of, load_frozen
from videoar_jax.train.adversary import Adversary

# Arrays with the encoder's first width that encoding holds at once, cached earlier frames included:
# taken from TPU's compiler, for clips of 384x672 pixels.
_ENCODER_ARRAYS = 7


class AutoencoderFamily:
  """The methods that do not depend on what lies between encoder and decoder."""

  def make_module(self, config: AutoencoderConfig):
    """See `TokenizerFamily`."""
    return lambda key: Autoencoder(nnx.Rngs(params=key), config)

  def encode_posterior(self, module: Autoencoder, video):
    """See `TokenizerFamily`."""
    return module.config.posterior_of(encode(module.encoder, video))

  def encode(self, module: Autoencoder, video):
    """See `TokenizerFamily`."""
    return module.config.latents_of(encode(module.encoder, video))

  def encode_bytes(self, config: AutoencoderConfig, shape) -> float:
    """See `TokenizerFamily`."""
    rows, frames = part_of(config.temporal_stride, shape)
    cells = rows * frames * shape[2] * shape[3] / config.patch_size**2
    return _ENCODER_ARRAYS * cells * config.base_channels * config.multipliers[0] * 4

  def flops(self, config: AutoencoderConfig, num_frames: int, resolution) -> tuple[int, int]:
    """See `TokenizerFamily`."""
    clip = (config, num_frames, resolution)
    return encoder_flops(*clip), decoder_flops(*clip)

  def make_adversary(self, loss: ReconstructionLoss) -> Adversary | None:
    """See `TokenizerFamily`."""
    return adversary_of(loss)

  def load_frozen(self, loss: ReconstructionLoss) -> dict:
    """See `TokenizerFamily`."""
    return load_frozen(loss)

  def frozen_shapes(self, loss: ReconstructionLoss) -> dict:
    """See `TokenizerFamily`."""
    if loss.lpips == 0:
      return {}
    return {"lpips": {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in lpips.shapes().items()}}


def check_adversary(loss: ReconstructionLoss | None, resolution: tuple[int, int]) -> None:
  """Raises ValueError if a loss has a discriminator that cannot see clips of a resolution."""
  if loss is None or loss.adversarial.weight == 0:
    return
  try:
    loss.adversarial.discriminator.check_resolution(resolution)
  except ValueError as error:
    raise ValueError(f"loss.adversarial.discriminator: {error}") from None
