"""Cached decoding against the full forward pass, and sampling of bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sequences import keep_of_window
from tiny_networks import (
  GENERATOR,
  LAYOUT,
  LAYOUTS,
  NAMES,
  NULL,
  TEXT,
  make_model,
)

from videoar_jax.models.bits import sample_bits
from videoar_jax.models.request import sample_keys
from videoar_jax.models.videoar.decode import decode


@pytest.fixture(scope="module")
def model():
  return make_model()


def decoded(model, keys, layout=LAYOUT, **kwargs):
  settings = {"guidance": jnp.full((3, 3), 2.0), "temperature": 1.0, **kwargs}
  return jax.jit(lambda model, keys: decode(model, layout, TEXT, NULL, keys, **settings))(
    model, keys
  )


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
@pytest.mark.parametrize("positions, window", [("rope", None), ("rope", 1), ("learned", None)])
def test_cached_decoding_equals_full_forward(positions, window, layout):
  model = make_model(dataclasses.replace(GENERATOR, positions=positions), layout)
  g = jnp.linspace(0.5, 4.0, 9).reshape(3, 3)
  out = decoded(model, sample_keys(0, jnp.arange(2)), layout, guidance=g, window=window)
  # The sampled bits, not a fresh quantization, are what the decoder went on with.
  features = features_of(out.bits, layout.prev_frame_input)
  keep = keep_of_window(2, 3, window)
  null = jnp.broadcast_to(NULL, TEXT.shape)
  kwargs = {"frame_keep": keep, "quantized": out.quantized}
  conditional = model(TEXT, features, layout, **kwargs)
  unconditional = model(null, features, layout, **kwargs)
  table = jnp.repeat(g, np.array(LAYOUT.scale_sizes), axis=1)[None, :, :, None]
  expected = table * conditional + (1 - table) * unconditional
  assert float(jnp.abs(expected).max()) > 1.0
  np.testing.assert_allclose(out.logits, expected, atol=1e-4)


def test_learned_positions_end():
  model = make_model(dataclasses.replace(GENERATOR, positions="learned"))
  longer = dataclasses.replace(LAYOUT, num_frames=4)
  with pytest.raises(ValueError, match="learned positions"):
    decoded(model, sample_keys(0, jnp.arange(2)), longer, guidance=jnp.ones((4, 3)))


def features_of(bits, prev_frame_input):
  """The decoder's inputs, computed from its own bits by the formula."""
  from videoar_jax.nn.resize import area_resize, linear_resize
  from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes

  frames, before = [], jnp.zeros((2, 3, 4, 6))
  for t in range(3):
    total, parts = jnp.zeros((2, 3, 4, 6)), []
    for s, grid in enumerate(LAYOUT.schedule):
      source = area_resize(before, grid) if s == 0 else linear_resize(total, grid)
      if prev_frame_input == "all_scales":
        source = jnp.concatenate([source, area_resize(before, grid)], -1)
      parts.append(source.reshape(2, grid[0] * grid[1], -1))
      total = total + linear_resize(bits_to_codes(bits[s][:, t]), (3, 4))
    frames.append(jnp.concatenate(parts, 1))
    before = total
  return jnp.stack(frames, 1)


def test_samples_depend_on_their_own_key_only(model):
  keys = sample_keys(3, jnp.arange(2))
  both = decoded(model, keys)
  swapped = decoded(model, jnp.stack([keys[0], sample_keys(3, 7 + jnp.arange(1))[0]]))
  for a, b in zip(both.bits, swapped.bits, strict=True):
    np.testing.assert_array_equal(a[0], b[0])
  assert any((a[1] != b[1]).any() for a, b in zip(both.bits, swapped.bits, strict=True))
  np.testing.assert_array_equal(
    jax.random.key_data(sample_keys(3, 1 + jnp.arange(1))[0]), jax.random.key_data(keys[1])
  )


def test_forced_frames_are_kept(model):
  free = decoded(model, sample_keys(0, jnp.arange(2)))
  forced = [1 - bits for bits in free.bits]
  out = decoded(model, sample_keys(0, jnp.arange(2)), conditioning=[bits[:, :2] for bits in forced])
  for a, b in zip(out.bits, forced, strict=True):
    np.testing.assert_array_equal(a[:, :2], b[:, :2])
    assert a.shape == b.shape
  assert any((a[:, 2] != b[:, 2]).any() for a, b in zip(out.bits, forced, strict=True))


def test_bit_sampling():
  keys = sample_keys(0, jnp.arange(512))
  logits = jnp.broadcast_to(jnp.array([-1.0, 0.5, 2.0]), (512, 4, 3))
  p = np.asarray(jax.nn.sigmoid(logits[0, 0]))

  def draw(**kwargs):
    return np.asarray(sample_bits(keys, logits, **kwargs)).mean((0, 1))

  np.testing.assert_allclose(draw(temperature=1.0, top_p=1.0), p, atol=0.04)
  halved = np.asarray(jax.nn.sigmoid(logits[0, 0] / 2))
  np.testing.assert_allclose(draw(temperature=2.0, top_p=1.0), halved, atol=0.04)
  np.testing.assert_array_equal(draw(temperature=0.0, top_p=1.0), [0, 1, 1])
  # 1 - p of the third is 0.12, which is dropped at top-p 0.8; the others keep both values.
  kept = draw(temperature=1.0, top_p=0.8)
  assert kept[2] == 1.0 and 0 < kept[0] < 1 and 0 < kept[1] < 1
