"""Encodes a batch a few clips and a few frames at a time.

For one clip of 33 frames of 384x672 pixels, each of the encoder's activations at full resolution
takes 4 GiB, and TPU's compiler is slow for arrays of that size. So each device loops over its
clips, and over each clip's frames as in streaming, in parts with a bounded number of pixels:
neither memory nor the program grows with the batch or the clip. Nothing is kept for a backward
pass: the encoder is frozen while a generator trains. Encoders that see whole clips get whole clips,
and bound memory themselves.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, UInt8

from videoar_jax.nn.layers import at_least_float32
from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES, num_shards
from videoar_jax.tokenizers.batch_parts import MAX_PIXELS, part_of
from videoar_jax.tokenizers.pixels import in_type_of, to_float


def encode(
  encoder: nnx.Module, video: UInt8[Array, "b f H W 3"], max_pixels: int = MAX_PIXELS
) -> Float[Array, "b t h w d"]:
  """Encodes clips; inside jit on a mesh, each device encodes its own.

  Args:
    encoder: the network, whole on every device. It computes in the type of its weights.
    video: clips of 1 + tau k frames.
    max_pixels: most pixels that a device encodes at once, but at least tau frames of one clip.
  """
  if video[..., 0].size <= num_shards("batch") * max_pixels:
    return at_least_float32(encoder(_to_float(encoder, video)))
  config = encoder.config
  step = video.shape[1] if config.sees_whole_clips else config.temporal_stride
  size, _ = part_of(step, _own_shape(video), max_pixels)
  return at_least_float32(on_each_device(_in_chunks, encoder, video, size))


def _to_float(encoder: nnx.Module, video: UInt8[Array, "*b"]) -> Float[Array, "*b"]:
  return in_type_of(encoder, to_float(video))


def _own_shape(x: Array) -> tuple[int, ...]:
  """Returns the shape of a device's part of a batch."""
  return len(x) // num_shards("batch"), *x.shape[1:]


def on_each_device(code: Callable, module: nnx.Module, x: Array, size: int) -> Array:
  """Codes a batch, on each device its own clips in groups of `size`, which divides their number.

  Args:
    code: maps the module and a group to its result, clip by clip.
    module: whole on every device.
    x: the batch.
    size: clips of a group.
  """

  def in_groups(module, x):
    groups = x.reshape(-1, size, *x.shape[1:])
    coded = jax.lax.map(lambda group: code(module, group), groups)
    return coded.reshape(len(x), *coded.shape[2:])

  if num_shards("batch") == 1:
    return in_groups(module, x)
  batch = PartitionSpec(LOGICAL_AXIS_RULES["batch"])
  specs = PartitionSpec(), batch
  # Without shard_map, the compiler would make each device loop over the clips of all devices.
  return jax.shard_map(in_groups, in_specs=specs, out_specs=batch, check_vma=False)(module, x)


def _in_chunks(encoder, video):
  """Encodes one latent frame after the other.

  The first latent frame covers one frame, the others tau. The first frame is padded to tau frames
  too, of which only the last is used: this wastes some arithmetic, but halves the program.
  """
  tau = encoder.config.temporal_stride
  if video.shape[1] == 1 or encoder.config.sees_whole_clips:
    return encoder(_to_float(encoder, video))
  _, state = jax.eval_shape(lambda x: encoder.chunk(_to_float(encoder, x)), video[:, :1])
  state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
  padded = jnp.pad(video, ((0, 0), (tau - 1, 0), (0, 0), (0, 0), (0, 0)))

  def step(state, i):
    frames = jax.lax.dynamic_slice_in_dim(padded, i * tau, tau, axis=1)
    latents, state = encoder.chunk(_to_float(encoder, frames), state, i == 0)
    return state, latents[:, 0]

  _, latents = jax.lax.scan(step, state, jnp.arange(padded.shape[1] // tau))
  return jnp.moveaxis(latents, 0, 1)
