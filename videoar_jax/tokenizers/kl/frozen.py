"""The converted autoencoders as families; see `tokenizers.base.TokenizerFamily`."""

from flax import nnx

from videoar_jax.tokenizers.batch_parts import MAX_PIXELS, part_of
from videoar_jax.tokenizers.frozen import FrozenFamily
from videoar_jax.tokenizers.kl.coders import ImageCoder, OpenSoraCoder
from videoar_jax.tokenizers.kl.flops import decoder_flops, encoder_flops
from videoar_jax.tokenizers.kl.layouts import AutoencoderKLConfig, ImageKLConfig, OpenSoraConfig
from videoar_jax.tokenizers.kl.network import AutoencoderKL

# Arrays of a layer that encoding holds at once: its input, and those of a residual block.
_ARRAYS = 4


class FrozenKL(FrozenFamily):
  """The methods that do not depend on the layout."""

  trained = "kl"

  def make_module(self, config: AutoencoderKLConfig):
    """See `TokenizerFamily`."""
    return lambda key: AutoencoderKL(nnx.Rngs(params=key), config)

  def flops(self, config: AutoencoderKLConfig, num_frames: int, resolution) -> tuple[int, int]:
    """See `TokenizerFamily`."""
    clip = (config, num_frames, resolution)
    return encoder_flops(*clip), decoder_flops(*clip)


class KLImage(FrozenKL):
  """Stable Diffusion's image autoencoder, which codes each frame of a clip alone."""

  name = "kl_image"
  network = ImageKLConfig

  def make_tokenizer(self, module: AutoencoderKL, resolution=None) -> ImageCoder:
    """See `TokenizerFamily`."""
    return ImageCoder(module)

  def encode_bytes(self, config: ImageKLConfig, shape) -> float:
    """See `TokenizerFamily`."""
    rows, frames = part_of(1, shape)
    return 4 * _ARRAYS * rows * frames * shape[2] * shape[3] * config.block_channels[0]


class KLOpenSora(FrozenKL):
  """The causal video autoencoder of Open-Sora-Plan."""

  name = "kl_opensora"
  network = OpenSoraConfig

  def make_tokenizer(self, module: AutoencoderKL, resolution=None) -> OpenSoraCoder:
    """See `TokenizerFamily`."""
    return OpenSoraCoder(module)

  def encode_bytes(self, config: OpenSoraConfig, shape) -> float:
    """See `TokenizerFamily`."""
    pixels, first, second = shape[2] * shape[3], *config.block_channels[:2]
    rows, frames = part_of(shape[1], shape)
    frames = min(frames, config.tile_frames or frames)
    if rows * frames * pixels <= MAX_PIXELS:
      return 4 * _ARRAYS * rows * frames * pixels * first
    # A frame at full resolution, and the first array of all frames, at half of it.
    return 4 * rows * (_ARRAYS * pixels * first + frames * pixels / 4 * second)
