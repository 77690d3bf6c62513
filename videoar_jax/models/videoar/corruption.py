"""Cross-frame error correction and the random frame mask.

Training inputs are corrupted the way errors at inference would corrupt them, and the labels are
recomputed so that the model learns to undo them.

Source: VIDEOAR sections 3.5 and 3.6.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from videoar_jax.nn.resize import area_resize
from videoar_jax.tokenizers.bsq.schedules import Schedule
from videoar_jax.tokenizers.bsq.self_correction import self_correct


@dataclasses.dataclass(frozen=True)
class CorruptionConfig:
  """How many bits of the inputs are flipped; the settings that the paper ablates.

  Attributes:
    p_min: lowest share of flipped bits, at the first frame.
    p_max: highest share of flipped bits, at the first frame; 0 for no corruption.
    delta: increase of both shares per frame; 0 is Infinity's constant corruption.
    has_inheritance: the first scale of a frame is at least as corrupted as the last scale of the
      frame before.
  """

  p_min: float = 0.0
  p_max: float = 0.25
  delta: float = 0.01
  has_inheritance: bool = True

  def __post_init__(self):
    if not 0 <= self.p_min <= self.p_max <= 1:
      raise ValueError(
        f"corruption: needs 0 <= p_min <= p_max <= 1, got p_min={self.p_min}, p_max={self.p_max}"
      )
    if self.delta < 0:
      raise ValueError(f"corruption.delta={self.delta} must not be negative")


class Corrupted(NamedTuple):
  """Inputs and labels of a training step.

  Attributes:
    labels: one array per scale, uint8 `[b, t, h_s, w_s, d]`.
    features: input of each cell of a frame `[b, t, q, c]`; c is d, or 2 d if each also has the
      previous frame; zeros at the start token.
    residuals: what each scale codes, whose signs are the labels, `[b, t, h_s, w_s, d]`.
    quantized: the accumulated corrupted codes `[b, t, h, w, d]`.
  """

  labels: list[UInt8[Array, "b t _y _x d"]]
  features: Float[Array, "b t q c"]
  residuals: list[Float[Array, "b t _y _x d"]]
  quantized: Float[Array, "b t h w d"]


def draw_ratios(
  key: Array, batch_size: int, num_frames: int, num_scales: int, config: CorruptionConfig
) -> Float[Array, "b t s"]:
  """Draws the share of bits to flip, per sample, frame and scale.

  `p[t,s] ~ U(p_min + delta t, p_max + delta t)`; with inheritance `p[t,0] ~ U(p[t-1,K-1], p_max +
  delta t)`. Shares are clipped at 1.
  """
  uniform = jax.random.uniform(key, (batch_size, num_frames, num_scales))
  rise = config.delta * jnp.arange(num_frames)[:, None]
  low, high = config.p_min + rise, config.p_max + rise
  ratios = low + uniform * (high - low)
  if config.has_inheritance and num_frames > 1:
    # A frame's last scale inherits nothing itself, unless it is also the first one.
    def inherit(last, frame):
      ratio, draw, top = frame
      first = last + draw * (top - last)
      ratio = ratio.at[:, 0].set(first)
      return ratio[:, -1], ratio

    rest = (ratios[:, 1:].swapaxes(0, 1), uniform[:, 1:, 0].T, high[1:, 0])
    _, rest = jax.lax.scan(inherit, ratios[:, 0, -1], rest)
    ratios = jnp.concatenate([ratios[:, :1], rest.swapaxes(0, 1)], 1)
  return jnp.minimum(ratios, 1.0)


def corrupt(
  latents: Float[Array, "b t h w d"],
  schedule: Schedule,
  flips: list[Bool[Array, "b t _y _x d"]] | None = None,
  prev_frame_input: str = "first_scale",
) -> Corrupted:
  """Quantizes latents while flipping bits, so that later scales correct earlier errors.

  Frames are independent, except that the input of a frame's first scale is the corrupted feature
  of the previous frame. Without flips this is plain teacher forcing.

  Args:
    latents: unquantized.
    schedule: scales, ending at (h, w).
    flips: which bits to flip; None for none.
    prev_frame_input: scales whose inputs include the previous frame, see `Layout`.
  """
  b, t, *_, d = latents.shape
  labels, features, residuals, total = self_correct(latents, schedule, flips)
  previous_frames = jnp.pad(total[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
  first = area_resize(previous_frames, schedule[0]).reshape(b, t, -1, d)
  inputs = jnp.concatenate([first, *features], axis=2)
  if prev_frame_input == "all_scales":
    resized = [area_resize(previous_frames, grid).reshape(b, t, -1, d) for grid in schedule]
    inputs = jnp.concatenate([inputs, jnp.concatenate(resized, axis=2)], axis=3)
  return Corrupted(labels, inputs, residuals, total)


def draw_frame_keep(
  key: Array, batch_size: int, num_frames: int, p_mask: float
) -> Bool[Array, "b t t"]:
  """Draws which earlier frames each frame sees.

  Args:
    key: random key.
    batch_size: `b`.
    num_frames: `t`.
    p_mask: probability that an earlier frame is hidden.
  Returns:
    `keep[b, i, j]`: frame i may see the earlier frame j. Entries with j >= i are not read.
  """
  return jax.random.bernoulli(key, 1.0 - p_mask, (batch_size, num_frames, num_frames))
