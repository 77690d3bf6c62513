"""Initializing a video tokenizer from an image tokenizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.nn.conv import without_zero_taps
from videoar_jax.tokenizers.autoencoder import abstract_params, autoencoder_of
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.bsq.inflation import check_inflatable, inflate
from videoar_jax.tokenizers.bsq.tokenizer import Tokenizer
from videoar_jax.tokenizers.decoding import decode as decode_parts
from videoar_jax.tokenizers.encoding import encode as encode_parts
from videoar_jax.tokenizers.pixels import to_float, to_uint8
from videoar_jax.train.state import flatten

IMAGE = BSQConfig(
  num_bits=6,
  base_channels=4,
  multipliers=(1, 2, 2, 2),
  num_encoder_blocks=1,
  num_decoder_blocks=1,
  strides=((1, 2),) * 3,
  num_groups=2,
)
VIDEO = dataclasses.replace(IMAGE, strides=((1, 2), (2, 2), (2, 2)))


@pytest.fixture(scope="module")
def params():
  """Random image weights, biases and norms included; kernel slices of earlier frames are zero."""
  leaves, tree = jax.tree.flatten(abstract_params(IMAGE))
  keys = jax.random.split(jax.random.key(0), len(leaves))
  values = [
    0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, [v.at[:-1].set(0) if v.ndim == 5 else v for v in values])


@pytest.fixture(scope="module")
def image(params):
  return autoencoder_of(IMAGE, params)


def inflated(params, rest, config=VIDEO):
  return autoencoder_of(config, inflate(params, IMAGE, config, rest, jax.random.key(1))[0])


def assert_close(ours, theirs):
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


encode = jax.jit(lambda module, video: module.encoder(video))
decode = jax.jit(lambda module, latents: module.decoder(latents))
VIDEO_CLIP = jax.random.uniform(jax.random.key(2), (2, 9, 16, 16, 3), minval=-1)
LATENTS = jax.random.normal(jax.random.key(3), (2, 3, 2, 2, 6))


@pytest.mark.parametrize("rest", ["zeros", "random"])
def test_first_frame_is_as_in_the_image_network(params, image, rest):
  video = inflated(params, rest)
  assert_close(encode(video, VIDEO_CLIP)[:, :1], encode(image, VIDEO_CLIP[:, :1]))
  assert_close(decode(video, LATENTS)[:, :1], decode(image, LATENTS[:, :1]))


def test_with_zeros_every_frame_is(params, image):
  video = inflated(params, "zeros")
  assert_close(encode(video, VIDEO_CLIP), encode(image, VIDEO_CLIP)[:, ::4])
  # The first latent frame makes one frame, every other makes four.
  pixels = decode(image, LATENTS)
  assert_close(decode(video, LATENTS), jnp.repeat(pixels, 4, axis=1)[:, 3:])


def test_with_random_taps_later_frames_see_earlier_ones(params):
  video = inflated(params, "random")
  changed = VIDEO_CLIP.at[:, 0].multiply(-1)
  moved = np.abs(encode(video, changed) - encode(video, VIDEO_CLIP)).max((0, 2, 3, 4))
  assert (moved > 1e-3).all()
  # Every convolution that has such taps draws them, each its own.
  taps = [
    np.asarray(leaf[:-1]).ravel()
    for leaf in flatten(inflate(params, IMAGE, VIDEO, "random", jax.random.key(1))[0]).values()
    if leaf.ndim == 5 and leaf.shape[0] == 3
  ]
  assert all((tap != 0).all() for tap in taps)
  assert len({float(tap[0]) for tap in taps}) == len(taps)


def test_without_zero_taps_parts_of_clips_are_coded_the_same(params):
  """Half of the taps are gone; states of chunks can be stored."""
  whole = inflated(params, "zeros")
  short = without_zero_taps(whole)
  sizes = [
    sum(leaf.size for leaf in jax.tree.leaves(module) if leaf.ndim == 5)
    for module in (short, whole)
  ]
  assert sizes[0] < 0.5 * sizes[1]
  pixels, latents = to_uint8(VIDEO_CLIP), encode(whole, VIDEO_CLIP)
  for max_pixels in (1, 10**6):
    ours = jax.jit(encode_parts, static_argnums=2)(short.encoder, pixels, max_pixels)
    assert_close(ours, encode(whole, to_float(pixels)))
    ours = jax.jit(decode_parts, static_argnums=2)(short.decoder, latents, max_pixels)
    theirs = np.asarray(to_uint8(decode(whole, latents)), np.int32)
    assert np.abs(ours - theirs).max() <= 1  # A value between two levels.
  tokenizer = Tokenizer(short)
  for code, x in ((tokenizer.encode_chunk, VIDEO_CLIP), (tokenizer.decode_chunk, latents)):
    _, state = code(x[:, :1])
    assert all(leaf.size for leaf in jax.tree.leaves(state))


def test_random_taps_stay(params):
  whole = inflated(params, "random")
  jax.tree.map(np.testing.assert_array_equal, whole, without_zero_taps(whole))


def test_other_bits_start_two_convolutions_anew(params):
  config = dataclasses.replace(VIDEO, num_bits=8)
  new, fresh = inflate(params, IMAGE, config, "zeros", jax.random.key(1))
  assert sorted(fresh) == [
    "decoder.conv_in.bias",
    "decoder.conv_in.kernel",
    "encoder.conv_out.bias",
    "encoder.conv_out.kernel",
  ]
  new, old = flatten(new), flatten(params)
  for name, leaf in flatten(abstract_params(config)).items():
    assert new[name].shape == leaf.shape
    if name not in fresh:
      np.testing.assert_array_equal(new[name], old[name])
  assert np.std(new["encoder.conv_out.kernel"][-1]) > 0.05


def test_fields_that_differ_are_all_named():
  config = BSQConfig(
    num_bits=6, base_channels=8, multipliers=(1, 2), strides=((1, 1),), num_groups=4
  )
  with pytest.raises(ValueError) as raised:
    check_inflatable(IMAGE, config)
  for name in ("base_channels=8, but 4 in", "multipliers", "strides", "num_groups"):
    assert f"tokenizer.{name}" in str(raised.value)
  assert "num_bits" not in str(raised.value) and "patch_size" not in str(raised.value)
