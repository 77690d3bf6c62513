"""InfinityStar's converted autoencoder: video to latents and back."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videoar_jax.nn.layers import at_least_float32
from videoar_jax.parallel.compiler import jitted
from videoar_jax.tokenizers.autoencoder import State
from videoar_jax.tokenizers.coder import Coder, chunk_ends, in_chunks
from videoar_jax.tokenizers.pixels import in_type_of
from videoar_jax.tokenizers.star.network import StarAutoencoder


@jitted
def _moments_chunk(module: StarAutoencoder, video: Array, past: State | None):
  moments, last = module.encoder.moments_chunk(in_type_of(module, video), past)
  return at_least_float32(moments), last


@jitted
def _latents_of(module: StarAutoencoder, moments: Array, key: Array):
  return module.encoder.latents_of(moments, key)


class StarTokenizer(Coder):
  """The autoencoder; see `Coder`. The quantizer has no parameters: `star.quantizer.quantize`.

  Args:
    autoencoder: the converted module.
  """

  def draw(
    self,
    video: Float[Array | np.ndarray, "b f H W 3"],
    key: jax.Array,
    chunk: int | None = None,
  ) -> Float[Array, "b t h w d"]:
    """Draws latents of a clip from the encoder's distribution, as public code does.

    Args:
      video: in [-1, 1], of 1 + tau k frames.
      key: random key.
      chunk: latent frames to encode at a time, see `encode`; the draw does not depend on it.
    Raises:
      ValueError: the clip is not `[b, f, H, W, 3]` of floats, or its frames or size do not fit.
    """
    self._check_video(video)
    num_latents, *_ = self.config.latent_shape(video.shape[1], video.shape[2:4])
    tau = self.config.temporal_stride
    ends = [1 + tau * (end - 1) for end in chunk_ends(num_latents, chunk or num_latents)]
    moments = in_chunks(self._moments_of, video, ends, num_latents)
    return _latents_of(self.autoencoder, jnp.asarray(moments), key)

  def _moments_of(self, video, state):
    return _moments_chunk(self.autoencoder, jnp.asarray(video), state)
