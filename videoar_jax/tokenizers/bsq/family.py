"""The bitwise tokenizer as a family; see `tokenizers.base.TokenizerFamily`."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videoar_jax.tokenizers import lpips
from videoar_jax.tokenizers.bsq.autoencoder import Autoencoder, AutoencoderConfig, autoencoder_of
from videoar_jax.tokenizers.bsq.encoding import encode
from videoar_jax.tokenizers.bsq.files import is_saved, read_params, read_saved
from videoar_jax.tokenizers.bsq.flops import decoder_flops, encoder_flops
from videoar_jax.tokenizers.bsq.inflation import check_inflatable, inflate
from videoar_jax.tokenizers.bsq.schedules import check_schedule, parse_schedule
from videoar_jax.tokenizers.bsq.task import (
  TokenizerLossConfig,
  TokenizerTask,
  adversary_of,
  load_frozen,
)
from videoar_jax.tokenizers.bsq.tokenizer import Tokenizer
from videoar_jax.tokenizers.parts import part_of
from videoar_jax.train.adversary import Adversary

# Arrays with the encoder's first width that encoding holds at once, cached earlier frames included:
# taken from TPU's compiler, for clips of 384x672 pixels.
_ENCODER_ARRAYS = 7


class BSQ:
  """Multi-scale binary spherical quantization of a causal 3-D autoencoder."""

  network = AutoencoderConfig
  loss = TokenizerLossConfig

  def check(self, config: AutoencoderConfig, loss: TokenizerLossConfig | None, resolution) -> None:
    """See `TokenizerFamily`."""
    _, *grid = config.latent_shape(1, resolution)
    scales = config.scales(resolution)
    if loss is None:
      # A schedule that does not fit the run's own clips is a mistake; others' scales may differ.
      scales = parse_schedule(config.schedule) or scales
    check_schedule(scales, tuple(grid))
    if loss is not None and loss.adversarial.weight > 0:
      try:
        loss.adversarial.discriminator.check_resolution(resolution)
      except ValueError as error:
        raise ValueError(f"loss.adversarial.discriminator: {error}") from None

  def make_module(self, config: AutoencoderConfig):
    """See `TokenizerFamily`."""
    return lambda key: Autoencoder(nnx.Rngs(params=key), config)

  def make_task(self, config, loss, resolution, frozen=None) -> TokenizerTask:
    """See `TokenizerFamily`."""
    return TokenizerTask(config, config.scales(resolution), loss, frozen)

  def make_tokenizer(self, module: Autoencoder, resolution=None) -> Tokenizer:
    """See `TokenizerFamily`."""
    if resolution is None:
      return Tokenizer(module, parse_schedule(module.config.schedule) or None)
    return Tokenizer(module, module.config.scales(resolution))

  def encode(self, module: Autoencoder, video):
    """See `TokenizerFamily`."""
    return encode(module.encoder, video)

  def encode_bytes(self, config: AutoencoderConfig, shape) -> float:
    """See `TokenizerFamily`."""
    rows, frames = part_of(config.temporal_stride, shape)
    cells = rows * frames * shape[2] * shape[3] / config.patch_size**2
    return _ENCODER_ARRAYS * cells * config.base_channels * config.multipliers[0] * 4

  def flops(self, config: AutoencoderConfig, num_frames: int, resolution) -> tuple[int, int]:
    """See `TokenizerFamily`."""
    clip = (config, num_frames, resolution)
    return encoder_flops(*clip), decoder_flops(*clip)

  def make_adversary(self, loss: TokenizerLossConfig) -> Adversary | None:
    """See `TokenizerFamily`."""
    return adversary_of(loss)

  def load_frozen(self, loss: TokenizerLossConfig) -> dict:
    """See `TokenizerFamily`."""
    return load_frozen(loss)

  def frozen_shapes(self, loss: TokenizerLossConfig) -> dict:
    """See `TokenizerFamily`."""
    if loss.lpips == 0:
      return {}
    return {"lpips": {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in lpips.shapes().items()}}

  def is_converted(self, folder: pathlib.Path) -> bool:
    """See `TokenizerFamily`."""
    return is_saved(folder)

  def load_converted(self, folder: pathlib.Path) -> Tokenizer:
    """See `TokenizerFamily`."""
    saved, params = read_params(folder)
    params = jax.tree.map(jnp.asarray, params)
    return self.make_tokenizer(autoencoder_of(saved.config, params))

  def check_init(self, folder: pathlib.Path, config: AutoencoderConfig) -> None:
    """See `TokenizerFamily`."""
    check_inflatable(read_saved(folder).config, config)

  def load_init(self, folder, config, temporal: str, key) -> tuple[dict, list[str]]:
    """See `TokenizerFamily`."""
    saved, params = read_params(folder)
    params, fresh = inflate(params, saved.config, config, temporal, key)
    lines = [f"starts from {folder} ({saved.source}), kernels of earlier frames are {temporal}"]
    if fresh:
      bits = f"{config.num_bits} bits instead of {saved.config.num_bits}"
      lines.append(f"random, because of {bits}: {', '.join(fresh)}")
    return params, lines
