"""Cross-frame error correction against the public image model, and the drawn ratios."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.models.videoar import corruption
from videoar_jax.tokenizers.bsq import quantizer
from videoar_jax.tokenizers.bsq.self_correction import draw_flips

SCHEDULE = ((1, 1), (2, 2), (4, 4))


@pytest.mark.parametrize("name", ["c_sq_006M_d32", "c_sq_006M_d32_noflip"])
def test_equals_public_self_correction(golden, name):
  arrays = golden(f"{name}.npz")
  schedule = tuple((int(h), int(w)) for _, h, w in arrays["schedule"])
  latents = jnp.moveaxis(jnp.asarray(arrays["raw_features"]), 1, -1)[:, None]
  flips = None
  if "flip_0" in arrays.files:
    flips = [jnp.asarray(arrays[f"flip_{k}"]) for k in range(len(schedule))]
  out = corruption.corrupt(latents, schedule, flips)
  np.testing.assert_allclose(out.features[:, 0, 1:], arrays["x_BLC_wo_prefix"], atol=2e-6)
  for k, labels in enumerate(out.labels):
    expected = arrays[f"gt_{k}"].reshape(labels.shape)
    assert not (np.asarray(labels) != expected).any(), f"labels of scale {k} differ"


def test_formula_frame_by_frame():
  key = jax.random.key(0)
  latents = jax.random.normal(key, (2, 3, 4, 4, 8))
  ratios = corruption.draw_ratios(key, 2, 3, 3, corruption.CorruptionConfig(p_max=0.5))
  flips = draw_flips(key, ratios, SCHEDULE, 8)
  out = corruption.corrupt(latents, SCHEDULE, flips)
  before = None
  for t in range(3):
    total, inputs = jnp.zeros((2, 4, 4, 8)), []
    for s, grid in enumerate(SCHEDULE):
      if s == 0:
        first = jnp.zeros((2, 1, 1, 8)) if before is None else before.mean((1, 2), keepdims=True)
        inputs.append(first.reshape(2, 1, 8))
      else:
        inputs.append(quantizer.linear_resize(total, grid).reshape(2, -1, 8))
      label, _ = quantizer.residual_bits(latents[:, t] - total, grid)
      np.testing.assert_array_equal(out.labels[s][:, t], label)
      code = quantizer.bits_to_codes(label ^ flips[s][:, t])
      total = total + quantizer.linear_resize(code, (4, 4))
    np.testing.assert_allclose(out.features[:, t], jnp.concatenate(inputs, 1), atol=1e-6)
    before = total
  np.testing.assert_allclose(out.quantized[:, -1], before, atol=1e-6)
  # With the frame before beside every input, that half holds means over what a cell covers.
  both = corruption.corrupt(latents, SCHEDULE, flips, prev_frame_input="all_scales").features
  np.testing.assert_array_equal(both[..., :8], out.features)
  assert not both[:, 0, :, 8:].any()
  shown = out.quantized[:, :-1]
  np.testing.assert_allclose(both[:, 1:, 5:, 8:], shown.reshape(2, 2, 16, 8), atol=1e-6)
  quarters = shown.reshape(2, 2, 2, 2, 2, 2, 8).mean((3, 5)).reshape(2, 2, 4, 8)
  np.testing.assert_allclose(both[:, 1:, 1:5, 8:], quarters, atol=1e-6)


def test_labels_undo_flips():
  """After a flip, recomputed labels bring the sum closer than the original ones would."""
  latents = jax.random.normal(jax.random.key(1), (16, 1, 4, 4, 8))
  flips = [jnp.full((16, 1, *grid, 8), s == 0) for s, grid in enumerate(SCHEDULE)]
  clean = quantizer.quantize(latents, SCHEDULE)
  corrected = corruption.corrupt(latents, SCHEDULE, flips).quantized
  stale = quantizer.dequantize([1 - clean.bits[0], *clean.bits[1:]])
  assert jnp.square(corrected - latents).mean() < jnp.square(stale - latents).mean()


def test_ratios_lie_in_range_and_inherit():
  config = corruption.CorruptionConfig(p_min=0.05, p_max=0.25, delta=0.02)
  ratios = np.asarray(corruption.draw_ratios(jax.random.key(2), 512, 5, 3, config))
  for t in range(5):
    assert ratios[:, t].max() <= 0.25 + 0.02 * t + 1e-6
    assert ratios[:, t, 1:].min() >= 0.05 + 0.02 * t - 1e-6
    assert ratios[:, t].max() > 0.24 + 0.02 * t
  assert (ratios[:, 1:, 0] >= ratios[:, :-1, -1] - 1e-6).all()
  # Not below, but not equal either: uniform above what is inherited.
  share = (ratios[:, 1:, 0] - ratios[:, :-1, -1]) / (
    0.25 + 0.02 * np.arange(1, 5) - ratios[:, :-1, -1]
  )
  assert abs(share.mean() - 0.5) < 0.03


@pytest.mark.parametrize("num_scales", [1, 3])
def test_switches(num_scales):
  key = jax.random.key(3)
  constant = corruption.CorruptionConfig(delta=0.0, has_inheritance=False)
  ratios = np.asarray(corruption.draw_ratios(key, 256, 4, num_scales, constant))
  assert ratios.max() <= 0.25 and ratios.min() < 0.01
  assert abs(ratios.mean() - 0.125) < 0.01
  assert (ratios[:, 1:, 0] < ratios[:, :-1, -1]).any()
  off = corruption.CorruptionConfig(p_max=0.0, delta=0.0)
  assert (corruption.draw_ratios(key, 8, 4, num_scales, off) == 0).all()


def test_flips_follow_ratios():
  ratios = jnp.broadcast_to(jnp.array([0.0, 0.3, 1.0]), (64, 2, 3))
  flips = draw_flips(jax.random.key(4), ratios, SCHEDULE, 16)
  assert not flips[0].any() and flips[2].all()
  assert abs(float(flips[1].mean()) - 0.3) < 0.02


def test_frames_are_kept_in_their_share():
  keep = np.asarray(corruption.draw_frame_keep(jax.random.key(5), 256, 6, p_mask=0.25))
  for i in range(6):
    for j in range(i):
      assert abs(keep[:, i, j].mean() - 0.75) < 0.1
  assert (keep[:, 3, 1] != keep[:, 4, 3]).any()


@pytest.mark.parametrize("bad", [{"p_min": 0.3, "p_max": 0.2}, {"p_max": 1.5}, {"delta": -0.1}])
def test_bad_settings_are_named(bad):
  with pytest.raises(ValueError, match="corruption"):
    corruption.CorruptionConfig(**bad)
