"""Bitwise self-correction: labels that undo flipped bits of coarser scales.

Training inputs are corrupted the way errors at inference would corrupt them, and the labels of
later scales are recomputed from what the flipped bits left over.

Source: Infinity, arXiv 2412.04431; VIDEOAR sections 3.5 and 3.6.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from videoar_jax.nn.resize import area_resize, linear_resize
from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes, residual_bits
from videoar_jax.tokenizers.bsq.schedules import Schedule


class SelfCorrected(NamedTuple):
  """Inputs and labels of a training step.

  Attributes:
    labels: one array per scale, uint8 `[b, t, h_s, w_s, d]`.
    features: input of each cell of each scale but the first one, `[b, t, q_s, d]`: the sum of the
      corrupted codes of the scales before.
    residuals: what each scale codes, whose signs are the labels, `[b, t, h_s, w_s, d]`.
    quantized: the accumulated corrupted codes `[b, t, h, w, d]`.
  """

  labels: list[UInt8[Array, "b t _y _x d"]]
  features: list[Float[Array, "b t _q d"]]
  residuals: list[Float[Array, "b t _y _x d"]]
  quantized: Float[Array, "b t h w d"]


def draw_flips(
  key: Array, ratios: Float[Array, "b t s"], schedule: Schedule, num_bits: int
) -> list[Bool[Array, "b t _y _x d"]]:
  """Draws which bits flip, each with its frame's and scale's probability."""
  b, t, _ = ratios.shape
  return [
    jax.random.bernoulli(
      jax.random.fold_in(key, s), ratios[:, :, s, None, None, None], (b, t, *grid, num_bits)
    )
    for s, grid in enumerate(schedule)
  ]


def self_correct(
  latents: Float[Array, "b t h w d"],
  schedule: Schedule,
  flips: list[Bool[Array, "b t _y _x d"]] | None = None,
) -> SelfCorrected:
  """Quantizes latents while flipping bits, each frame alone; without flips, teacher forcing.

  Args:
    latents: unquantized.
    schedule: scales, ending at (h, w).
    flips: which bits to flip; None for none.
  """
  b, t, h, w, _ = latents.shape
  total = jnp.zeros_like(latents)
  labels, features, residuals = [], [], []
  for s, grid in enumerate(schedule):
    if s > 0:
      features.append(linear_resize(total, grid).reshape(b, t, grid[0] * grid[1], -1))
    bits, _ = residual_bits(latents - total, grid)
    labels.append(bits)
    residuals.append(area_resize(latents - total, grid))
    if flips is not None:
      bits = bits ^ flips[s].astype(bits.dtype)
    total = total + linear_resize(bits_to_codes(bits, latents.dtype), (h, w))
  return SelfCorrected(labels, features, residuals, total)
