"""Encoding and decoding clips in parts, against the whole batch at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_networks import DEEP_AUTOENCODER

from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES
from videoar_jax.tokenizers.decoding import decode
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.tokenizers.pixels import to_float, to_uint8

FRAME = 8 * 12


@pytest.fixture(scope="module")
def autoencoder(random_autoencoder):
  return random_autoencoder(DEEP_AUTOENCODER)


@pytest.fixture(scope="module")
def encoder(autoencoder):
  return autoencoder.encoder


def draw(num_clips, num_frames):
  shape = (num_clips, num_frames, 8, 12, 3)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize(
  ("num_clips", "num_frames", "max_pixels"),
  [
    (6, 13, 1),  # Less than a clip's next frames: a clip at a time.
    (6, 13, 9 * FRAME),  # Two clips at a time, of one device's three or six.
    (6, 1, 2 * FRAME),  # Images.
    (2, 5, 2 * 5 * FRAME),  # Whole.
  ],
)
def test_parts_equal_the_whole(encoder, num_devices, num_clips, num_frames, max_pixels):
  video = draw(num_clips, num_frames)
  expected = encoder(to_float(video))
  mesh = make_mesh(MeshConfig(), jax.devices()[:num_devices])
  video = jax.device_put(video, NamedSharding(mesh, PartitionSpec(LOGICAL_AXIS_RULES["batch"])))
  with jax.set_mesh(mesh):
    compiled = jax.jit(encode, static_argnums=2).lower(encoder, video, max_pixels).compile()
    latents = compiled(encoder, video)
  assert latents.shape == expected.shape == (num_clips, 1 + num_frames // 4, 2, 3, 6)
  np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
  # Each device encodes its own clips, and needs nothing from the others.
  assert latents.sharding.is_equivalent_to(video.sharding, 5)
  text = compiled.as_text()
  assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "permute"))


def test_memory_does_not_grow_with_clips_and_frames(encoder):
  def temporary(num_clips, num_frames):
    video = jax.ShapeDtypeStruct((num_clips, num_frames, 32, 32, 3), jnp.uint8)
    part = jax.jit(encode, static_argnums=2).lower(encoder, video, 4 * 32 * 32)
    return part.compile().memory_analysis().temp_size_in_bytes

  # The clips themselves may be held a second time.
  few, many = temporary(2, 5), temporary(6, 33)
  assert many < few + 2 * 6 * 33 * 32 * 32 * 3
  video = jax.ShapeDtypeStruct((6, 33, 32, 32, 3), jnp.uint8)
  whole = jax.jit(lambda encoder, video: encoder(to_float(video))).lower(encoder, video)
  assert 10 * few < whole.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("num_devices", "max_pixels"), [(1, 9 * FRAME), (2, 1)])
def test_parts_are_decoded_as_the_whole(autoencoder, num_devices, max_pixels):
  latents = np.random.default_rng(0).normal(size=(6, 4, 2, 3, 6)).astype(np.float32)
  expected = np.asarray(to_uint8(autoencoder.decoder(jnp.asarray(latents))), np.int32)
  mesh = make_mesh(MeshConfig(), jax.devices()[:num_devices])
  split = NamedSharding(mesh, PartitionSpec(LOGICAL_AXIS_RULES["batch"]))
  with jax.set_mesh(mesh):
    program = jax.jit(decode, static_argnums=2)
    video = program(autoencoder.decoder, jax.device_put(latents, split), max_pixels)
  assert video.shape == expected.shape == (6, 13, 8, 12, 3) and expected.std() > 10
  assert np.abs(np.asarray(video, np.int32) - expected).max() <= 1  # Of 255, by rounding.
  assert video.sharding.is_equivalent_to(split, 5)


def test_memory_of_decoding_does_not_grow_with_clips_and_frames(autoencoder):
  decoder = autoencoder.decoder

  def temporary(num_clips, num_latents, max_pixels):
    latents = jax.ShapeDtypeStruct((num_clips, num_latents, 8, 8, 6), jnp.float32)
    part = jax.jit(decode, static_argnums=2).lower(decoder, latents, max_pixels)
    return part.compile().memory_analysis().temp_size_in_bytes

  # The pixels themselves, and the latents, may be held a second time.
  few, many = temporary(2, 2, 1), temporary(6, 9, 1)
  assert many < few + 2 * 6 * (33 * 32 * 32 * 3 + 9 * 8 * 8 * 6 * 4)
  assert 10 * few < temporary(6, 9, 2**20)
