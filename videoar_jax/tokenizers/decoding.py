"""Decodes a batch a few clips and one latent frame at a time.

As in `encoding`, memory grows neither with a device's clips nor with their length: each device
loops over its clips, and over each clip's latent frames as in streaming.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from videoar_jax.parallel.rules import num_shards
from videoar_jax.tokenizers.batch_parts import MAX_PIXELS, part_of
from videoar_jax.tokenizers.encoding import on_each_device
from videoar_jax.tokenizers.pixels import in_type_of, to_uint8


def decode(
  decoder: nnx.Module, latents: Float[Array, "b t h w d"], max_pixels: int = MAX_PIXELS
) -> UInt8[Array, "b f H W 3"]:
  """Decodes accumulated codes to pixels; inside jit on a mesh, each device decodes its own.

  Args:
    decoder: the network, whole on every device. It computes in the type of its weights.
    latents: of whole clips.
    max_pixels: most pixels that a device decodes at once, but at least a latent frame of one clip.
  """
  latents = in_type_of(decoder, latents)
  config, (b, t, h, w, _) = decoder.config, latents.shape
  tau, stride, num_parts = config.temporal_stride, config.spatial_stride, num_shards("batch")
  shape = (b // num_parts, 1 + tau * (t - 1), h * stride, w * stride)
  if b % num_parts or b * shape[1] * shape[2] * shape[3] <= num_parts * max_pixels:
    return to_uint8(decoder(latents))
  step = shape[1] if config.sees_whole_clips else tau
  return on_each_device(_in_chunks, decoder, latents, part_of(step, shape, max_pixels)[0])


def _in_chunks(decoder: nnx.Module, latents):
  """Decodes one latent frame after the other: the first one is a frame, later ones are tau."""
  if decoder.config.sees_whole_clips:
    return to_uint8(decoder(latents))
  first, state = decoder.chunk(latents[:, :1])
  first = to_uint8(first)
  if latents.shape[1] == 1:
    return first

  def step(state, frame):
    video, state = decoder.chunk(frame[:, None], state)
    return state, to_uint8(video)

  _, later = jax.lax.scan(step, state, jnp.moveaxis(latents[:, 1:], 1, 0))
  later = jnp.moveaxis(later, 0, 1)
  later = later.reshape(later.shape[0], -1, *later.shape[3:])
  return jnp.concatenate([first, later], axis=1)
