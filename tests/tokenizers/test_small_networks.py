"""Settings that save arithmetic: subpixels, kernels of one tap, a refining convolution."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_networks import DEEP_AUTOENCODER

import videoar_jax
from videoar_jax.tokenizers.autoencoder import abstract_params, autoencoder_of
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.bsq.inflation import inflate
from videoar_jax.tokenizers.bsq.tokenizer import Tokenizer
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.files import Saved, read_params, save_tokenizer
from videoar_jax.tokenizers.pixels import to_float
from videoar_jax.train.state import flatten

CONFIG = dataclasses.replace(
  DEEP_AUTOENCODER,
  num_mid_blocks=0,
  upsampling="subpixel",
  temporal_kernels="half",
  refine_channels=4,
)


@pytest.fixture(scope="module")
def tokenizer(random_autoencoder):
  return Tokenizer(random_autoencoder(CONFIG))


@pytest.fixture(scope="module")
def video():
  return np.random.default_rng(0).uniform(-1, 1, (2, 17, 8, 8, 3)).astype(np.float32)


def assert_close(ours, theirs):
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_chunks_equal_the_whole(tokenizer, video):
  latents = np.asarray(tokenizer.encode(video))
  assert_close(tokenizer.encode(video, chunk=2), latents)
  pixels = np.asarray(tokenizer.decode(latents))
  assert pixels.shape == video.shape
  assert_close(tokenizer.decode(latents, chunk=2), pixels)
  # Frames depend on earlier ones, and on no later one.
  changed = latents.copy()
  changed[:, 2] += 1
  moved = np.abs(np.asarray(tokenizer.decode(changed)) - pixels).max((0, 2, 3, 4)) > 1e-5
  np.testing.assert_array_equal(moved, np.arange(17) >= 5)


def test_no_array_of_a_state_is_empty(tokenizer, video):
  """Orbax does not store those, and states are stored."""
  states = tokenizer.encode_chunk(video[:, :1])[1], tokenizer.decode_chunk(np.ones((2, 1, 2, 2, 6)))
  assert all(leaf.size for leaf in jax.tree.leaves(states))


def test_parts_of_a_batch_equal_the_whole(tokenizer, video):
  clips = np.asarray((video + 1) * 127, np.uint8)
  encoder = tokenizer.autoencoder.encoder
  assert_close(
    np.asarray(encode(encoder, jnp.asarray(clips), 8 * 8)), np.asarray(encoder(to_float(clips)))
  )


def test_subpixels_are_channels_of_the_frames_and_places_they_cover(random_autoencoder):
  """A bias of one subpixel's channels shows at its frames and places alone."""
  config = BSQConfig(
    num_bits=4,
    base_channels=4,
    multipliers=(1, 1),
    num_encoder_blocks=1,
    num_decoder_blocks=1,
    strides=((2, 2),),
    num_groups=2,
    upsampling="subpixel",
  )
  upsample = random_autoencoder(config).decoder.upsample_1
  x = jax.random.normal(jax.random.key(0), (1, 3, 2, 2, 4))
  before, _ = upsample(x)
  assert before.shape == (1, 5, 4, 4, 4)
  # Channels are ordered by frame, row, column: these are those of the second, first and second.
  upsample.conv.bias[...] = upsample.conv.bias[...].at[4 * 5 : 4 * 6].add(1.0)
  moved = np.abs(np.asarray(upsample(x)[0] - before)).max((0, 4)) > 0.5
  wanted = np.zeros((5, 4, 4), bool)
  wanted[0::2, 0::2, 1::2] = True  # The first frame is the last of its two.
  np.testing.assert_array_equal(moved, wanted)


def test_half_of_the_kernels_see_one_frame():
  taps = {name: leaf.shape[0] for name, leaf in flatten(abstract_params(CONFIG)).items()}
  one = {"encoder.conv_in.kernel", "decoder.conv_out.kernel", "decoder.refine.kernel"}
  for name, count in taps.items():
    if name.endswith("kernel") and "nin_shortcut" not in name:
      assert count == (1 if name in one or ".conv1." in name else 3), name


def params_of(module):
  return nnx.to_pure_dict(nnx.state(module))


def test_an_image_network_starts_a_video_network(random_autoencoder):
  """Each frame of a clip is decoded as the image network decodes it."""
  config, key = dataclasses.replace(CONFIG, strides=((1, 2), (1, 1))), jax.random.key(0)
  drawn = params_of(random_autoencoder(config))
  params, fresh = inflate(drawn, config, CONFIG, "zeros", key)
  assert fresh == []
  image = autoencoder_of(config, inflate(drawn, config, config, "zeros", key)[0])
  latents = jax.random.normal(jax.random.key(3), (2, 3, 2, 2, 6))
  frames = jax.jit(lambda: image.decoder(latents))()
  clip = jax.jit(lambda: autoencoder_of(CONFIG, params).decoder(latents))()
  assert_close(clip, jnp.repeat(frames, 4, axis=1)[:, 3:])


def test_a_saved_folder_loads(tmp_path, random_autoencoder):
  params, bsq = params_of(random_autoencoder(CONFIG)), TOKENIZERS["bsq"]
  save_tokenizer(tmp_path / "saved", Saved("bsq", CONFIG, "test"), params)
  assert read_params(tmp_path / "saved", bsq)[0].config == CONFIG
  # Earlier versions wrote no family, and the scales beside the other settings.
  path = tmp_path / "saved" / "tokenizer.json"
  values = json.loads(path.read_text())
  assert values.pop("family") == "bsq"
  path.write_text(json.dumps(values | {"schedule": [[1, 1], [2, 2]]}))
  saved, loaded = read_params(tmp_path / "saved", bsq)
  assert saved.config == dataclasses.replace(CONFIG, schedule="1x1 2x2")
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_folder_of_another_family_is_refused(tmp_path, random_autoencoder):
  params = params_of(random_autoencoder(CONFIG))
  save_tokenizer(tmp_path, Saved("other", CONFIG, "test"), params)
  with pytest.raises(ValueError, match="is of the tokenizer family 'other'; 'bsq' is needed"):
    read_params(tmp_path, TOKENIZERS["bsq"])
  with pytest.raises(ValueError, match="family 'other', which is unknown; families are bsq, kl"):
    videoar_jax.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("upsampling", "bilinear", "upsampling='bilinear' must be in"),
    ("temporal_kernels", "none", "temporal_kernels='none' must be in"),
    ("refine_channels", -4, "must not be negative"),
    ("refine_channels", 3, r"num_groups=2 does not divide tokenizer\.refine_channels"),
    ("patch_size", 1, r"needs an even tokenizer\.patch_size"),
    ("num_mid_blocks", -1, "must not be negative"),
  ],
)
def test_impossible_settings_are_named(field, value, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **{field: value})
