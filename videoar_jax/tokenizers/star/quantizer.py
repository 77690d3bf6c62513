"""InfinityStar's quantizer: a residual is quantized several times at each scale of a pyramid.

All functions are pure and take arrays `[b, t, h, w, c]`. The loop, which training, conditioning and
sampling have in common, is

  total = zeros [b, t, H, W, c]                           # at the start of a pyramid
  for scale in schedule:                                  # schedules.Pyramid.schedule(num_latents)
    for repetition in range(scale.repetitions):
      inputs = input_of(total, scale.grid)                # what the generator sees, [b, t, h, w, c]
      bits = bits_of(residual_of(latents - total, scale)) # or sampled, uint8 [b, t, h, w, d]
      total += code_of_bits(bits, (H, W), c)              # contribution [b, t, H, W, c]

for the latent frames `scale.start` to `scale.stop` of each scale. Semantic scales have d = 16 bits
for c = 64 channels: residuals are averaged and codes are interpolated over channels as over height
and width. Time is never resized. The decoder takes the totals of all pyramids, in a row.

  quantize      bits of every repetition and the totals, of an image or a clip
  dequantize    the totals of given bits
  corrupt       the training path: inputs and labels of one repetition of each scale, where bits of
                the ones before are flipped; `draw` makes its random numbers

Source: INFINITY sections 6.3, S1 and S5.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from videoar_jax.nn.resize import area_resize, linear_resize
from videoar_jax.tokenizers.star.schedules import Scale, Schedule

Bits = UInt8[Array, "b _t _h _w _d"]


class Quantized(NamedTuple):
  """The result of `quantize`.

  Attributes:
    bits: for each scale, the bits of each repetition, uint8 `[b, t, h, w, d]`.
    quantized: the accumulated codes `[b, t, H, W, c]`, what the decoder takes.
  """

  bits: list[list[Bits]]
  quantized: Float[Array, "b t H W c"]


class Selected(NamedTuple):
  """The repetition of a scale that a generator trains on.

  Attributes:
    inputs: the codes so far at the scale's size, `[b, t, h, w, c]`.
    labels: bits of the residual, uint8 `[b, t, h, w, d]`.
  """

  inputs: Float[Array, "b t h w c"]
  labels: UInt8[Array, "b t h w d"]


class Draws(NamedTuple):
  """Random numbers of `corrupt`.

  Attributes:
    selected: for each scale, the repetition to train on, `[b]`.
    flips: for each scale, which bits of each repetition are flipped, `[b, t, h, w, d]`; None for a
      repetition without flips.
  """

  selected: list[Int[Array, " b"]]
  flips: list[list[Bool[Array, "b _t _h _w _d"] | None]]


def input_of(total: Float[Array, "b t H W c"], grid: tuple[int, int]) -> Float[Array, "b t h w c"]:
  """Returns what a generator sees at a scale: the codes so far, averaged over cells."""
  return area_resize(total, grid)


def residual_of(residual: Float[Array, "b t H W c"], scale: Scale) -> Float[Array, "b t h w d"]:
  """Returns a residual at the size of a scale, with a channel for each bit."""
  return area_resize(residual, scale.grid, scale.num_bits)


def bits_of(residual: Float[Array, "b t h w d"]) -> UInt8[Array, "b t h w d"]:
  """Returns the bits of a residual at the size of its scale: 1 where it is positive."""
  return (residual > 0).astype(jnp.uint8)


def code_of_bits(
  bits: UInt8[Array, "b t h w d"], size: tuple[int, int], num_channels: int, dtype=jnp.float32
) -> Float[Array, "b t H W c"]:
  """Returns what the bits of a repetition add to the latents.

  Args:
    bits: at their scale's grid.
    size: (H, W) of the latents.
    num_channels: of the latents.
    dtype: of the result.
  """
  code = (2.0 * bits.astype(dtype) - 1.0) / math.sqrt(bits.shape[-1])
  return linear_resize(code, size, num_channels)


def quantize(latents: Float[Array, "b t H W c"], schedule: Schedule) -> Quantized:
  """Quantizes latents at all repetitions of all scales, each coding what the ones before left.

  Args:
    latents: unquantized, as many frames as the schedule has.
    schedule: from `Pyramid.schedule`.
  Raises:
    ValueError: the schedule is for latents of another shape.
  """
  _check(latents, schedule)
  bits, totals, total = [], [], None
  for scale in schedule:
    target = latents[:, scale.start : scale.stop]
    total = jnp.zeros_like(target) if total is None else total
    bits.append([])
    for _ in range(scale.repetitions):
      bits[-1].append(bits_of(residual_of(target - total, scale)))
      total = total + _code(bits[-1][-1], latents)
    if scale.is_last:
      totals.append(total)
      total = None
  return Quantized(bits, jnp.concatenate(totals, axis=1))


def dequantize(
  bits: list[list[Bits]], schedule: Schedule, num_channels: int
) -> Float[Array, "b t H W c"]:
  """Returns the accumulated codes of all bits.

  Args:
    bits: of each repetition of each scale.
    schedule: their scales.
    num_channels: of the latents.
  """
  size, totals, total = schedule[-1].grid, [], 0.0
  for scale, of_scale in zip(schedule, bits, strict=True):
    total = total + sum(code_of_bits(each, size, num_channels) for each in of_scale)
    if scale.is_last:
      totals.append(total)
      total = 0.0
  return jnp.concatenate(totals, axis=1)


def corrupt(latents: Float[Array, "b t H W c"], schedule: Schedule, draws: Draws) -> list[Selected]:
  """Returns what a generator trains on: inputs from flipped bits, and labels that correct them.

  Each repetition codes the residual that the flipped bits before it left, so a model learns to
  correct its own errors.

  Args:
    latents: unquantized.
    schedule: their scales.
    draws: random numbers, see `draw`.
  Returns:
    The selected repetition of each scale.
  Raises:
    ValueError: the schedule is for latents of another shape.
  """
  _check(latents, schedule)
  results, total = [], None
  for scale, index, flips in zip(schedule, draws.selected, draws.flips, strict=True):
    target = latents[:, scale.start : scale.stop]
    total = jnp.zeros_like(target) if total is None else total
    chosen = None
    for repetition, flip in zip(range(scale.repetitions), flips, strict=True):
      labels = bits_of(residual_of(target - total, scale))
      current = Selected(input_of(total, scale.grid), labels)
      is_chosen = (index == repetition)[:, None, None, None, None]
      chosen = current if chosen is None else _where(is_chosen, current, chosen)
      used = labels if flip is None else labels ^ flip.astype(jnp.uint8)
      total = total + _code(used, latents)
    results.append(chosen)
    total = None if scale.is_last else total
  return results


def draw(key: jax.Array, schedule: Schedule, batch_size: int, strength: float) -> Draws:
  """Draws the repetitions to train on and the bits to flip.

  Every clip has a chance of its own for each repetition, from 0, 0.01 and so on to `strength`, with
  which each of its bits is flipped. Bits of the very last scale are not, since nothing follows.

  Args:
    key: random key.
    schedule: scales of the clips.
    batch_size: number of clips.
    strength: largest chance of a flip; 0 for none.
  """
  selected, flips = [], []
  for s, scale in enumerate(schedule):
    scale_key = jax.random.fold_in(key, s)
    selected.append(jax.random.randint(scale_key, (batch_size,), 0, scale.repetitions))
    flips.append([])
    for repetition in range(scale.repetitions):
      is_flipped = strength > 0 and s + 1 < len(schedule)
      repetition_key = jax.random.fold_in(scale_key, 1 + repetition)
      flips[-1].append(_flips(repetition_key, scale, batch_size, strength) if is_flipped else None)
  return Draws(selected, flips)


def _flips(key, scale: Scale, batch_size: int, strength: float) -> Bool[Array, "b t h w d"]:
  keys = jax.random.split(key)
  # Numbers such as 0.29 * 100 are a little less than whole.
  most = int(round(100 * strength, 6)) + 1
  chance = jax.random.randint(keys[0], (batch_size, 1, 1, 1, 1), 0, most) * 0.01
  return jax.random.bernoulli(
    keys[1], chance, (batch_size, scale.num_frames, *scale.grid, scale.num_bits)
  )


def _where(condition, current: Selected, before: Selected) -> Selected:
  return Selected(*(jnp.where(condition, *pair) for pair in zip(current, before, strict=True)))


def _code(bits, latents):
  return code_of_bits(bits, latents.shape[2:4], latents.shape[-1], latents.dtype)


def _check(latents, schedule: Schedule) -> None:
  last = schedule[-1]
  wanted = (last.stop, *last.grid)
  if latents.shape[1:4] != wanted or latents.shape[-1] < max(each.num_bits for each in schedule):
    raise ValueError(
      f"the schedule is for latents of [t, h, w] = {wanted} and {last.num_bits} channels, got "
      f"{latents.shape[1:]}"
    )
