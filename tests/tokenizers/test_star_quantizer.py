"""InfinityStar's quantizer: reference numbers, and what must hold for any latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import star_tokenizer_golden as golden

from videoar_jax.tokenizers.star import quantizer
from videoar_jax.tokenizers.star.schedules import Pyramid

TINY = Pyramid(
  grids=((1, 1), (2, 3), (3, 4)),
  image_repetitions=(2, 1, 2),
  clip_repetitions=(3, 2, 1),
  min_detail_tokens=6,
  clip_length=2,
  num_channels=8,
  semantic_bits=2,
)


@pytest.fixture(scope="module")
def latents():
  return jax.random.normal(jax.random.key(0), (2, 4, 3, 4, 8))


def _pyramid(table, image, clip, min_detail_tokens, clip_length):
  num_scales = len(image)
  return Pyramid(
    grids=tuple((int(h), int(w)) for _, h, w in table[:num_scales]),
    image_repetitions=tuple(map(int, image)),
    clip_repetitions=tuple(map(int, clip)) if len(clip) else (1,) * num_scales,
    min_detail_tokens=min_detail_tokens,
    clip_length=clip_length,
  )


@pytest.mark.golden
@pytest.mark.parametrize("name", golden.cases("f_star_two_stage_quant*.npz"))
def test_bits_and_sums_are_the_public_ones(name):
  arrays = np.load(golden.FOLDER / name)
  counts = (arrays[f"{kind}_scale_repetition"] for kind in ("image", "video"))
  bits = [arrays[name] for name in arrays if name.startswith("bits_")]
  min_detail_tokens = min(each[0, 0, ..., 0].size for each in bits if each.shape[-1] == 64)
  pyramid = _pyramid(arrays["schedule"], *counts, min_detail_tokens, clip_length=20)
  schedule = pyramid.schedule(arrays["raw_features"].shape[2])
  assert [[s.num_frames, *s.grid] for s in schedule] == arrays["schedule"].tolist()
  latents = golden.channels_last(arrays["raw_features"])
  result = jax.jit(quantizer.quantize, static_argnums=1)(latents, schedule)
  ours = [each for of_scale in result.bits for each in of_scale]
  for i in range(max(len(ours), len(bits))):
    np.testing.assert_array_equal(ours[i], arrays[f"bits_{i}"])
  sums = golden.channels_last(arrays["summed_codes"])
  np.testing.assert_allclose(result.quantized, sums, atol=2e-6)


def _paths():
  """Returns the reference files of the training and inference path of one clip."""
  return [
    name for name in golden.cases("c_*.npz") if "raw_features" in np.load(golden.FOLDER / name)
  ]


def _replayed(arrays):
  """Returns a file's latents, schedule and draws, and the flips of each repetition."""
  grids = [tuple(grid) for _, *grid in arrays["schedule"].tolist()]
  n = 1 + grids.index(grids[-1])
  counts = arrays["reps"][:n], arrays["reps"][n : 2 * n]
  pyramid = _pyramid(arrays["schedule"], *counts, int(arrays["detail_scale_min_tokens"]), 3)
  latents = golden.channels_last(arrays["raw_features"])
  schedule = pyramid.schedule(latents.shape[1])
  assert [[s.num_frames, *s.grid] for s in schedule] == arrays["schedule"].tolist()
  names = [[f"flip_{s}_{r}" for r in range(x.repetitions)] for s, x in enumerate(schedule)]
  has_flips = bool(arrays["requant"])
  flips = [[arrays[x] if has_flips and x in arrays else None for x in each] for each in names]
  selected = [arrays[f"select_{s}"].reshape(1) for s in range(len(schedule))]
  return latents, schedule, quantizer.Draws(selected, flips)


@pytest.mark.golden
@pytest.mark.parametrize("name", _paths())
def test_residuals_and_bits_of_every_repetition_are_the_public_ones(name):
  arrays = np.load(golden.FOLDER / name)
  latents, schedule, draws = _replayed(arrays)
  size = latents.shape[2:4]

  # The loop of the module's docstring.
  @jax.jit
  def replay(latents):
    steps, total = [], 0.0
    for s, scale in enumerate(schedule):
      for flip in draws.flips[s]:
        target = latents[:, scale.start : scale.stop]
        residual = quantizer.residual_of(target - total, scale)
        bits = quantizer.bits_of(residual)
        steps.append((residual, bits))
        used = bits if flip is None else bits ^ jnp.asarray(flip, jnp.uint8)
        total = total + quantizer.code_of_bits(used, size, latents.shape[-1])
      total = 0.0 if scale.is_last else total
    return steps

  names = [f"{s}_{r}" for s, scale in enumerate(schedule) for r in range(scale.repetitions)]
  for step, (residual, bits) in zip(names, replay(latents), strict=True):
    if f"resid_{step}" in arrays:
      expected = golden.channels_last(arrays[f"resid_{step}"])
      np.testing.assert_allclose(residual, expected, atol=1e-6)
    np.testing.assert_array_equal(bits, arrays[f"bits_{step}"])


@pytest.mark.golden
@pytest.mark.parametrize("name", _paths())
def test_inputs_and_labels_of_selected_repetitions_are_the_public_ones(name):
  arrays = np.load(golden.FOLDER / name)
  latents, schedule, draws = _replayed(arrays)
  selected = jax.jit(lambda x: quantizer.corrupt(x, schedule, draws))(latents)
  labels = [
    arrays[f"gt_{s}"] if f"gt_{s}" in arrays else arrays[f"bits_{s}_{int(draws.selected[s][0])}"]
    for s in range(len(schedule))
  ]
  for ours, theirs in zip(selected, labels, strict=True):
    np.testing.assert_array_equal(ours.labels.reshape(theirs.shape), theirs)
  if "x_BLC" in arrays:
    inputs = [each.inputs.reshape(1, -1, latents.shape[-1]) for each in selected]
    np.testing.assert_allclose(np.concatenate(inputs, axis=1), arrays["x_BLC"], atol=1e-6)


def test_codes_of_all_bits_add_up_to_the_sums(latents):
  schedule = TINY.schedule(latents.shape[1])
  result = jax.jit(quantizer.quantize, static_argnums=1)(latents, schedule)
  codes = jax.jit(lambda bits: quantizer.dequantize(bits, schedule, 8))(result.bits)
  np.testing.assert_allclose(codes, result.quantized, atol=1e-6)
  shapes = [(each.shape, len(of_scale)) for of_scale in result.bits for each in of_scale[:1]]
  assert shapes == [
    ((2, t, *grid, d), count)
    for t, counts in ((1, (2, 1, 2)), (2, (3, 2, 1)), (1, (3, 2, 1)))
    for grid, d, count in zip(TINY.grids, (2, 8, 8), counts, strict=True)
  ]
  # A pyramid sees its own frames only.
  changed = latents.at[:, 1:3].multiply(-1.0)
  other = jax.jit(quantizer.quantize, static_argnums=1)(changed, schedule)
  for s, scale in enumerate(schedule):
    is_same = all(np.array_equal(*pair) for pair in zip(result.bits[s], other.bits[s], strict=True))
    assert is_same == (scale.pyramid != 1)


def test_each_repetition_reduces_the_error():
  pyramid = Pyramid(
    grids=((3, 4),), image_repetitions=(8,), clip_repetitions=(1,), min_detail_tokens=1
  )
  # Codes of one length are as long as the latents at first, and shorter latents are left out.
  latents = 0.8 * jax.random.normal(jax.random.key(1), (1, 1, 3, 4, 64))
  bits = quantizer.quantize(latents, pyramid.schedule(1)).bits[0]
  total, errors = 0.0, []
  for each in bits:
    total = total + quantizer.code_of_bits(each, (3, 4), 64)
    errors.append(float(jnp.mean(jnp.square(latents - total))))
  assert errors == sorted(errors, reverse=True)


def test_flips_change_later_inputs_and_labels_of_the_pyramid_alone(latents):
  schedule = TINY.schedule(latents.shape[1])
  clean = quantizer.draw(jax.random.key(0), schedule, 2, strength=0.0)
  assert all(flip is None for flips in clean.flips for flip in flips)
  # The first repetition of each scale, but the last one of the second pyramid's first scale.
  selected = [jnp.full(2, 2 if s == 3 else 0) for s in range(len(schedule))]
  flips = [list(each) for each in clean.flips]
  flips[3][2] = jnp.ones((2, 2, 1, 1, 2), bool)
  before, after = jax.jit(
    lambda x: [
      quantizer.corrupt(x, schedule, quantizer.Draws(selected, each))
      for each in (clean.flips, flips)
    ]
  )(latents)
  for s, scale in enumerate(schedule):
    is_same = np.array_equal(before[s].inputs, after[s].inputs)
    assert is_same == (scale.pyramid != 1 or s == 3)
  # The next label is the sign of what the opposite of the last code left.
  target, total, scale = latents[:, 1:3], jnp.zeros((2, 2, 3, 4, 8)), schedule[3]
  for sign in (1, 1, -1):
    bits = quantizer.bits_of(quantizer.residual_of(target - total, scale))
    total = total + sign * quantizer.code_of_bits(bits, (3, 4), 8)
  np.testing.assert_array_equal(after[3].labels, bits)
  expected = quantizer.bits_of(quantizer.residual_of(target - total, schedule[4]))
  np.testing.assert_array_equal(after[4].labels, expected)
  inputs = quantizer.input_of(total, schedule[4].grid)
  np.testing.assert_allclose(after[4].inputs, inputs, atol=1e-6)


def test_draws_are_within_their_bounds():
  pyramid = Pyramid(
    grids=((4, 4), (8, 8)),
    image_repetitions=(2, 3),
    clip_repetitions=(2, 3),
    min_detail_tokens=1,
    semantic_bits=64,
  )
  schedule = pyramid.schedule(2)
  draws = quantizer.draw(jax.random.key(2), schedule, 64, strength=0.29)
  for scale, index in zip(schedule, draws.selected, strict=True):
    assert set(np.unique(index)) == set(range(scale.repetitions))
  assert all(flip is None for flip in draws.flips[-1])
  rates = np.stack([np.mean(x, axis=(1, 2, 3, 4)) for x in draws.flips[0] + draws.flips[1]])
  assert rates.max() < 0.29 + 0.05 and rates.max() > 0.29 - 0.05
  assert rates.min() < 0.05 and abs(rates.mean() - 0.145) < 0.02
  assert np.std(rates, axis=1).min() > 0.05  # Every clip has its own.


def test_latents_of_another_shape_are_refused(latents):
  with pytest.raises(ValueError, match=r"\[t, h, w\] = \(3, 3, 4\)"):
    quantizer.quantize(latents, TINY.schedule(3))
