"""The converted autoencoders as families; see `tokenizers.base.TokenizerFamily`."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx

from videoar_jax.tokenizers.batch_parts import MAX_PIXELS, part_of
from videoar_jax.tokenizers.coder import Coder
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.tokenizers.files import is_saved, read_params
from videoar_jax.tokenizers.kl.coders import ImageCoder, OpenSoraCoder
from videoar_jax.tokenizers.kl.flops import decoder_flops, encoder_flops
from videoar_jax.tokenizers.kl.layouts import AutoencoderKLConfig, ImageKLConfig, OpenSoraConfig
from videoar_jax.tokenizers.kl.network import AutoencoderKL
from videoar_jax.train.state import Template

_NOT_TRAINED = "these tokenizers are converted, not trained; use the tokenizer family kl to train"
# Arrays of a layer that encoding holds at once: its input, and those of a residual block.
_ARRAYS = 4


@dataclasses.dataclass(frozen=True)
class NoLoss:
  """Nothing: a converted tokenizer is not trained."""


class FrozenFamily:
  """The methods that do not depend on the layout."""

  loss = NoLoss

  def check(self, config: AutoencoderKLConfig, loss: NoLoss | None, resolution) -> None:
    """See `TokenizerFamily`."""
    if loss is not None:
      raise ValueError(f"kind='tokenizer': {_NOT_TRAINED}")
    config.latent_shape(1, resolution)

  def make_module(self, config: AutoencoderKLConfig):
    """See `TokenizerFamily`."""
    return lambda key: AutoencoderKL(nnx.Rngs(params=key), config)

  def make_task(self, config, loss, resolution, frozen=None):
    """Raises ValueError: there is no training task."""
    raise ValueError(f"the tokenizer family {self.name} has no training task: {_NOT_TRAINED}")

  def encode_posterior(self, module: AutoencoderKL, video):
    """See `TokenizerFamily`."""
    return module.config.posterior_of(encode(module.encoder, video))

  def encode(self, module: AutoencoderKL, video):
    """See `TokenizerFamily`."""
    return module.config.latents_of(encode(module.encoder, video))

  def flops(self, config: AutoencoderKLConfig, num_frames: int, resolution) -> tuple[int, int]:
    """See `TokenizerFamily`."""
    clip = (config, num_frames, resolution)
    return encoder_flops(*clip), decoder_flops(*clip)

  def make_adversary(self, loss: NoLoss) -> None:
    """See `TokenizerFamily`."""

  def load_frozen(self, loss: NoLoss) -> dict:
    """See `TokenizerFamily`."""
    return {}

  def frozen_shapes(self, loss: NoLoss) -> dict:
    """See `TokenizerFamily`."""
    return {}

  def is_converted(self, folder: pathlib.Path) -> bool:
    """See `TokenizerFamily`."""
    return is_saved(folder, self.name)

  def load_converted(self, folder: pathlib.Path) -> Coder:
    """See `TokenizerFamily`."""
    saved, params = read_params(folder, self)
    template = Template.of(self.make_module(saved.config))
    return self.make_tokenizer(template.module(jax.tree.map(jnp.asarray, params)))

  def check_init(self, folder: pathlib.Path, config: AutoencoderKLConfig) -> None:
    """See `TokenizerFamily`."""
    raise ValueError(f"{folder}: {_NOT_TRAINED}")

  def load_init(self, folder, config, temporal: str, key) -> tuple[dict, list[str]]:
    """See `TokenizerFamily`."""
    raise ValueError(f"{folder}: {_NOT_TRAINED}")


class KLImage(FrozenFamily):
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


class KLOpenSora(FrozenFamily):
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
    # A frame at full resolution, and the first array of all frames, at half of it, with its copy.
    return 4 * rows * (_ARRAYS * pixels * first + 2 * frames * pixels / 4 * second)
