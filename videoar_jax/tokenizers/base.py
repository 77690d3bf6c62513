"""The interface of a tokenizer family: a video autoencoder with discrete or continuous latents."""

import pathlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from videoar_jax.train.adversary import Adversary
from videoar_jax.train.task import Task

State = Any  # What the next chunk of a clip needs from earlier ones: arrays in nested dicts.


@runtime_checkable
class TokenizerConfig(Protocol):
  """The fields of `config.tokenizer` that code outside the family reads.

  Attributes:
    temporal_stride: `tau`; a clip of 1 + tau k frames has 1 + k latent frames.
    spatial_stride: side of a latent cell in pixels.
    num_channels: channels of a latent cell.
    num_encoded: channels of what latents are drawn from; as many without a distribution.
    sees_whole_clips: any frame of latents or of decoded pixels depends on all frames of a clip.
  """

  temporal_stride: int
  spatial_stride: int
  num_channels: int
  num_encoded: int
  sees_whole_clips: bool

  def latent_shape(self, num_frames: int, resolution: tuple[int, int]) -> tuple[int, int, int]:
    """Returns (t, h, w) of a clip's latents; ValueError names what does not fit."""

  def posterior_of(self, encoded: Float[Array, "b t h w e"]) -> Float[Array, "b t h w e"]:
    """Returns what latents are drawn from, given what the encoder made."""

  def latents_of(
    self, encoded: Float[Array, "b t h w e"], key: jax.Array | None = None
  ) -> Float[Array, "b t h w d"]:
    """Draws latents, or takes their means without a key; without a distribution, both are one."""


@runtime_checkable
class Tokenizer(Protocol):
  """A trained tokenizer, which computes in `dtype`, that of its weights."""

  config: TokenizerConfig
  dtype: np.dtype

  def encode(
    self, video: Float[Array, "b f H W 3"], chunk: int | None = None
  ) -> Float[Array, "b t h w d"]:
    """Returns the latents of clips in [-1, 1]."""

  def decode(
    self, latents: Float[Array, "b t h w d"], chunk: int | None = None
  ) -> Float[Array, "b f H W 3"]:
    """Returns clips in [-1, 1]."""

  def encode_chunk(self, video, state: State | None = None) -> tuple[Array, State]:
    """Encodes the next frames of a clip."""

  def decode_chunk(self, latents, state: State | None = None) -> tuple[Array, State]:
    """Decodes the next latent frames of a clip."""


@runtime_checkable
class TokenizerFamily(Protocol):
  """A kind of tokenizer. Trainer, data, caches and evaluation use only this interface.

  Attributes:
    name: its key in `TOKENIZERS`, and in the files of converted tokenizers.
    network: dataclass of `config.tokenizer`, a `TokenizerConfig`.
    loss: dataclass of a tokenizer stage's `loss`.
  """

  name: str
  network: type
  loss: type

  def check(self, config: TokenizerConfig, loss: Any, resolution: tuple[int, int]) -> None:
    """Raises ValueError if a stage cannot train on clips of a resolution; names the field.

    Without a loss, the clips are the run's own.
    """

  def make_module(self, config: TokenizerConfig) -> Callable[[jax.Array], nnx.Module]:
    """Returns a function from a random key to the network."""

  def make_task(
    self, config: TokenizerConfig, loss: Any, resolution: tuple[int, int], frozen: dict | None
  ) -> Task:
    """Returns a stage's training task; `frozen=None` loads the frozen networks of the loss."""

  def make_tokenizer(
    self, module: nnx.Module, resolution: tuple[int, int] | None = None
  ) -> Tokenizer:
    """Wraps a trained network; `resolution` selects the settings that depend on it, if any."""

  def encode(
    self, module: nnx.Module, video: UInt8[Array, "b f H W 3"]
  ) -> Float[Array, "b t h w d"]:
    """Returns latents, the means of a distribution; called inside jit."""

  def encode_posterior(
    self, module: nnx.Module, video: UInt8[Array, "b f H W 3"]
  ) -> Float[Array, "b t h w e"]:
    """Returns what `config.latents_of` draws latents from: means and log-variances, or latents.

    Called inside jit by a generator's training step, and by the token cache, which stores it.
    """

  def encode_bytes(self, config: TokenizerConfig, shape: tuple[int, int, int, int]) -> float:
    """Estimates the peak bytes of `encode` on one device, for clips of shape [b, f, H, W]."""

  def flops(
    self, config: TokenizerConfig, num_frames: int, resolution: tuple[int, int]
  ) -> tuple[int, int]:
    """Returns the FLOPs of encoding and of decoding a clip."""

  def make_adversary(self, loss: Any) -> Adversary | None:
    """Returns the discriminator that a loss uses; None without one."""

  def load_frozen(self, loss: Any) -> dict[str, dict[str, np.ndarray]]:
    """Loads the frozen networks of a loss; ValueError says how to get missing weights."""

  def frozen_shapes(self, loss: Any) -> dict:
    """Returns the shapes of what `load_frozen` loads."""

  def is_converted(self, folder: pathlib.Path) -> bool:
    """Returns whether a folder holds a converted tokenizer of this family."""

  def load_converted(self, folder: pathlib.Path) -> Tokenizer:
    """Loads a converted tokenizer; ValueError says how it is damaged."""

  def check_init(self, folder: pathlib.Path, config: TokenizerConfig) -> None:
    """Raises ValueError or OSError if a network cannot start from a converted tokenizer."""

  def load_init(
    self, folder: pathlib.Path, config: TokenizerConfig, temporal: str, key: jax.Array
  ) -> tuple[dict, list[str]]:
    """Returns parameters that start from a converted tokenizer, and lines for the log."""
