"""The continuous tokenizer as a family; see `tokenizers.base.TokenizerFamily`."""

import pathlib

from videoar_jax.tokenizers.autoencoder import Autoencoder
from videoar_jax.tokenizers.coder import Coder
from videoar_jax.tokenizers.family import AutoencoderFamily, check_adversary
from videoar_jax.tokenizers.files import is_saved, read_module
from videoar_jax.tokenizers.kl.config import KLConfig
from videoar_jax.tokenizers.kl.task import KLLossConfig, KLTask

_NOT_CONVERTED = "no public tokenizer of this kind can be converted yet; leave init.from out"


class KL(AutoencoderFamily):
  """A causal 3-D autoencoder with normally distributed latents."""

  name = "kl"
  network = KLConfig
  loss = KLLossConfig

  def check(self, config: KLConfig, loss: KLLossConfig | None, resolution) -> None:
    """See `TokenizerFamily`."""
    config.latent_shape(1, resolution)
    check_adversary(loss, resolution)

  def make_task(self, config, loss, resolution, frozen=None) -> KLTask:
    """See `TokenizerFamily`."""
    return KLTask(config, loss, frozen)

  def make_tokenizer(self, module: Autoencoder, resolution=None) -> Coder:
    """See `TokenizerFamily`."""
    return Coder(module)

  def is_converted(self, folder: pathlib.Path) -> bool:
    """See `TokenizerFamily`."""
    return is_saved(folder, self.name)

  def load_converted(self, folder: pathlib.Path) -> Coder:
    """See `TokenizerFamily`."""
    return self.make_tokenizer(read_module(folder, self))

  def check_init(self, folder: pathlib.Path, config: KLConfig) -> None:
    """See `TokenizerFamily`."""
    raise ValueError(f"{folder}: {_NOT_CONVERTED}")

  def load_init(self, folder, config, temporal: str, key) -> tuple[dict, list[str]]:
    """See `TokenizerFamily`."""
    raise ValueError(f"{folder}: {_NOT_CONVERTED}")
