"""A trained autoencoder: video to latents and back, whole clips or in chunks."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videoar_jax.nn.layers import at_least_float32
from videoar_jax.parallel.compiler import jitted
from videoar_jax.parallel.processes import fetch
from videoar_jax.tokenizers.autoencoder import State
from videoar_jax.tokenizers.base import TokenizerConfig
from videoar_jax.tokenizers.pixels import in_type_of, type_of


class Coder:
  """An autoencoder that codes clips; a tokenizer family adds what is its own.

  A long clip is coded in chunks; a state carries what later frames need from earlier ones:

    latents, state = tokenizer.encode_chunk(video[:, :9])
    more, state = tokenizer.encode_chunk(video[:, 9:17], state)

  A state is arrays in nested dicts: it can be saved, and the clip continued later.

  Args:
    autoencoder: the trained module.
  """

  def __init__(self, autoencoder: nnx.Module):
    self.autoencoder = autoencoder
    self._encode, self._decode = _encode_whole, _decode_whole

  @property
  def config(self) -> TokenizerConfig:
    """Static settings of the network."""
    return self.autoencoder.config

  @property
  def dtype(self) -> np.dtype:
    """Type of the weights, in which it computes."""
    return type_of(self.autoencoder)

  def encode(
    self, video: Float[Array | np.ndarray, "b f H W 3"], chunk: int | None = None
  ) -> Float[Array | np.ndarray, "b t h w d"]:
    """Encodes a clip in [-1, 1]; see `Autoencoder.latents`.

    Args:
      video: of 1 + tau k frames.
      chunk: latent frames to encode at a time, so that memory does not grow with the clip; the
        result is then in host memory. None for all at once.
    Raises:
      ValueError: the clip is not `[b, f, H, W, 3]` of floats, or its frames or size do not fit.
    """
    self._check_video(video)
    num_latents, *_ = self.config.latent_shape(video.shape[1], video.shape[2:4])
    if chunk is None:
      return self._encode(self.autoencoder, jnp.asarray(video))
    tau = self.config.temporal_stride
    ends = [1 + tau * (end - 1) for end in chunk_ends(num_latents, chunk)]
    return in_chunks(self.encode_chunk, video, ends, num_latents)

  def encode_chunk(
    self, video: Float[Array | np.ndarray, "b f H W 3"], state: State | None = None
  ) -> tuple[Float[Array, "b t h w d"], State]:
    """Encodes the next frames of a clip; all chunks together give the latents of the whole clip.

    Args:
      video: 1 + tau k frames at the start of a clip, tau k later.
      state: from the chunk before; None starts a clip.
    Raises:
      ValueError: the frames do not fit, or the state is of clips of another size or number.
    """
    self._check_video(video)
    b, num_frames, *size, _ = video.shape
    tau, p = self.config.temporal_stride, self.config.patch_size
    if state is not None and (num_frames < tau or num_frames % tau):
      raise ValueError(f"video: a later chunk has {tau} k frames, got {num_frames}")
    self.config.latent_shape(num_frames + (state is not None), tuple(size))
    _check_state(state, (b, size[0] // p, size[1] // p), self.dtype)
    return _encode_part(self.autoencoder, jnp.asarray(video), state)

  def _check_video(self, video) -> None:
    if video.ndim != 5 or video.shape[-1] != 3:
      raise ValueError(f"video: needs shape [b, f, H, W, 3], got {video.shape}")
    if not jnp.issubdtype(video.dtype, jnp.floating):
      raise ValueError(f"video: needs floats in [-1, 1], got {video.dtype}; use pixels / 127.5 - 1")

  def decode(
    self, latents: Float[Array | np.ndarray, "b t h w d"], chunk: int | None = None
  ) -> Float[Array | np.ndarray, "b f H W 3"]:
    """Decodes latents to a clip in [-1, 1].

    Args:
      latents: of a whole clip.
      chunk: latent frames to decode at a time, as in `encode`.
    Raises:
      ValueError: the latents are not `[b, t, h, w, d]` of this tokenizer's d.
    """
    self._check_latents(latents)
    if chunk is None:
      return self._decode(self.autoencoder, jnp.asarray(latents))
    num_latents = latents.shape[1]
    num_frames = 1 + self.config.temporal_stride * (num_latents - 1)
    return in_chunks(self.decode_chunk, latents, chunk_ends(num_latents, chunk), num_frames)

  def decode_chunk(
    self, latents: Float[Array | np.ndarray, "b t h w d"], state: State | None = None
  ) -> tuple[Float[Array, "b f H W 3"], State]:
    """Decodes the next latent frames of a clip; each becomes tau frames, the first of a clip one.

    Args:
      latents: any number of frames.
      state: from the chunk before; None starts a clip.
    Raises:
      ValueError: the latents do not fit, or the state is of clips of another size or number.
    """
    self._check_latents(latents)
    _check_state(state, (latents.shape[0], *latents.shape[2:4]), self.dtype)
    return _decode_part(self.autoencoder, jnp.asarray(latents), state)

  def _check_latents(self, latents) -> None:
    d = self.config.num_channels
    if latents.ndim != 5 or latents.shape[-1] != d or latents.shape[1] < 1:
      raise ValueError(f"latents: needs shape [b, t, h, w, {d}], got {latents.shape}")


def _encode(module: nnx.Module, video: Array, past: State | None):
  encoded, last = module.encoder.chunk(in_type_of(module, video), past)
  return module.config.latents_of(at_least_float32(encoded)), last


def _decode(module: nnx.Module, latents: Array, past: State | None):
  video, last = module.decoder.chunk(in_type_of(module, latents), past)
  return jnp.clip(at_least_float32(video), -1.0, 1.0), last


# A whole clip is one chunk; its state is not returned, so the compiler removes it.
def _encode_clip(module: nnx.Module, video: Array):
  return _encode(module, video, None)[0]


def _decode_clip(module: nnx.Module, latents: Array):
  return _decode(module, latents, None)[0]


# Programs of all coders: a second one of the same kind compiles nothing.
_encode_part, _decode_part = jitted(_encode), jitted(_decode)
_encode_whole, _decode_whole = jitted(_encode_clip), jitted(_decode_clip)


def chunk_ends(num_frames: int, chunk: int) -> list[int]:
  """Returns where each chunk of latent frames ends."""
  if chunk < 1:
    raise ValueError(f"chunk={chunk} must be at least 1 latent frame")
  return [*range(chunk, num_frames, chunk), num_frames]


def in_chunks(code, x, ends: list[int], num_out: int) -> np.ndarray:
  """Codes a clip's chunks, one after the other, to `num_out` frames."""
  result, state, start, at = None, None, 0, 0
  for end in ends:
    part, state = code(x[:, start:end], state)
    # Fetched before the next one starts, so that the device holds a single chunk.
    part = fetch(part)
    if result is None:
      result = np.empty((part.shape[0], num_out, *part.shape[2:]), part.dtype)
    result[:, at : at + part.shape[1]] = part
    start, at = end, at + part.shape[1]
  return result


def _check_state(state: State | None, wanted: tuple[int, int, int], dtype: np.dtype) -> None:
  if state is None:
    return
  b, _, height, width, _ = state["conv_in"].shape
  if (b, height, width) != wanted:
    raise ValueError(f"state: has [b, height, width] = {(b, height, width)}, needs {wanted}")
  if state["conv_in"].dtype != dtype:
    raise ValueError(
      f"state: is of a tokenizer in {state['conv_in'].dtype}, this one computes in {dtype}"
    )
