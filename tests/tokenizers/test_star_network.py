"""InfinityStar's video autoencoder: reference numbers, causality and streaming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import star_tokenizer_golden as golden
from safetensors.numpy import load_file

from videoar_jax.tokenizers import decoding, encoding
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.pixels import to_float, to_uint8
from videoar_jax.tokenizers.star import convert
from videoar_jax.tokenizers.star.blocks import unfold
from videoar_jax.tokenizers.star.config import StarConfig
from videoar_jax.tokenizers.star.network import abstract_params, autoencoder_of
from videoar_jax.train.state import flatten, unflatten


@pytest.fixture(scope="module")
def narrow():
  """The reference network."""
  config, params = convert.import_params(load_file(golden.FOLDER / "f_star_vae_narrow.safetensors"))
  return autoencoder_of(config, jax.tree.map(jnp.asarray, params))


@pytest.mark.golden
@pytest.mark.parametrize("name", golden.cases("f_star_vae_*.npz"))
def test_latents_and_pixels_are_the_public_ones(narrow, name):
  arrays = np.load(golden.FOLDER / name)
  x = golden.channels_last(arrays["x"])
  moments = jax.jit(lambda net, x: net.encoder.moments_chunk(x)[0])(narrow, x)
  mean, log_variance = jnp.split(moments, 2, axis=-1)
  assert golden.error(mean, golden.channels_last(arrays["mean_patchified"])) < 5e-5
  expected = jnp.split(golden.channels_last(arrays["moments"]), 2, axis=-1)[1]
  assert golden.error(unfold(log_variance, 2), jnp.clip(expected, -30, 20)) < 5e-5
  latents = golden.channels_last(arrays["z_from_mean"])
  assert golden.error(narrow.encoder.latents_of(moments), latents) < 5e-5
  video = jax.jit(lambda net, z: net.decoder(z))(narrow, latents)
  assert golden.error(video, golden.channels_last(arrays["recon"])) < 5e-5


# Widths grow and shrink, unlike those of the reference network.
CONFIG = StarConfig(widths=(4, 8, 8, 4, 4), num_blocks=1, z_channels=2)
TAU = 4


@pytest.fixture(scope="module")
def module():
  """A random network; new ones are no test, because their kernels see no earlier frames."""
  rng, params = np.random.default_rng(0), {}
  for name, leaf in flatten(abstract_params(CONFIG)).items():
    if name.endswith("kernel"):
      value = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
    else:
      value = rng.normal(size=leaf.shape) / 4 + name.endswith("scale")
    params[name] = jnp.asarray(value, jnp.float32)
  return autoencoder_of(CONFIG, unflatten(params))


@pytest.fixture(scope="module")
def tokenizer(module):
  return TOKENIZERS["star"].make_tokenizer(module)


@pytest.fixture(scope="module")
def whole(tokenizer):
  """A clip of 21 frames and its latents; random latents and their clip."""
  video = jax.random.uniform(jax.random.key(2), (2, 21, 16, 32, 3), minval=-1)
  codes = jax.random.normal(jax.random.key(3), (2, 6, 1, 2, 8))
  return video, tokenizer.encode(video), codes, _decode(tokenizer.autoencoder, codes)


@jax.jit
def _decode(module, codes):
  return module.decoder(codes)  # Not clipped, so that no error is hidden.


def _assert_close(ours, theirs):
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def _in_chunks(code, x, ends):
  parts, start, state = [], 0, None
  for end in ends:
    part, state = code(x[:, start:end], state)
    parts.append(part)
    start = end
  return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("ends", [(1, 2, 4, 6), (2, 4, 6)])
def test_chunks_equal_the_whole(module, whole, ends):
  video, latents, codes, decoded = whole
  encode, decode = jax.jit(module.encoder.chunk), jax.jit(module.decoder.chunk)
  frames = [1 + TAU * (end - 1) for end in ends]
  _assert_close(_in_chunks(encode, video, frames), latents)
  _assert_close(_in_chunks(decode, codes, ends), decoded)


def test_later_frames_do_not_change_earlier_ones(tokenizer, whole):
  video, latents, codes, decoded = whole
  _assert_close(tokenizer.encode(video[:, :9]), latents[:, :3])
  changed = tokenizer.encode(video.at[:, 9:].multiply(-1.0))
  moved = np.abs(np.asarray(changed - latents)).max((0, 2, 3, 4)) > 1e-6
  np.testing.assert_array_equal(moved, [False] * 3 + [True] * 3)
  other = _decode(tokenizer.autoencoder, codes.at[:, 3:].multiply(-1.0))
  moved = np.abs(np.asarray(other - decoded)).max((0, 2, 3, 4)) > 1e-6
  np.testing.assert_array_equal(moved, [False] * 9 + [True] * 12)


def test_batches_in_bounded_memory_are_the_same(tokenizer, whole):
  """As a generator's training step and its samples are coded: frame by frame, clip by clip."""
  video, _, codes, decoded = whole
  pixels, module = to_uint8(video), tokenizer.autoencoder
  in_parts = jax.jit(lambda net, x: encoding.encode(net.encoder, x, max_pixels=1))(module, pixels)
  _assert_close(in_parts, tokenizer.encode(to_float(pixels)))
  in_parts = jax.jit(lambda net, z: decoding.decode(net.decoder, z, max_pixels=1))(module, codes)
  assert np.abs(in_parts.astype(int) - to_uint8(decoded)).max() <= 1


def test_draws_have_the_mean_and_the_deviation_of_the_encoder(tokenizer, whole):
  video, latents, num = whole[0][:, :5], whole[1][:, :2], 400
  encoder, keys = tokenizer.autoencoder.encoder, jax.random.split(jax.random.key(5), num)
  moments = jax.jit(lambda net, x: net.moments_chunk(x)[0])(encoder, video)
  draws = jax.jit(jax.vmap(encoder.latents_of, (None, 0)))(moments, keys)
  deviation = np.sqrt(np.exp(np.asarray(moments[..., 8:])) @ np.square(encoder.proj.kernel))
  assert np.abs((draws.mean(0) - latents) / deviation).max() < 5 / np.sqrt(num)
  assert np.abs(draws.std(0) / deviation - 1).max() < 0.2
  _assert_close(tokenizer.draw(video, keys[0]), draws[0])
  _assert_close(tokenizer.draw(video, keys[0], chunk=1), draws[0])


def test_input_that_does_not_fit_is_refused(tokenizer, whole):
  video, _, codes, _ = whole
  with pytest.raises(ValueError, match=r"num_frames=20 is not 1 \+ 4 k"):
    tokenizer.encode(video[:, :20])
  with pytest.raises(ValueError, match="height 8 is not a multiple"):
    tokenizer.draw(video[:, :, :8], jax.random.key(0))
  with pytest.raises(ValueError, match="chunk=-1"):
    tokenizer.draw(video, jax.random.key(0), chunk=-1)
  with pytest.raises(ValueError, match=r"\[b, t, h, w, 8\]"):
    tokenizer.decode(codes[..., :4])


def test_states_of_other_clips_are_refused(tokenizer, whole):
  video, _, codes, _ = whole
  state = jax.eval_shape(tokenizer.autoencoder.encoder.chunk, video[:, :1])[1]
  with pytest.raises(ValueError, match=r"\(2, 16, 32\), needs \(1, 16, 32\)"):
    tokenizer.encode_chunk(video[:1, 1:5], state)
  state = jax.eval_shape(tokenizer.autoencoder.decoder.chunk, codes[:, :1])[1]
  with pytest.raises(ValueError, match=r"\(2, 1, 2\), needs \(2, 1, 1\)"):
    tokenizer.decode_chunk(codes[:, 1:2, :, :1], state)


def test_widths_that_shortcuts_cannot_map_are_refused():
  for widths, message in (
    ((4, 8, 8, 4), "needs 5 numbers"),
    ((4, 8, 8, 4, 8), "last two must be equal"),
    ((4, 8, 8, 6, 6), "6 must be a multiple of 4 and divide 4 x 8"),
    ((4, 32, 8, 4, 4), "32 must be a multiple of 4 and divide 4 x 4"),
  ):
    with pytest.raises(ValueError, match=message):
      StarConfig(widths=widths)
  with pytest.raises(ValueError, match=r"tokenizer\.num_blocks=0"):
    StarConfig(num_blocks=0)
