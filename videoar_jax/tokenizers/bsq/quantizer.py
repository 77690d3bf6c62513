"""Multi-scale binary spherical quantizer, one frame at a time.

A latent is the sum of one code per scale; a code is a corner `+-1/sqrt(d)` of the cube in the unit
sphere. Frames are quantized independently: every function takes any leading axes before `h w d`.

Source: VIDEOAR section 2.3.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from videoar_jax.nn.layers import at_least_float32
from videoar_jax.nn.resize import area_resize, linear_resize
from videoar_jax.tokenizers.bsq.schedules import Schedule


class Quantized(NamedTuple):
  """The result of `quantize`.

  Attributes:
    bits: one array per scale, uint8 `[..., h_s, w_s, d]`.
    normalized: residuals of norm 1, whose signs are the bits, `[..., h_s, w_s, d]`.
    quantized: the accumulated codes `[..., h, w, d]`; gradients pass straight through to the input.
    quantization_error: the input minus the codes of all scales, `[..., h, w, d]`.
  """

  bits: list[UInt8[Array, "*b _y _x d"]]
  normalized: list[Float[Array, "*b _y _x d"]]
  quantized: Float[Array, "*b h w d"]
  quantization_error: Float[Array, "*b h w d"]


def bits_to_codes(bits: Array, dtype=jnp.float32) -> Float[Array, "*b d"]:
  """Maps bits to the corners of the cube in the unit sphere: `(2 bits - 1) / sqrt(d)`."""
  return (2.0 * bits.astype(dtype) - 1.0) / math.sqrt(bits.shape[-1])


def unit_sphere(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Divides by the norm over bits; the zero vector stays zero."""
  # The gradient of sqrt at zero is not finite, so zero norms skip it.
  squared = jnp.sum(jnp.square(x), -1, keepdims=True)
  norm = jnp.sqrt(jnp.where(squared > 0, squared, 1.0)) * (squared > 0)
  return x / jnp.maximum(norm, 1e-12)


def residual_bits(residual: Float[Array, "*b h w d"], size: tuple[int, int]):
  """Returns the bits and the unit vectors of a residual at one scale."""
  normalized = unit_sphere(area_resize(residual, size))
  return (normalized > 0).astype(jnp.uint8), normalized


def quantize(
  latents: Float[Array, "*b h w d"], schedule: Schedule, num_scales: Int[Array, "*#b"] | None = None
) -> Quantized:
  """Quantizes latents scale by scale, each scale coding the residual of the scales before.

  Args:
    latents: unquantized.
    schedule: scales, ending at (h, w).
    num_scales: how many scales are accumulated; None for all. Bits are returned for all scales.
  """
  size = tuple(latents.shape[-3:-1])
  residual, total = latents, jnp.zeros_like(latents)
  all_bits, all_normalized = [], []
  for s, scale in enumerate(schedule):
    bits, normalized = residual_bits(residual, scale)
    codes = normalized + jax.lax.stop_gradient(bits_to_codes(bits, latents.dtype) - normalized)
    upsampled = linear_resize(codes, size)
    residual = residual - jax.lax.stop_gradient(upsampled)
    is_kept = True if num_scales is None else (s < num_scales)[..., None, None, None]
    total = total + jnp.where(is_kept, upsampled, 0.0)
    all_bits.append(bits)
    all_normalized.append(normalized)
  return Quantized(all_bits, all_normalized, total, residual)


def dequantize(bits: list[UInt8[Array, "*b _y _x d"]]) -> Float[Array, "*b h w d"]:
  """Returns the accumulated codes of all scales on the grid of the last one."""
  size = tuple(bits[-1].shape[-3:-1])
  return sum(linear_resize(bits_to_codes(scale), size) for scale in bits)


def commitment_loss(quantized: Quantized) -> Float[Array, ""]:
  """Returns the mean over scales of `mean((u - sg(q))^2)`."""
  losses = [
    jnp.mean(jnp.square(normalized - jax.lax.stop_gradient(bits_to_codes(bits, normalized.dtype))))
    for bits, normalized in zip(quantized.bits, quantized.normalized, strict=True)
  ]
  return sum(losses) / len(losses)


def quantization_error_loss(quantized: Quantized) -> Float[Array, ""]:
  """Returns the mean squared quantization error: `mean((x - sg(sum of codes))^2)`.

  The commitment loss only sees directions. Without this loss a latent may grow longer than all
  scales together can reach; then each scale repeats the same bits and none refines or corrects.
  """
  return jnp.mean(jnp.square(quantized.quantization_error))


def _binary_entropy(p: Array) -> Array:
  p = jnp.clip(p, 1e-8, 1 - 1e-7)
  return -(p * jnp.log(p) + (1 - p) * jnp.log1p(-p))


def bit_entropies(normalized: Float[Array, "*b d"], *, sharpness: float = 100.0):
  """Returns the soft bits' entropies, summed over bits, in nats.

  Args:
    normalized: normalised residuals; the mean over all axes but the last is the batch.
    sharpness: inverse temperature of the soft assignment.
  Returns:
    (mean entropy of a token's bits, entropy of the batch's mean bits). Good codes have a small
    first and a large second value. Under `jax.jit` over a mesh the mean is over the global batch.
  """
  d = normalized.shape[-1]
  p = jax.nn.sigmoid(-4.0 * at_least_float32(normalized) * sharpness / math.sqrt(d))
  batch = tuple(range(normalized.ndim - 1))
  per_sample = jnp.mean(jnp.sum(_binary_entropy(p), -1))
  codebook = jnp.sum(_binary_entropy(jnp.mean(p, batch)))
  return per_sample, codebook


def entropy_loss(quantized: Quantized, *, sharpness: float = 100.0) -> Float[Array, ""]:
  """Returns `H(per sample) - H(codebook)` per bit, mean over scales."""
  d = quantized.normalized[0].shape[-1]
  pairs = [bit_entropies(normalized, sharpness=sharpness) for normalized in quantized.normalized]
  return sum(sample - codebook for sample, codebook in pairs) / (len(pairs) * d)
