"""Encodes a batch a few clips and a few frames at a time.

For one clip of 33 frames of 384x672 pixels, each of the encoder's activations at full resolution
takes 4 GiB, and TPU's compiler is slow for arrays of that size. So each device loops over its
clips, and over each clip's frames as in streaming, in parts with a bounded number of pixels:
neither memory nor the program grows with the batch or the clip. Nothing is kept for a backward
pass: the encoder is frozen while a generator trains.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, UInt8

from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES, num_shards
from videoar_jax.tokenizers.bsq.autoencoder import Encoder
from videoar_jax.tokenizers.pixels import to_float

# Most pixels that a device encodes at once, if clips and network allow: 0.5 GiB for each activation
# of 128 channels. Batches of fewer pixels are encoded whole.
MAX_PIXELS = 2**20


def encode(
  encoder: Encoder, video: UInt8[Array, "b f H W 3"], max_pixels: int = MAX_PIXELS
) -> Float[Array, "b t h w d"]:
  """Encodes clips; inside jit on a mesh, each device encodes its own.

  Args:
    encoder: the network, whole on every device.
    video: clips of 1 + tau k frames.
    max_pixels: most pixels that a device encodes at once, but at least tau frames of one clip.
  """
  num_parts = num_shards("batch")
  if video[..., 0].size <= num_parts * max_pixels:
    return encoder(to_float(video))

  def encode_own(encoder, video):
    return _in_groups(encoder, video, max_pixels)

  if num_parts == 1:
    return encode_own(encoder, video)
  batch = PartitionSpec(LOGICAL_AXIS_RULES["batch"])
  specs = PartitionSpec(), batch
  # Without shard_map, the compiler would make each device loop over the clips of all devices.
  return jax.shard_map(encode_own, in_specs=specs, out_specs=batch, check_vma=False)(encoder, video)


def part_of(
  temporal_stride: int, shape: tuple[int, ...], max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
  """Returns how many clips of how many frames a device encodes at once.

  Args:
    temporal_stride: frames of a latent frame.
    shape: of the device's clips, `(b, f, H, W, ...)`.
    max_pixels: see `encode`.
  """
  b, f, height, width, *_ = shape
  if b * f * height * width <= max_pixels:
    return b, f
  frames = min(f, temporal_stride)
  most = max(1, max_pixels // (frames * height * width))
  return max(rows for rows in range(1, min(b, most) + 1) if b % rows == 0), frames


def _in_groups(encoder, video, max_pixels: int):
  """Encodes clips in equal groups, as large as `max_pixels` allows."""
  size, _ = part_of(encoder.config.temporal_stride, video.shape, max_pixels)
  groups = video.reshape(-1, size, *video.shape[1:])
  latents = jax.lax.map(lambda group: _in_chunks(encoder, group), groups)
  return latents.reshape(len(video), *latents.shape[2:])


def _in_chunks(encoder, video):
  """Encodes one latent frame after the other.

  The first latent frame covers one frame, the others tau. The first frame is padded to tau frames
  too, of which only the last is used: this wastes some arithmetic, but halves the program.
  """
  tau = encoder.config.temporal_stride
  if video.shape[1] == 1:
    return encoder(to_float(video))
  _, state = jax.eval_shape(encoder.chunk, jax.eval_shape(to_float, video[:, :1]))
  state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
  padded = jnp.pad(video, ((0, 0), (tau - 1, 0), (0, 0), (0, 0), (0, 0)))

  def step(state, i):
    frames = jax.lax.dynamic_slice_in_dim(padded, i * tau, tau, axis=1)
    latents, state = encoder.chunk(to_float(frames), state, i == 0)
    return state, latents[:, 0]

  _, latents = jax.lax.scan(step, state, jnp.arange(padded.shape[1] // tau))
  return jnp.moveaxis(latents, 0, 1)
