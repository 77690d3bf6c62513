"""Frame-by-frame decoding: ring cache against full mask, given frames, guidance, types, devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sequences import keep_of_window
from tiny_networks import make_model

from videoar_jax.models.request import sample_keys
from videoar_jax.models.videoar.config import GeneratorConfig
from videoar_jax.models.videoar.decode import Decoded, decode, decode_frame
from videoar_jax.models.videoar.decode_steps import draw, start, write_frame
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.nn import cache, transformer
from videoar_jax.nn.cache import Cache, attend_cached
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.train.state import Template

LAYOUT = Layout(text_length=4, num_frames=5, schedule=((1, 1), (2, 2)))
CONFIG = GeneratorConfig(
  num_layers=2,
  d_model=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_bits=6,
  vocabulary_size=11,
)
TEXT = jnp.array([[3, 4, 5, 1], [7, 1, 0, 0]])
NULL = jnp.array([1, 0, 0, 0])
TABLE = np.linspace(0.5, 4.0, 10, dtype=np.float32).reshape(5, 2)


@pytest.fixture(autouse=True)
def short_ranges(monkeypatch):
  """Reads the ring by ranges, as if it were long."""
  monkeypatch.setattr(cache, "_MIN_RANGE", 1)


@pytest.fixture(scope="module")
def model():
  return make_model(CONFIG, LAYOUT, noise=0.3)


def decoded(model, layout=LAYOUT, table=TABLE, **settings) -> Decoded:
  run = jax.jit(lambda model, keys: decode(model, layout, TEXT, NULL, keys, table, **settings))
  return run(model, sample_keys(0, jnp.arange(2)))


@pytest.fixture(scope="module")
def free(model):
  """A clip from the model, on one device."""
  return decoded(model)


def inputs_of(bits):
  """Returns the inputs and latents of frames with these bits, computed by `corrupt`."""
  from videoar_jax.nn.resize import area_resize, linear_resize
  from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes

  features, latents, before = [], [], jnp.zeros((2, 2, 2, 6))
  for t in range(bits[0].shape[1]):
    coarse = linear_resize(bits_to_codes(bits[0][:, t]), (2, 2))
    first = area_resize(before, (1, 1)).reshape(2, 1, 6)
    features.append(jnp.concatenate([first, coarse.reshape(2, 4, 6)], axis=1))
    before = coarse + bits_to_codes(bits[1][:, t])
    latents.append(before)
  return jnp.stack(features, 1), jnp.stack(latents, 1)


@pytest.mark.parametrize("context", ["scales", "full_frame"])
@pytest.mark.parametrize("window", [1, 2])
def test_ring_equals_the_full_cache_with_a_mask(context, window):
  """With given frames and without: each slot is overwritten when its frame leaves the window."""
  layout = dataclasses.replace(LAYOUT, context=context)
  model = make_model(CONFIG, layout, noise=0.3)
  given, num_given = None, 0
  if window == 2:
    num_given = 3
    draw = np.random.default_rng(0).integers
    given = [draw(2, size=(2, 3, *grid, 6), dtype=np.uint8) for grid in layout.schedule]
  out = decoded(model, layout, table=None, window=window, conditioning=given)
  assert out.logits.shape[1] == 5 - num_given
  for scale, bits in enumerate(given or []):
    np.testing.assert_array_equal(out.bits[scale][:, :num_given], bits)
  features, latents = inputs_of(out.bits)
  np.testing.assert_allclose(out.quantized, latents, atol=1e-6)
  keep = keep_of_window(2, 5, window)
  forward = jax.jit(lambda model: model(TEXT, features, layout, quantized=latents, frame_keep=keep))
  expected = forward(model)
  assert float(jnp.abs(expected).max()) > 1.0
  np.testing.assert_allclose(out.logits, expected[:, num_given:], atol=1e-5)


def test_ring_does_not_grow(model):
  """A state's size is that of its window and does not grow; the frame number increases."""
  keys = sample_keys(0, jnp.arange(2))
  state = start(model, LAYOUT, TEXT, NULL, keys, slots=2)
  shape = state.cache.keys.shape
  assert shape == (2, 4, 2, 8, 2 * 5) and state.text.keys.shape == (2, 4, 2, 8, 4)
  bits = [jnp.ones((2, *grid, 6), jnp.uint8) for grid in LAYOUT.schedule]
  step = jax.jit(lambda state: write_frame(model, LAYOUT, state, bits)[0])
  for _ in range(3):
    last, state = state, step(state)
  assert state.cache.keys.shape == shape and int(state.frame) == 3
  changed = np.abs(state.cache.keys - last.cache.keys).max((0, 1, 2, 3)) > 0
  np.testing.assert_array_equal(changed, [True] * 5 + [False] * 5)


def test_slots_that_are_not_written_are_not_read(model):
  """On CPU, in a loop over layers, if the ring is long."""
  state = start(model, LAYOUT, TEXT, NULL, sample_keys(0, jnp.arange(2)), slots=4, is_guided=False)
  bits = [jnp.ones((2, *grid, 6), jnp.uint8) for grid in LAYOUT.schedule]
  state, _ = write_frame(model, LAYOUT, state, bits)
  keys = state.cache.keys.at[..., LAYOUT.frame_size :].set(jnp.nan)
  values = state.cache.values.at[..., LAYOUT.frame_size :, :].set(jnp.nan)
  unread = dataclasses.replace(state, cache=Cache(keys, values))
  (_, found), (_, expected) = (decode_frame(model, LAYOUT, x, jnp.ones(2)) for x in (unread, state))
  np.testing.assert_array_equal(found.logits, expected.logits)


@pytest.mark.parametrize("context", ["scales", "full_frame"])
@pytest.mark.parametrize("is_scanned", [True, False])
def test_later_frames_are_as_far_from_the_prompt_as_the_last_trained_one(
  context, is_scanned, monkeypatch
):
  """A window of given frames leads to the same logits wherever it stands in a clip."""
  monkeypatch.setattr(transformer, "_MAX_LOOPED", 0)
  layout = dataclasses.replace(LAYOUT, context=context)
  model = make_model(dataclasses.replace(CONFIG, scan_layers=is_scanned), layout, noise=0.3)
  draw = np.random.default_rng(0).integers
  frames = [
    [jnp.asarray(draw(2, size=(2, *grid, 6), dtype=np.uint8)) for grid in layout.schedule]
    for _ in range(2)
  ]
  # A frame's keys depend on what it saw itself: the earlier ones, and those by earlier frames.
  given = [frames[0]] * 2 + [frames[1]]

  @jax.jit
  def after(state, trained):
    logits, settings = [], {"temperature": 0.0, "trained_frames": trained}
    for bits in [*given, *given]:
      state, _ = write_frame(model, layout, state, bits, trained_frames=trained)
      _, out = decode_frame(model, layout, state, jnp.ones(2), **settings)
      logits.append(out.logits)
    return logits

  state = start(model, layout, TEXT, NULL, sample_keys(0, jnp.arange(2)), slots=1)
  moved, still = after(state, 2), after(state, 100)
  # With one slot and repeated frames, the second and the fifth frame see the same.
  np.testing.assert_allclose(moved[0], still[0], atol=1e-6)
  np.testing.assert_allclose(moved[5], moved[2], atol=1e-5)
  assert np.abs(np.asarray(still[5]) - np.asarray(still[2])).max() > 1e-2


def test_attention_to_parts_is_attention_to_the_whole():
  from videoar_jax.nn.attention import attention

  q = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))
  k, v = jax.random.normal(jax.random.key(1), (2, 2, 7, 2, 8))
  mask = jax.random.bernoulli(jax.random.key(2), 0.5, (2, 3, 4)).at[:, :, 0].set(True)
  parts = [Cache.of(k[:, part], v[:, part]) for part in (slice(0, 4), slice(4, 7))]
  whole = jnp.concatenate([mask, jnp.ones((2, 3, 3), bool)], axis=2)
  expected = attention(q, k, v, whole)
  np.testing.assert_allclose(attend_cached(q, parts, (mask, None)), expected, atol=1e-6)


def test_unrolled_layers_equal_scanned_ones(free, monkeypatch):
  monkeypatch.setattr(transformer, "_MAX_LOOPED", 0)
  unrolled = decoded(make_model(dataclasses.replace(CONFIG, scan_layers=False), LAYOUT, noise=0.3))
  np.testing.assert_allclose(unrolled.logits, free.logits, atol=1e-5)


def test_numbers_of_a_scale_do_not_depend_on_which_scales_are_drawn_with_it(model):
  keys = sample_keys(0, jnp.arange(2))
  state = start(model, LAYOUT, TEXT, NULL, keys, slots=1)
  state = dataclasses.replace(state, frame=jnp.int32(3))
  together = draw(LAYOUT, state, range(LAYOUT.num_scales))
  for s, cells in enumerate(LAYOUT.cell_sizes):
    np.testing.assert_array_equal(together[:, s], draw(LAYOUT, state, [s])[:, 0])
    for i, key in enumerate(keys):
      scale_key = jax.random.fold_in(jax.random.fold_in(key, 3), s)
      expected = jax.random.uniform(scale_key, (cells, 6))
      np.testing.assert_array_equal(together[i, s, : cells * 6], expected.ravel())


def test_small_layers_are_a_loop_in_decoding(free):
  config = dataclasses.replace(CONFIG, scan_layers=False)
  looped = make_model(config, LAYOUT, noise=0.3)
  state = start(looped, LAYOUT, TEXT, NULL, sample_keys(0, jnp.arange(2)), slots=1)
  assert looped.unstacked() is looped and isinstance(state.cache, Cache)
  for a, b in zip(decoded(looped).bits, free.bits, strict=True):
    np.testing.assert_array_equal(a, b)


def test_guidance_of_one_needs_no_second_half(model):
  whole, half = decoded(model, table=np.ones((5, 2), np.float32)), decoded(model, table=None)
  np.testing.assert_allclose(half.logits, whole.logits, atol=1e-5)
  for a, b in zip(half.bits, whole.bits, strict=True):
    np.testing.assert_array_equal(a, b)
  state = jax.eval_shape(
    lambda: start(
      model, LAYOUT, TEXT, NULL, sample_keys(0, jnp.arange(2)), slots=1, is_guided=False
    )
  )
  assert state.cache.keys.shape[1] == 2


def test_bfloat16_is_near_float32(model, free):
  """Compared where both have sampled the same bits: at the first scale after the given frames."""
  small = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
  state = start(small, LAYOUT, TEXT, NULL, sample_keys(0, jnp.arange(2)), slots=1)
  assert {x.dtype for x in jax.tree.leaves(state.cache)} == {jnp.dtype(jnp.bfloat16)}
  assert state.before.dtype == jnp.float32
  out = decoded(small, conditioning=[bits[:, :4] for bits in free.bits], table=TABLE)
  np.testing.assert_allclose(out.quantized[:, :4], free.quantized[:, :4], atol=1e-6)
  error = np.abs(out.logits[:, 0, 0] - free.logits[:, 4, 0]).max()
  scale = np.abs(free.logits[:, 4, 0]).max()
  assert 0 < error < 0.1 * scale


def test_two_devices_equal_one(model, free):
  """Heads, MLP and cache are sharded over two devices, parameters by their logical axes."""
  template = Template.of(lambda key: Generator(nnx.Rngs(params=key), CONFIG, LAYOUT))
  mesh = make_mesh(MeshConfig(data=1, tensor=2))
  params = jax.device_put(nnx.to_pure_dict(nnx.split(model)[1]), template.shardings(mesh))
  split = template.module(params)
  with jax.set_mesh(mesh):
    out = decoded(split)
    begin = jax.jit(lambda model, keys: start(model, LAYOUT, TEXT, NULL, keys, slots=1))
    state = begin(split, sample_keys(0, jnp.arange(2)))
  assert state.cache.keys.addressable_shards[0].data.shape[2] == 1  # One of two heads.
  np.testing.assert_allclose(out.logits, free.logits, atol=1e-4)
  for a, b in zip(out.bits, free.bits, strict=True):
    np.testing.assert_array_equal(a, b)


def test_given_frames_must_leave_some(model):
  given = [jnp.zeros((2, 5, *grid, 6), jnp.uint8) for grid in LAYOUT.schedule]
  with pytest.raises(ValueError, match="5 frames leave nothing of 5"):
    decode(model, LAYOUT, TEXT, NULL, sample_keys(0, jnp.arange(2)), TABLE, conditioning=given)
