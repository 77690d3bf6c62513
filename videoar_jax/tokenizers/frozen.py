"""What families of converted tokenizers share; see `tokenizers.base.TokenizerFamily`."""

import dataclasses
import pathlib

from flax import nnx

from videoar_jax.tokenizers.base import Tokenizer, TokenizerConfig
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.tokenizers.files import is_saved, read_module


@dataclasses.dataclass(frozen=True)
class NoLoss:
  """Nothing: a converted tokenizer is not trained."""


class FrozenFamily:
  """The methods that do not depend on the network.

  Attributes:
    trained: name of the tokenizer family to train instead.
  """

  loss = NoLoss
  trained: str

  @property
  def _not_trained(self) -> str:
    return (
      "these tokenizers are converted, not trained; use the tokenizer family "
      f"{self.trained} to train"
    )

  def check(self, config: TokenizerConfig, loss: NoLoss | None, resolution) -> None:
    """See `TokenizerFamily`."""
    if loss is not None:
      raise ValueError(f"kind='tokenizer': {self._not_trained}")
    config.latent_shape(1, resolution)

  def make_task(self, config, loss, resolution, frozen=None):
    """Raises ValueError: there is no training task."""
    raise ValueError(f"the tokenizer family {self.name} has no training task: {self._not_trained}")

  def encode_posterior(self, module: nnx.Module, video):
    """See `TokenizerFamily`."""
    return module.config.posterior_of(encode(module.encoder, video))

  def encode(self, module: nnx.Module, video):
    """See `TokenizerFamily`."""
    return module.config.latents_of(encode(module.encoder, video))

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

  def load_converted(self, folder: pathlib.Path) -> Tokenizer:
    """See `TokenizerFamily`."""
    return self.make_tokenizer(read_module(folder, self))

  def check_init(self, folder: pathlib.Path, config: TokenizerConfig) -> None:
    """See `TokenizerFamily`."""
    raise ValueError(f"{folder}: {self._not_trained}")

  def load_init(self, folder, config, temporal: str, key) -> tuple[dict, list[str]]:
    """See `TokenizerFamily`."""
    raise ValueError(f"{folder}: {self._not_trained}")
