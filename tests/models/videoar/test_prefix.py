"""Prefix guidance: what is replaced, the formula against whole sequences, streams, bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import make_model

from videoar_jax.models.request import sample_keys
from videoar_jax.models.videoar import prefix
from videoar_jax.models.videoar.config import GeneratorConfig, SamplingConfig
from videoar_jax.models.videoar.decode import decode, decode_frame
from videoar_jax.models.videoar.decode_steps import start, write_frame
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.prefix import PrefixGuidance, PrefixGuidanceConfig
from videoar_jax.nn import cache
from videoar_jax.nn.resize import area_resize, linear_resize
from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes

# The second scale's inputs are all those of the first one, so a corrupted prefix needs a third.
LAYOUT = Layout(text_length=4, num_frames=3, schedule=((1, 1), (2, 2), (2, 4)))
CONFIG = GeneratorConfig(
  num_layers=1,
  d_model=16,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_dim=24,
  num_bits=6,
  vocabulary_size=11,
)
TEXT = jnp.array([[3, 4, 5, 1], [7, 1, 0, 0]])
NULL = jnp.array([1, 0, 0, 0])
TABLE = jnp.linspace(0.5, 4.0, 9, dtype=jnp.float32).reshape(3, 3)
GUIDANCE = PrefixGuidance(0.7, 0.5)


def test_a_share_of_positions_has_others_of_their_scale():
  features = jnp.arange(2 * 9 * 3, dtype=jnp.float32).reshape(2, 9, 3)
  keys = sample_keys(0, jnp.arange(2))
  corrupt = jax.jit(prefix.corrupt)
  for share, num in ((1 / 3, 3), (0.5, 4), (1.0, 9)):
    found = np.asarray(corrupt(features, keys, share))
    for own, clip in zip(np.asarray(features), found, strict=True):
      is_replaced = (own != clip).any(1)
      assert is_replaced.sum() == num
      rows = {tuple(row) for row in own}
      assert all(tuple(row) in rows for row in clip)  # Whole embeddings, from the same clip.
  assert not (found[0] == found[1] - 27).all()  # Each clip has draws of its own.
  one = features[:, :1]
  assert prefix.corrupt(one, keys, 1.0) is one  # There is no other position.


@pytest.fixture(autouse=True)
def short_ranges(monkeypatch):
  """Reads the ring by ranges, as if it were long."""
  monkeypatch.setattr(cache, "_MIN_RANGE", 1)


@functools.cache
def case(context):
  layout = dataclasses.replace(LAYOUT, context=context)
  return layout, make_model(CONFIG, layout, noise=0.3)


@functools.partial(jax.jit, static_argnums=1)
def run(model, layout, keys, table, guidance, conditioning=None):
  settings = {"prefix_guidance": guidance, "conditioning": conditioning}
  return decode(model, layout, TEXT, NULL, keys, table, **settings)


def decoded(context, table, guidance, conditioning=None):
  layout, model = case(context)
  return run(model, layout, sample_keys(0, jnp.arange(2)), table, guidance, conditioning)


def inputs_of(bits):
  """Returns the scales' inputs, and the latent, of each frame with these bits."""
  frames, latents, before = [], [], jnp.zeros((2, 2, 4, 6))
  for t in range(3):
    total, scales = jnp.zeros_like(before), [area_resize(before, (1, 1)).reshape(2, 1, 6)]
    for s, (height, width) in enumerate(LAYOUT.schedule):
      if s:
        scales.append(linear_resize(total, (height, width)).reshape(2, -1, 6))
      total = total + linear_resize(bits_to_codes(bits[s][:, t]), (2, 4))
    frames.append(scales)
    latents.append(total)
    before = total
  return frames, latents


@pytest.mark.parametrize(
  ("context", "table"),
  [
    pytest.param("scales", TABLE, marks=pytest.mark.slow, id="scales"),
    pytest.param("full_frame", None, id="full_frame"),
  ],
)
def test_logits_are_those_of_whole_sequences(context, table):
  """Without a cache: the network runs on the true prefix, and on one that is corrupted here."""
  layout, model = case(context)
  out = decoded(context, table, GUIDANCE)
  keys = sample_keys(0, jnp.arange(2))

  @jax.jit
  def inputs(bits):
    """Returns inputs and latents as they are, and corrupted."""
    frames, latents = inputs_of(bits)
    found = []
    for share in (None, GUIDANCE.share):
      features, finals = [], []
      for t, scales in enumerate(frames):
        own = jax.vmap(lambda key, t=t: jax.random.fold_in(key, t))(keys)
        parts = [*scales, latents[t].reshape(2, 8, 6)]
        for number, part in enumerate(parts, start=3):
          numbered = jax.vmap(lambda key, n=number: jax.random.fold_in(key, n))(own)
          parts[number - 3] = part if share is None else prefix.corrupt(part, numbered, share)
        features.append(jnp.concatenate(parts[:3], axis=1))
        finals.append(parts[3].reshape(2, 2, 4, 6))
      found.append((jnp.stack(features, 1), jnp.stack(finals, 1)))
    return found

  @jax.jit
  def guided(model, features, quantized):
    logits = model(TEXT, features, layout, quantized=quantized)
    if table is None:
      return logits
    null = model(jnp.broadcast_to(NULL, TEXT.shape), features, layout, quantized=quantized)
    scale = np.repeat(np.asarray(table), [1, 4, 8], axis=1)[None, :, :, None]
    return scale * logits + (1 - scale) * null

  intact, corrupted = inputs(out.bits)
  np.testing.assert_allclose(intact[1], out.quantized, atol=1e-6)
  true, other = guided(model, *intact), guided(model, *corrupted)
  assert float(jnp.abs(true - other).max()) > 0.1
  # The first frame's first scale has no prefix.
  np.testing.assert_allclose(true[:, 0, 0], other[:, 0, 0], atol=1e-5)
  np.testing.assert_allclose(out.logits, 1.7 * true - 0.7 * other, atol=1e-4)


def test_a_weight_of_nothing_changes_nothing():
  whole = decoded("scales", TABLE, PrefixGuidance(0.0, 0.5))
  off = decoded("scales", TABLE, None)
  np.testing.assert_allclose(whole.logits, off.logits, atol=1e-5)
  for a, b in zip(whole.bits, off.bits, strict=True):
    np.testing.assert_array_equal(a, b)
  other = decoded("scales", TABLE, PrefixGuidance(3.0, 1.0))
  assert any((a != b).any() for a, b in zip(other.bits, off.bits, strict=True))


@pytest.mark.slow
def test_frames_one_by_one_and_given_ones():
  """A stream's steps are those of the loop; given frames get corrupted copies, too."""
  context = "full_frame"
  layout, model = case(context)
  whole = decoded(context, None, GUIDANCE)
  given = [bits[:, :1] for bits in whole.bits]
  continued = decoded(context, None, GUIDANCE, given)
  np.testing.assert_allclose(continued.logits, whole.logits[:, 1:], atol=1e-5)

  @jax.jit
  def second(model, keys):
    kind = {"slots": 2, "is_guided": False, "is_prefix_guided": True}
    state = start(model, layout, TEXT, NULL, keys, **kind)
    assert state.num_halves == 1 and len(state.text_mask) == 4
    moves = {"prefix_guidance": GUIDANCE}
    state, _ = write_frame(model, layout, state, [bits[:, 0] for bits in given], **moves)
    return decode_frame(model, layout, state, jnp.ones(3), **moves)[1].logits

  logits = second(model, sample_keys(0, jnp.arange(2)))
  np.testing.assert_allclose(logits, whole.logits[:, 1], atol=1e-5)


def test_settings():
  assert SamplingConfig().prefix_guidance.active() is None
  assert PrefixGuidanceConfig.parse("0.5,0.1") == PrefixGuidanceConfig(0.5, 0.1)
  assert PrefixGuidanceConfig.parse("2").active() == PrefixGuidance(2.0, 0.25)
  for text in ("much", "1,2,3", ""):
    with pytest.raises(ValueError, match=r"must be WEIGHT or WEIGHT,SHARE, such as 0\.5,0\.25"):
      PrefixGuidanceConfig.parse(text)
  for values, wanted in (((-1.0, 0.5), "weight=-1.0"), ((float("nan"), 0.5), "weight=nan")):
    with pytest.raises(ValueError, match=f"prefix_guidance.{wanted} must be a number, 0 or more"):
      PrefixGuidanceConfig(*values)
  with pytest.raises(ValueError, match=r"share=0\.0 must be in \(0, 1\]"):
    PrefixGuidanceConfig(1.0, 0.0)
