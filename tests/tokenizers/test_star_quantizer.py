"""InfinityStar's quantizer: reference numbers, and what must hold for any latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import star_golden as golden

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
  result = quantizer.quantize(golden.channels_last(arrays["raw_features"]), schedule)
  ours = [each for of_scale in result.bits for each in of_scale]
  for i in range(max(len(ours), len(bits))):
    np.testing.assert_array_equal(ours[i], arrays[f"bits_{i}"])
  sums = golden.channels_last(arrays["summed_codes"])
  np.testing.assert_allclose(result.quantized, sums, atol=2e-6)
