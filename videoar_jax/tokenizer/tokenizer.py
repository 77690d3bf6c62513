"""The trained tokenizer, for use: video to latents to bits and back."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from videoar_jax.tokenizer import quantizer
from videoar_jax.tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from videoar_jax.tokenizer.schedules import Schedule, check_schedule, default_schedule


@dataclasses.dataclass(frozen=True)
class Codes:
  """A quantized clip.

  Attributes:
    bits: a scale each, uint8 `[b, t, h_s, w_s, d]`.
    latents: the accumulated codes `[b, t, h, w, d]`, what the decoder takes.
  """

  bits: list[UInt8[Array, "b t y x d"]]
  latents: Float[Array, "b t h w d"]


def to_float(video: UInt8[Array, "*b"]) -> Float[Array, "*b"]:
  """Maps pixels 0..255 to [-1, 1]."""
  return jnp.asarray(video, jnp.float32) / 127.5 - 1.0


def to_uint8(video: Float[Array, "*b"]) -> UInt8[Array, "*b"]:
  """Maps [-1, 1] to pixels 0..255, rounded; what is outside is cut."""
  return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


class Tokenizer:
  """An autoencoder with its schedule of scales.

  Args:
    autoencoder: the trained module.
    schedule: scales to use at its own latent grid; other grids take the public or default one.
  """

  def __init__(self, autoencoder: Autoencoder, schedule: Schedule | None = None):
    self.autoencoder = autoencoder
    self.schedule = schedule
    self._encode = jax.jit(lambda module, video: module.encoder(video))
    self._decode = jax.jit(lambda module, latents: module.decoder(latents))
    self._quantize = jax.jit(quantizer.quantize, static_argnums=1)

  @property
  def config(self) -> AutoencoderConfig:
    """Static settings of the network."""
    return self.autoencoder.config

  def latents(self, video: Float[Array, "b f H W 3"]) -> Float[Array, "b t h w d"]:
    """Encodes a clip in [-1, 1], without quantizing.

    Raises:
      ValueError: the clip is not `[b, f, H, W, 3]` of floats, or its frames or size do not fit.
    """
    video = jnp.asarray(video)
    if video.ndim != 5 or video.shape[-1] != 3:
      raise ValueError(f"video: needs shape [b, f, H, W, 3], got {video.shape}")
    if not jnp.issubdtype(video.dtype, jnp.floating):
      raise ValueError(f"video: needs floats in [-1, 1], got {video.dtype}; use pixels / 127.5 - 1")
    self.config.latent_shape(video.shape[1], video.shape[2:4])
    return self._encode(self.autoencoder, video)

  def quantize(self, latents: Float[Array, "b t h w d"], schedule: Schedule | None = None) -> Codes:
    """Quantizes latents, each frame alone.

    Args:
      latents: from `latents`.
      schedule: scales (h, w), ending at the latent grid; None takes the trained one.
    Raises:
      ValueError: the schedule does not increase to the latent grid.
    """
    grid = tuple(latents.shape[-3:-1])
    if schedule is None:
      fits = self.schedule is not None and self.schedule[-1] == grid
      schedule = self.schedule if fits else default_schedule(grid)
    schedule = tuple((int(h), int(w)) for h, w in schedule)
    check_schedule(schedule, grid)
    quantized = self._quantize(jnp.asarray(latents), schedule)
    return Codes(quantized.bits, quantized.latents)

  def decode(self, latents: Float[Array, "b t h w d"]) -> Float[Array, "b f H W 3"]:
    """Decodes accumulated codes to a clip in [-1, 1].

    Raises:
      ValueError: the latents are not `[b, t, h, w, d]` of this tokenizer's d.
    """
    latents = jnp.asarray(latents)
    if latents.ndim != 5 or latents.shape[-1] != self.config.num_bits:
      raise ValueError(
        f"latents: needs shape [b, t, h, w, {self.config.num_bits}], got {latents.shape}"
      )
    return jnp.clip(self._decode(self.autoencoder, latents), -1.0, 1.0)
