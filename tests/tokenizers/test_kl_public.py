"""Converted continuous autoencoders: frames, tiles, parts of a batch, scaling and FLOPs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from public_kl import module_of, random_params

from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES
from videoar_jax.tokenizers.decoding import decode
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.kl import blocks
from videoar_jax.tokenizers.kl.layouts import ImageKLConfig, OpenSoraConfig
from videoar_jax.tokenizers.pixels import to_float, to_uint8
from videoar_jax.train.state import Template

SIZES = {"block_channels": (2, 2, 4, 4), "num_blocks": 1, "num_groups": 2, "num_channels": 3}
IMAGE, VIDEO = ImageKLConfig(**SIZES), OpenSoraConfig(**SIZES)
CONFIGS = {"kl_image": IMAGE, "kl_opensora": VIDEO}


@functools.cache
def params_of(family):
  return random_params(family, CONFIGS[family])


def module(family, **changes):
  return module_of(family, dataclasses.replace(CONFIGS[family], **changes), params_of(family))


def draw(num_clips, num_frames, height=16, width=24):
  shape = (num_clips, num_frames, height, width, 3)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def assert_close(ours, theirs, atol=1e-5):
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol * np.abs(theirs).max())


def test_frame_by_frame_equals_the_whole_clip():
  """Nothing is lost, also of clips that do not divide into tiles."""
  tokenizer = TOKENIZERS["kl_opensora"].make_tokenizer(module("kl_opensora"))
  video = to_float(draw(1, 25))
  latents = tokenizer.encode(video)
  assert latents.shape == (1, 7, 2, 3, 3)
  assert_close(tokenizer.encode(video, chunk=1), latents)
  decoded = tokenizer.decode(latents)
  assert decoded.shape == video.shape and np.std(decoded) > 0.01
  assert_close(tokenizer.decode(latents, chunk=1), decoded)


def test_any_frame_depends_on_all():
  """Which is why clips are not coded in chunks of frames."""
  network, video = module("kl_opensora"), to_float(draw(1, 9))
  encoded = network.encoder(video)
  changed = network.encoder(video.at[:, -1].set(0.0))
  assert np.abs(encoded - changed)[:, 0].max() > 1e-4
  tokenizer = TOKENIZERS["kl_opensora"].make_tokenizer(network)
  for code, x in ((tokenizer.encode_chunk, video), (tokenizer.decode_chunk, encoded[..., :3])):
    with pytest.raises(ValueError, match=r"normalizes over all frames of a clip.*--tiling"):
      code(x)


def test_tiles_overlap_by_a_frame_and_stream():
  network = module("kl_opensora", tiling=True)
  tokenizer = TOKENIZERS["kl_opensora"].make_tokenizer(network)
  video = to_float(draw(1, 49))
  whole = tokenizer.encode(video)
  assert whole.shape[1] == 13
  # By hand, from whole clips of 17 frames.
  alone = TOKENIZERS["kl_opensora"].make_tokenizer(module("kl_opensora"))
  tiles = [alone.encode(video[:, i : i + 17]) for i in (0, 16, 32)]
  assert_close(whole, np.concatenate([tiles[0], tiles[1][:, 1:], tiles[2][:, 1:]], axis=1))
  first, state = tokenizer.encode_chunk(video[:, :17])
  rest, _ = tokenizer.encode_chunk(video[:, 17:], state)
  assert_close(np.concatenate([first, rest], axis=1), whole)
  decoded = tokenizer.decode(whole)
  assert decoded.shape == video.shape
  pixels, state = tokenizer.decode_chunk(whole[:, :5])
  assert pixels.shape[1] == 17
  later, _ = tokenizer.decode_chunk(whole[:, 5:], state)
  assert_close(np.concatenate([pixels, later], axis=1), decoded)
  for code, x, message in (
    (tokenizer.encode_chunk, video[:, :9], r"video: the first chunk has 17 \+ 16 k frames, got 9"),
    (tokenizer.decode_chunk, whole[:, :4], r"latents: the first chunk has 5 \+ 4 k frames, got 4"),
    (lambda x: tokenizer.decode_chunk(x, state), whole[:, :3], "a later chunk has 4 k frames"),
    (lambda x: tokenizer.decode_chunk(x, state), jnp.zeros((2, 4, 2, 3, 3)), "of another number"),
    (tokenizer.encode, video[:, :25], r"incomplete tile.* take 17 or 33, or set .*tiling=False"),
  ):
    with pytest.raises(ValueError, match=message):
      code(x)


def test_images_are_coded_alone():
  tokenizer = TOKENIZERS["kl_image"].make_tokenizer(module("kl_image"))
  video = to_float(draw(2, 3))
  latents = tokenizer.encode(video)
  assert latents.shape == (2, 3, 2, 3, 3)
  for i in range(3):
    assert_close(tokenizer.encode(video[:, i : i + 1])[:, 0], latents[:, i])
  assert_close(tokenizer.encode(video, chunk=1), latents)
  decoded = tokenizer.decode(latents)
  assert_close(tokenizer.decode(latents, chunk=2), decoded)
  first, state = tokenizer.decode_chunk(latents[:, :2])
  assert_close(first, decoded[:, :2])
  assert_close(tokenizer.decode_chunk(latents[:, 2:], state)[0], decoded[:, 2:])


def test_attention_in_rows_equals_that_of_all_cells(monkeypatch):
  network = module("kl_image").encoder.middle.attention
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 4))
  whole = network(x)
  assert np.abs(whole - x).max() > 1e-2
  monkeypatch.setattr(blocks, "_MAX_SCORES", 1)
  assert_close(network(x), whole)


def test_latents_are_shifted_and_scaled():
  plain, scaled = module("kl_image"), module("kl_image", scaling_factor=2.0, shift_factor=0.5)
  video, config = draw(1, 1), scaled.config
  posterior = TOKENIZERS["kl_image"].encode_posterior(scaled, jnp.asarray(video))
  mean, log_variance = jnp.split(posterior, 2, axis=-1)
  latents = TOKENIZERS["kl_image"].encode(scaled, jnp.asarray(video))
  assert_close(latents, (mean - 0.5) * 2)
  keys = jax.random.split(jax.random.key(1), 2000)
  drawn = jax.vmap(lambda key: config.latents_of(posterior, key))(keys)
  deviation = 2 * np.exp(0.5 * np.asarray(log_variance))
  assert np.max(np.abs(drawn.mean(0) - latents) / deviation) < 5 / 2000**0.5
  np.testing.assert_allclose(drawn.std(0) / deviation, 1.0, atol=0.1)
  own = plain.decoder((latents / 2 + 0.5) * plain.config.scaling_factor)
  assert_close(scaled.decoder(latents), own)
  huge = config.posterior_of(jnp.full((1, 1, 1, 1, 6), 99.0))
  np.testing.assert_array_equal(huge[0, 0, 0, 0], [99, 99, 99, 20, 20, 20])


@pytest.mark.parametrize("family", CONFIGS)
def test_parts_of_a_batch_equal_the_whole(family):
  """Each of two devices codes its own clips, one at a time."""
  network, video = module(family), draw(4, 5)
  mesh = make_mesh(MeshConfig(), jax.devices()[:2])
  split = NamedSharding(mesh, PartitionSpec(LOGICAL_AXIS_RULES["batch"]))
  expected = jax.jit(lambda network, x: network.encoder(to_float(x)))(network, video)
  with jax.set_mesh(mesh):
    program = jax.jit(encode, static_argnums=2)
    encoded = program(network.encoder, jax.device_put(video, split), 1)
    assert_close(encoded, expected)
    latents = network.config.latents_of(encoded)
    pixels = jax.jit(decode, static_argnums=2)(network.decoder, latents, 1)
  whole = to_uint8(jax.jit(lambda network, x: network.decoder(x))(network, np.asarray(latents)))
  assert np.abs(np.asarray(pixels, int) - np.asarray(whole, int)).max() <= 1


@pytest.mark.parametrize(
  ("family", "num_frames", "changes"),
  [("kl_image", 2, {}), ("kl_opensora", 9, {}), ("kl_opensora", 33, {"tiling": True})],
)
def test_flops_are_those_that_the_compiler_counts(family, num_frames, changes):
  config = dataclasses.replace(CONFIGS[family], block_channels=(32, 32, 48, 64), **changes)
  template = Template.of(TOKENIZERS[family].make_module(config))
  network = template.module(template.shapes)
  t, h, w = config.latent_shape(num_frames, (32, 48))
  counted = TOKENIZERS[family].flops(config, num_frames, (32, 48))
  for part, shape, count in zip(
    (network.encoder, network.decoder),
    ((1, num_frames, 32, 48, 3), (1, t, h, w, 3)),
    counted,
    strict=True,
  ):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    lowered = jax.jit(lambda part, x: part(x)).lower(part, x)
    found = lowered.cost_analysis()["flops"]
    if changes:  # The body of the loop over two tiles is counted once.
      found *= 2
    assert found == pytest.approx(count, rel=0.05)


def test_settings_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match=r"num_groups=2 does not divide tokenizer\.block_channels"):
    dataclasses.replace(VIDEO, block_channels=(2, 3, 4, 4))
  with pytest.raises(ValueError, match="needs at least 3 levels"):
    dataclasses.replace(VIDEO, block_channels=(2, 2))
  with pytest.raises(ValueError, match=r"scaling_factor=0\.0 must be more than 0"):
    dataclasses.replace(IMAGE, scaling_factor=0.0)
  with pytest.raises(ValueError, match=r"num_frames=8 is not 1 \+ 4 k; take 5 or 9"):
    VIDEO.latent_shape(8, (16, 16))
  for name, family in TOKENIZERS.items():
    if name in CONFIGS:
      with pytest.raises(ValueError, match="converted, not trained; use the tokenizer family kl"):
        family.make_task(CONFIGS[name], family.loss(), (16, 16))
      with pytest.raises(ValueError, match=r"kind='tokenizer': these tokenizers are converted"):
        family.check(CONFIGS[name], family.loss(), (16, 16))


@pytest.mark.parametrize("family", CONFIGS)
def test_memory_of_encoding_is_about_what_is_estimated(family):
  config = dataclasses.replace(CONFIGS[family], block_channels=(16, 32, 32, 32))
  template = Template.of(TOKENIZERS[family].make_module(config))
  shape = (2, 9, 384, 384) if family == "kl_opensora" else (4, 2, 768, 768)
  video = jax.ShapeDtypeStruct((*shape, 3), jnp.uint8)
  program = jax.jit(lambda params, video: encode(template.module(params).encoder, video))
  memory = program.lower(template.shapes, video).compile().memory_analysis()
  estimate, found = TOKENIZERS[family].encode_bytes(config, shape), memory.temp_size_in_bytes
  assert estimate / 2 < found < 2 * estimate, (found, estimate)


def test_layers_by_frame_hold_three_activations():
  """However many layers there are, besides the input."""
  layers = blocks.Blocks(nnx.Rngs(params=jax.random.key(0)), 8, 8, 4, 2, is_flat=False)
  x = jax.ShapeDtypeStruct((1, 33, 32, 32, 8), jnp.float32)
  program = jax.jit(lambda layers, x: layers(x, True)).lower(layers, x).compile()
  assert program.memory_analysis().temp_size_in_bytes < 3.5 * 4 * x.size
