"""The converted autoencoders: video to scaled latents and back."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videoar_jax.nn.layers import at_least_float32
from videoar_jax.parallel.compiler import jitted
from videoar_jax.parallel.processes import fetch
from videoar_jax.tokenizers.autoencoder import State
from videoar_jax.tokenizers.coder import Coder, in_chunks
from videoar_jax.tokenizers.kl.network import AutoencoderKL
from videoar_jax.tokenizers.kl.tiling import tile_ends
from videoar_jax.tokenizers.pixels import in_type_of


class ImageCoder(Coder):
  """An image autoencoder, which codes each frame of a clip alone; see `Coder`."""

  def encode_chunk(
    self, video: Float[Array | np.ndarray, "b f H W 3"], state: State | None = None
  ) -> tuple[Float[Array, "b t h w d"], State]:
    """Encodes the next frames of a clip; the state is empty."""
    return self.encode(video), {}

  def decode_chunk(
    self, latents: Float[Array | np.ndarray, "b t h w d"], state: State | None = None
  ) -> tuple[Float[Array, "b f H W 3"], State]:
    """Decodes the next latent frames of a clip; the state is empty."""
    return self.decode(latents), {}


class OpenSoraCoder(Coder):
  """The video autoencoder; see `Coder`.

  Its norms take their statistics over all frames of a clip, and its decoder interpolates between a
  frame and the next one: no frame is final before the last one is known. So clips are coded in
  chunks only with `config.tiling`, where a tile is a clip of its own. Without it, `chunk` bounds
  what is held besides the activations between layers, of which at most three are held at a time.

  Args:
    autoencoder: the converted module.
  """

  def encode(
    self, video: Float[Array | np.ndarray, "b f H W 3"], chunk: int | None = None
  ) -> Float[Array | np.ndarray, "b t h w d"]:
    """Encodes a clip in [-1, 1].

    Args:
      video: of 1 + tau k frames; in tiles, of up to 17 or 1 + 16 k.
      chunk: any number computes each layer frame by frame, and tiles one call after the other; the
        result is then in host memory. None does so if the clip has many pixels, on the device.
    Raises:
      ValueError: the clip is not `[b, f, H, W, 3]` of floats, or its frames or size do not fit.
    """
    self._check_video(video)
    num_latents, *_ = self.config.latent_shape(video.shape[1], video.shape[2:4])
    if chunk is None:
      return self._encode(self.autoencoder, jnp.asarray(video))
    tile = self.config.tile_frames
    if tile is None or video.shape[1] <= tile:
      return fetch(_encode_by_frame(self.autoencoder, jnp.asarray(video)))
    return in_chunks(self.encode_chunk, video, tile_ends(video.shape[1], tile), num_latents)

  def encode_chunk(
    self, video: Float[Array | np.ndarray, "b f H W 3"], state: State | None = None
  ) -> tuple[Float[Array, "b t h w d"], State]:
    """Encodes the next tiles of a clip; all chunks together give the latents of the whole clip.

    Args:
      video: 17 + 16 k frames at the start of a clip, 16 k later.
      state: from the chunk before; None starts a clip.
    Raises:
      ValueError: clips are coded whole, or the frames do not fit.
    """
    self._check_video(video)
    video, is_start = self._tiles(video, state, self.config.tile_frames, "video")
    self.config.latent_shape(video.shape[1], video.shape[2:4])
    latents = _encode_by_frame(self.autoencoder, video)
    return latents if is_start else latents[:, 1:], {"last": video[:, -1:]}

  def decode(
    self, latents: Float[Array | np.ndarray, "b t h w d"], chunk: int | None = None
  ) -> Float[Array | np.ndarray, "b f H W 3"]:
    """Decodes latents to a clip in [-1, 1].

    In tiles, latents after the last complete tile are dropped, as in the public code; `encode`
    makes none.

    Args:
      latents: of a whole clip.
      chunk: as in `encode`.
    Raises:
      ValueError: the latents are not `[b, t, h, w, d]` of this tokenizer's d.
    """
    self._check_latents(latents)
    if chunk is None:
      return self._decode(self.autoencoder, jnp.asarray(latents))
    tile = self.config.tile_latents
    if tile is None or latents.shape[1] <= tile:
      return fetch(_decode_by_frame(self.autoencoder, jnp.asarray(latents)))
    ends = tile_ends(latents.shape[1], tile)
    num_frames = 1 + self.config.temporal_stride * (ends[-1] - 1)
    return in_chunks(self.decode_chunk, latents, ends, num_frames)

  def decode_chunk(
    self, latents: Float[Array | np.ndarray, "b t h w d"], state: State | None = None
  ) -> tuple[Float[Array, "b f H W 3"], State]:
    """Decodes the next tiles of a clip.

    Args:
      latents: 5 + 4 k frames at the start of a clip, 4 k later.
      state: from the chunk before; None starts a clip.
    Raises:
      ValueError: clips are coded whole, or the latents do not fit.
    """
    self._check_latents(latents)
    latents, is_start = self._tiles(latents, state, self.config.tile_latents, "latents")
    video = _decode_by_frame(self.autoencoder, latents)
    return video if is_start else video[:, 1:], {"last": latents[:, -1:]}

  def _tiles(self, x, state: State | None, size: int | None, name: str) -> tuple[Array, bool]:
    """Returns complete tiles, and whether they start a clip.

    Raises:
      ValueError: they are not complete, or clips are coded whole.
    """
    if size is None:
      raise ValueError(
        "this tokenizer normalizes over all frames of a clip: code clips whole, or convert it with "
        "--tiling, which codes them in tiles"
      )
    num, step = x.shape[1], size - 1
    if state is None:
      if num < size or (num - 1) % step:
        raise ValueError(f"{name}: the first chunk has {size} + {step} k frames, got {num}")
      return jnp.asarray(x), True
    last = state["last"]
    if num < step or num % step:
      raise ValueError(f"{name}: a later chunk has {step} k frames, got {num}")
    if last.shape[:1] + last.shape[2:] != x.shape[:1] + x.shape[2:]:
      raise ValueError(f"state: is of clips of another number or size, {last.shape}, not {x.shape}")
    return jnp.concatenate([last, x], axis=1), False


@jitted
def _encode_by_frame(module: AutoencoderKL, video: Array) -> Array:
  encoded = module.encoder(in_type_of(module, video), True)
  return module.config.latents_of(at_least_float32(encoded))


@jitted
def _decode_by_frame(module: AutoencoderKL, latents: Array) -> Array:
  video = module.decoder(in_type_of(module, latents), True)
  return jnp.clip(at_least_float32(video), -1.0, 1.0)
