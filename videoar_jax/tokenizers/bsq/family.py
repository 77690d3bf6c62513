"""The bitwise tokenizer as a family; see `tokenizers.base.TokenizerFamily`."""

import pathlib

from videoar_jax.tokenizers.autoencoder import Autoencoder
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.bsq.inflation import check_inflatable, inflate
from videoar_jax.tokenizers.bsq.schedules import check_schedule, parse_schedule
from videoar_jax.tokenizers.bsq.task import TokenizerLossConfig, TokenizerTask
from videoar_jax.tokenizers.bsq.tokenizer import Tokenizer
from videoar_jax.tokenizers.family import AutoencoderFamily, check_adversary
from videoar_jax.tokenizers.files import is_saved, read_module, read_params, read_saved


class BSQ(AutoencoderFamily):
  """Multi-scale binary spherical quantization of a causal 3-D autoencoder."""

  name = "bsq"
  network = BSQConfig
  loss = TokenizerLossConfig

  def check(self, config: BSQConfig, loss: TokenizerLossConfig | None, resolution) -> None:
    """See `TokenizerFamily`."""
    _, *grid = config.latent_shape(1, resolution)
    scales = config.scales(resolution)
    if loss is None:
      # A schedule that does not fit the run's own clips is a mistake; others' scales may differ.
      scales = parse_schedule(config.schedule) or scales
    check_schedule(scales, tuple(grid))
    check_adversary(loss, resolution)

  def make_task(self, config, loss, resolution, frozen=None) -> TokenizerTask:
    """See `TokenizerFamily`."""
    return TokenizerTask(config, config.scales(resolution), loss, frozen)

  def make_tokenizer(self, module: Autoencoder, resolution=None) -> Tokenizer:
    """See `TokenizerFamily`."""
    if resolution is None:
      return Tokenizer(module, parse_schedule(module.config.schedule) or None)
    return Tokenizer(module, module.config.scales(resolution))

  def is_converted(self, folder: pathlib.Path) -> bool:
    """See `TokenizerFamily`."""
    return is_saved(folder, self.name)

  def load_converted(self, folder: pathlib.Path) -> Tokenizer:
    """See `TokenizerFamily`."""
    return self.make_tokenizer(read_module(folder, self))

  def check_init(self, folder: pathlib.Path, config: BSQConfig) -> None:
    """See `TokenizerFamily`."""
    check_inflatable(read_saved(folder, self).config, config)

  def load_init(self, folder, config, temporal: str, key) -> tuple[dict, list[str]]:
    """See `TokenizerFamily`."""
    saved, params = read_params(folder, self)
    params, fresh = inflate(params, saved.config, config, temporal, key)
    lines = [f"starts from {folder} ({saved.source}), kernels of earlier frames are {temporal}"]
    if fresh:
      bits = f"{config.num_bits} bits instead of {saved.config.num_bits}"
      lines.append(f"random, because of {bits}: {', '.join(fresh)}")
    return params, lines
