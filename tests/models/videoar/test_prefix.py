"""Prefix guidance: what is replaced, the formula against whole sequences, streams, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_networks import make_model

from videoar_jax.models.request import sample_keys
from videoar_jax.models.videoar import prefix
from videoar_jax.models.videoar.config import GeneratorConfig, SamplingConfig
from videoar_jax.models.videoar.decode import decode, decode_frame, start, write_frame
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.prefix import PrefixGuidance, PrefixGuidanceConfig
from videoar_jax.nn.resize import area_resize, linear_resize
from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes

LAYOUT = Layout(text_length=4, num_frames=3, schedule=((1, 1), (2, 2)))
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
TABLE = np.linspace(0.5, 4.0, 6, dtype=np.float32).reshape(3, 2)
GUIDANCE = PrefixGuidance(0.7, 0.5)


def test_a_share_of_positions_has_others_of_their_scale():
  features = jnp.arange(2 * 9 * 3, dtype=jnp.float32).reshape(2, 9, 3)
  keys = sample_keys(0, jnp.arange(2))
  for share, num in ((1 / 3, 3), (0.5, 4), (1.0, 9)):
    found = np.asarray(jax.jit(prefix.corrupt)(features, keys, share))
    for own, clip in zip(np.asarray(features), found, strict=True):
      is_replaced = (own != clip).any(1)
      assert is_replaced.sum() == num
      rows = {tuple(row) for row in own}
      assert all(tuple(row) in rows for row in clip)  # Whole embeddings, from the same clip.
  assert not (found[0] == found[1] - 27).all()  # Each clip has draws of its own.
  one = features[:, :1]
  assert prefix.corrupt(one, keys, 1.0) is one  # There is no other position.


@pytest.fixture(scope="module", params=["scales", "full_frame"])
def case(request):
  layout = dataclasses.replace(LAYOUT, context=request.param)
  return layout, make_model(CONFIG, layout, noise=0.3)


def decoded(case, table, guidance, **settings):
  layout, model = case
  run = jax.jit(
    lambda model, keys, guidance: decode(
      model, layout, TEXT, NULL, keys, table, prefix_guidance=guidance, **settings
    )
  )
  return run(model, sample_keys(0, jnp.arange(2)), guidance)


def inputs_of(bits):
  """Returns the two scales' inputs, and the latent, of each frame with these bits."""
  first, second, latents, before = [], [], [], jnp.zeros((2, 2, 2, 6))
  for t in range(3):
    coarse = linear_resize(bits_to_codes(bits[0][:, t]), (2, 2))
    first.append(area_resize(before, (1, 1)).reshape(2, 1, 6))
    second.append(coarse.reshape(2, 4, 6))
    before = coarse + bits_to_codes(bits[1][:, t])
    latents.append(before)
  return first, second, latents


@pytest.mark.parametrize("table", [TABLE, None], ids=["guided", "unguided"])
def test_logits_are_those_of_whole_sequences(case, table):
  """Without a cache: the network runs on the true prefix, and on one that is corrupted here."""
  layout, model = case
  out = decoded(case, table, GUIDANCE)
  keys = sample_keys(0, jnp.arange(2))
  first, second, latents = inputs_of(out.bits)
  np.testing.assert_allclose(jnp.stack(latents, 1), out.quantized, atol=1e-6)
  features, corrupted_latents = [], []
  for t in range(3):
    frame_keys = jax.vmap(lambda key, t=t: jax.random.fold_in(key, t))(keys)

    def replaced(x, number, frame_keys=frame_keys):
      own = jax.vmap(lambda key: jax.random.fold_in(key, number))(frame_keys)
      return prefix.corrupt(x, own, GUIDANCE.share)

    features.append(jnp.concatenate([replaced(first[t], 2), replaced(second[t], 3)], axis=1))
    latent = replaced(latents[t].reshape(2, 4, 6), 4)
    corrupted_latents.append(latent.reshape(2, 2, 2, 6))
  corrupted = jnp.stack(features, 1), jnp.stack(corrupted_latents, 1)
  pairs = zip(first, second, strict=True)
  intact = jnp.stack([jnp.concatenate(pair, axis=1) for pair in pairs], 1), out.quantized

  @jax.jit
  def guided(model, features, quantized):
    logits = model(TEXT, features, layout, quantized=quantized)
    if table is None:
      return logits
    null = model(jnp.broadcast_to(NULL, TEXT.shape), features, layout, quantized=quantized)
    scale = np.repeat(table, [1, 4], axis=1)[None, :, :, None]
    return scale * logits + (1 - scale) * null

  true = guided(model, *intact)
  other = guided(model, *corrupted)
  assert float(jnp.abs(true - other).max()) > 0.1
  # The first frame's first scale has no prefix.
  np.testing.assert_allclose(true[:, 0, 0], other[:, 0, 0], atol=1e-5)
  wanted = 1.7 * true - 0.7 * other
  np.testing.assert_allclose(out.logits, wanted, atol=5e-5)


def test_a_weight_of_nothing_changes_nothing(case):
  whole, off = decoded(case, TABLE, PrefixGuidance(0.0, 0.5)), decoded(case, TABLE, None)
  np.testing.assert_allclose(whole.logits, off.logits, atol=1e-5)
  for a, b in zip(whole.bits, off.bits, strict=True):
    np.testing.assert_array_equal(a, b)
  other = decoded(case, TABLE, PrefixGuidance(3.0, 1.0))
  assert any((a != b).any() for a, b in zip(other.bits, off.bits, strict=True))


def test_frames_one_by_one_and_given_ones(case):
  """A stream's steps are those of the loop; given frames get corrupted copies, too."""
  layout, model = case
  whole = decoded(case, TABLE, GUIDANCE)
  given = [bits[:, :1] for bits in whole.bits]
  continued = decoded(case, TABLE, GUIDANCE, conditioning=given)
  np.testing.assert_allclose(continued.logits, whole.logits[:, 1:], atol=1e-5)
  moves = {"prefix_guidance": GUIDANCE}
  keys = sample_keys(0, jnp.arange(2))
  state = start(model, layout, TEXT, NULL, keys, slots=2, is_prefix_guided=True)
  assert state.num_halves == 2 and len(state.text_mask) == 8
  state, _ = write_frame(model, layout, state, [bits[:, 0] for bits in given], **moves)
  _, out = decode_frame(model, layout, state, TABLE[1], **moves)
  np.testing.assert_allclose(out.logits, whole.logits[:, 1], atol=1e-5)


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


def test_a_program_without_it_has_no_rows_for_it(case):
  layout, model = case
  keys = sample_keys(0, jnp.arange(2))
  state = jax.eval_shape(lambda: start(model, layout, TEXT, NULL, keys, slots=1))
  assert len(state.text_mask) == 4 and state.num_halves == 2
  assert isinstance(model, nnx.Module)
