"""InfinityStar's tokenizer as a family; see `tokenizers.base.TokenizerFamily`."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx

from videoar_jax.tokenizers.batch_parts import part_of
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.tokenizers.files import is_saved, read_params
from videoar_jax.tokenizers.star.config import StarConfig
from videoar_jax.tokenizers.star.flops import decoder_flops, encode_bytes, encoder_flops
from videoar_jax.tokenizers.star.network import StarAutoencoder, autoencoder_of
from videoar_jax.tokenizers.star.tokenizer import StarTokenizer

_NOT_TRAINED = (
  "a tokenizer of the family star is converted from public weights, not trained: "
  "`python -m videoar_jax.convert star_tokenizer`"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoLoss:
  """None: these tokenizers are not trained."""


class Star:
  """A causal video autoencoder, whose latents are quantized several times at each scale."""

  name = "star"
  network = StarConfig
  loss = NoLoss

  def check(self, config: StarConfig, loss: NoLoss | None, resolution) -> None:
    """See `TokenizerFamily`."""
    if loss is not None:
      raise ValueError(f"kind='tokenizer': {_NOT_TRAINED}")
    config.latent_shape(1, resolution)

  def make_module(self, config: StarConfig):
    """See `TokenizerFamily`."""
    return lambda key: StarAutoencoder(nnx.Rngs(params=key), config)

  def make_task(self, config, loss, resolution, frozen=None):
    """Raises ValueError: there is no training task."""
    raise ValueError(_NOT_TRAINED)

  def make_tokenizer(self, module: StarAutoencoder, resolution=None) -> StarTokenizer:
    """See `TokenizerFamily`."""
    return StarTokenizer(module)

  def encode(self, module: StarAutoencoder, video):
    """See `TokenizerFamily`."""
    return encode(module.encoder, video)

  def encode_posterior(self, module: StarAutoencoder, video):
    """Returns the latents: the linear map that makes them mixes channels of the distribution."""
    return encode(module.encoder, video)

  def encode_bytes(self, config: StarConfig, shape) -> float:
    """See `TokenizerFamily`."""
    rows, frames = part_of(config.temporal_stride, shape)
    return encode_bytes(config, rows, frames, tuple(shape[2:]))

  def flops(self, config: StarConfig, num_frames: int, resolution) -> tuple[int, int]:
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

  def load_converted(self, folder: pathlib.Path) -> StarTokenizer:
    """See `TokenizerFamily`."""
    saved, params = read_params(folder, self)
    return self.make_tokenizer(autoencoder_of(saved.config, jax.tree.map(jnp.asarray, params)))

  def check_init(self, folder: pathlib.Path, config: StarConfig) -> None:
    """See `TokenizerFamily`."""
    raise ValueError(f"{folder}: {_NOT_TRAINED}")

  def load_init(self, folder, config, temporal: str, key) -> tuple[dict, list[str]]:
    """See `TokenizerFamily`."""
    raise ValueError(f"{folder}: {_NOT_TRAINED}")
