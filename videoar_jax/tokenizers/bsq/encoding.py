"""Encodes a step's clips a few at a time and a few frames at a time.

Of one clip of 33 frames of 384x672 pixels the encoder's activations at full resolution are 4 GiB
each; and TPU's compiler takes long for arrays of that size. So a device goes through its clips, and
through each one's frames as a stream does, in parts of a bounded number of pixels: neither memory
nor the program grows with the batch or the clip. Nothing is kept for a backward pass: the encoder
in front of a generator is frozen.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, UInt8

from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES, num_shards
from videoar_jax.tokenizers.bsq.autoencoder import Encoder
from videoar_jax.tokenizers.pixels import to_float

# That a device encodes at once, where the clips and the network let it: 0.5 GiB for each activation
# of 128 channels. Batches of fewer pixels are encoded whole.
MAX_PIXELS = 2**20


def encode(
  encoder: Encoder, video: UInt8[Array, "b f H W 3"], max_pixels: int = MAX_PIXELS
) -> Float[Array, "b t h w d"]:
  """Encodes clips; inside jit on a mesh, each device its own.

  Args:
    encoder: the network, whole on every device.
    video: clips of 1 + tau k frames.
    max_pixels: that a device encodes at once; at least one clip's next tau frames are.
  """
  ways = num_shards("batch")
  if video[..., 0].size <= ways * max_pixels:
    return encoder(to_float(video))

  def encode_own(encoder, video):
    return _in_groups(encoder, video, max_pixels)

  if ways == 1:
    return encode_own(encoder, video)
  batch = PartitionSpec(LOGICAL_AXIS_RULES["batch"])
  specs = PartitionSpec(), batch
  # Left to the compiler, a loop over clips would go over all devices' clips on each of them.
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
  """Encodes as many clips at a time as may be, in equal groups."""
  size, _ = part_of(encoder.config.temporal_stride, video.shape, max_pixels)
  groups = video.reshape(-1, size, *video.shape[1:])
  latents = jax.lax.map(lambda group: _in_chunks(encoder, group), groups)
  return latents.reshape(len(video), *latents.shape[2:])


def _in_chunks(encoder, video):
  """Encodes the frames of each latent frame after those of the one before.

  The first latent frame is of one frame, the others of tau. That it comes at the end of tau, too,
  which are not looked at but for the last, costs some arithmetic, and halves the program.
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
