"""Bit statistics against synthetic bits and the quantizer itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.evals.codebook_usage import CodebookUsage
from videoar_jax.tokenizers.bsq.quantizer import quantize

SCHEDULE = ((1, 1), (2, 3), (4, 6))


def test_flips_and_entropies():
  coarse = np.zeros((2, 2, 1, 1, 4), np.uint8)
  coarse[..., 1] = 1  # Always 1.
  coarse[0, :, 0, 0, 2] = 1  # Half of the time.
  coarse[1, 1, 0, 0, 3] = 1  # One time of four.
  fine = np.zeros((2, 2, 2, 2, 4), np.uint8)
  use = CodebookUsage()
  for clip in (0, 1):  # No bit of the coarse scale but the last one flips within a clip.
    latents = np.ones((1, 2, 2, 2, 4), np.float32)
    use.add(latents, [coarse[clip : clip + 1], fine[clip : clip + 1]])
  result = use.summary()
  first, second = result["scales"]
  assert (first["size"], second["size"]) == ("1x1", "2x2")
  assert (first["flipping"], second["flipping"], result["flipping"]) == (0.5, 0, 0.25)
  quarter = 2 - 0.75 * np.log2(3)
  np.testing.assert_allclose(first["entropies"], [0, 0, 1, quarter])
  assert first["entropy"] == pytest.approx((1 + quarter) / 4)
  assert second["entropies"] == [0, 0, 0, 0]
  assert result["entropy"] == pytest.approx((1 + quarter) / 8)


def test_remainder_is_what_the_quantizer_leaves():
  latents = np.random.default_rng(0).standard_normal((3, 2, 4, 6, 8)).astype(np.float32)
  use = CodebookUsage()
  for part in (latents[:2], latents[2:]):
    use.add(part, quantize(jnp.asarray(part), SCHEDULE).bits)
  found = [scale["quantization_error"] for scale in use.summary()["scales"]]
  norm = np.linalg.norm(latents)
  expected = [
    np.linalg.norm(latents - quantize(jnp.asarray(latents), SCHEDULE, jnp.asarray(k)).quantized)
    for k in (1, 2, 3)
  ]
  np.testing.assert_allclose(found, np.array(expected) / norm, rtol=1e-5)
