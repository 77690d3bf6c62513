"""The quantizer against golden vectors of the public image model, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.nn.resize import area_resize, linear_resize
from videoar_jax.tokenizers.bsq import quantizer


def channels_last(x):
  return jnp.moveaxis(jnp.asarray(x), 1, -1)


def schedule_of(arrays):
  return tuple((int(h), int(w)) for _, h, w in arrays["schedule"])


@pytest.mark.parametrize("name", ["b_sq_006M_d32", "b_r0571_006M_d32"])
def test_equals_public_quantizer(golden, name):
  arrays = golden(f"{name}.npz")
  schedule, x = schedule_of(arrays), channels_last(arrays["x"])
  quantized = quantizer.quantize(x, schedule)
  for k, bits in enumerate(quantized.bits):
    differs = np.asarray(bits) != arrays[f"bits_{k}"][:, 0]
    assert not differs.any(), f"scale {k}: {differs.sum()} bits differ"
  np.testing.assert_allclose(quantized.quantized, channels_last(arrays["z"]), atol=2e-6)
  np.testing.assert_allclose(
    quantizer.dequantize(quantized.bits), channels_last(arrays["z"]), atol=2e-6
  )


@pytest.mark.parametrize("name", ["b_sq_006M_d32", "b_r0571_006M_d32"])
def test_gradient_passes_straight_through(golden, name):
  arrays = golden(f"{name}.npz")
  schedule, weight = schedule_of(arrays), channels_last(arrays["grad_w"])
  gradient = jax.grad(lambda x: jnp.sum(quantizer.quantize(x, schedule).quantized * weight))
  expected = channels_last(arrays["grad_x"])
  np.testing.assert_allclose(gradient(channels_last(arrays["x"])), expected, atol=1e-5)


def test_one_scale_codes_and_entropies(golden):
  arrays = golden("b_bsq_single_d32.npz")
  codes = quantizer.bits_to_codes(jnp.asarray(arrays["bits"]))
  np.testing.assert_allclose(codes, channels_last(arrays["codes"]), atol=1e-7)
  sample, codebook = quantizer.bit_entropies(jnp.asarray(arrays["ent_z"]))
  np.testing.assert_allclose(sample, arrays["ent_per_sample"], rtol=1e-5)
  np.testing.assert_allclose(codebook, arrays["ent_codebook"], rtol=1e-5)


def test_resizing_equals_torch(golden):
  arrays = golden("b_interp.npz")
  x, checked = channels_last(arrays["x"]), 0
  for key in arrays.files:
    mode, _, size = key.partition("_")
    if mode in ("area", "trilinear") and size.startswith("4x"):
      _, height, width = map(int, size.split("x"))
      resize = area_resize if mode == "area" else linear_resize
      np.testing.assert_allclose(resize(x, (height, width)), channels_last(arrays[key]), atol=1e-6)
      checked += 1
  assert checked == 4


def test_frames_are_quantized_alone():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 8))
  schedule = ((1, 1), (2, 2), (4, 4))
  whole = quantizer.quantize(x, schedule)
  frame = quantizer.quantize(x[:, 1], schedule)
  for a, b in zip(whole.bits, frame.bits, strict=True):
    np.testing.assert_array_equal(a[:, 1], b)


def test_zero_is_a_clean_input():
  x = jnp.zeros((1, 2, 2, 4))
  quantized = quantizer.quantize(x, ((1, 1), (2, 2)))
  assert int(quantized.bits[0].sum()) == 0
  gradient = jax.grad(lambda x: jnp.sum(quantizer.quantize(x, ((2, 2),)).quantized))(x)
  assert np.isfinite(gradient).all()


def test_entropy_rewards_decided_and_varied_bits():
  schedule = ((4, 4),)
  varied = quantizer.quantize(jax.random.normal(jax.random.key(0), (8, 4, 4, 8)), schedule)
  equal = quantizer.quantize(jnp.ones((8, 4, 4, 8)), schedule)
  assert quantizer.entropy_loss(varied) < quantizer.entropy_loss(equal) - 0.3
  assert quantizer.commitment_loss(varied) > 0 and quantizer.commitment_loss(equal) < 1e-12


def test_first_scales_alone():
  """With k scales the sum is that of the first k; bits and quantization error do not change."""
  schedule = ((1, 1), (2, 2), (4, 4))
  x = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 6))
  whole = quantizer.quantize(x, schedule)
  part = quantizer.quantize(x, schedule, jnp.array([1, 2, 3])[:, None])
  for k in range(3):
    first = [bits[k] for bits in whole.bits[: k + 1]]
    expected = sum(linear_resize(quantizer.bits_to_codes(bits), (4, 4)) for bits in first)
    np.testing.assert_allclose(part.quantized[k], expected, atol=1e-6)
  np.testing.assert_allclose(part.quantization_error, x - whole.quantized, atol=1e-6)


def test_quantization_error_loss_pulls_latents_to_their_codes():
  schedule = ((1, 1), (2, 2), (4, 4))
  x = 5 * jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 6))

  def loss(x):
    return quantizer.quantization_error_loss(quantizer.quantize(x, schedule))

  codes = quantizer.quantize(x, schedule).quantized
  np.testing.assert_allclose(jax.grad(loss)(x), 2 * (x - codes) / x.size, atol=1e-6)
