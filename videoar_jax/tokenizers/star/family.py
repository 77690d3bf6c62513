"""InfinityStar's tokenizer as a family; see `tokenizers.base.TokenizerFamily`."""

from flax import nnx

from videoar_jax.tokenizers.batch_parts import part_of
from videoar_jax.tokenizers.frozen import FrozenFamily
from videoar_jax.tokenizers.star.config import StarConfig
from videoar_jax.tokenizers.star.flops import decoder_flops, encode_bytes, encoder_flops
from videoar_jax.tokenizers.star.network import StarAutoencoder
from videoar_jax.tokenizers.star.tokenizer import StarTokenizer


class Star(FrozenFamily):
  """A causal video autoencoder, whose latents are quantized several times at each scale.

  Latents are the means of the encoder's distribution, which `StarTokenizer.draw` draws from: a
  linear map makes latents of it, so it has no log-variance for each of their channels.
  """

  name = "star"
  network = StarConfig
  trained = "bsq"

  def make_module(self, config: StarConfig):
    """See `TokenizerFamily`."""
    return lambda key: StarAutoencoder(nnx.Rngs(params=key), config)

  def make_tokenizer(self, module: StarAutoencoder, resolution=None) -> StarTokenizer:
    """See `TokenizerFamily`."""
    return StarTokenizer(module)

  def encode_bytes(self, config: StarConfig, shape) -> float:
    """See `TokenizerFamily`."""
    rows, frames = part_of(config.temporal_stride, shape)
    return encode_bytes(config, rows, frames, tuple(shape[2:]))

  def flops(self, config: StarConfig, num_frames: int, resolution) -> tuple[int, int]:
    """See `TokenizerFamily`."""
    clip = (config, num_frames, resolution)
    return encoder_flops(*clip), decoder_flops(*clip)
