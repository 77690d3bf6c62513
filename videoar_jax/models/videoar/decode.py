"""Cached decoding over frames and scales: one program, static shapes.

A state is passed from frame to frame, see `decode_steps`: `decode_frame` generates a latent frame,
and `decode` does a whole clip in one loop. Each step samples the bits of one scale in parallel;
guidance runs both halves in one batch.

In clips longer than those of training, the prompt moves along in time (`trained_frames`): a later
frame is as far from it as the last frame was in training.

Source: VIDEOAR section 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from videoar_jax.models.prompts import Text
from videoar_jax.models.videoar.decode_steps import (
  PartialFrame,
  State,
  begin_frame,
  decode_scale,
  draw,
  end_frame,
  num_slots,
  past_of,
  start,
  write_frame,
)
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.models.videoar.prefix import PrefixGuidance


class Decoded(NamedTuple):
  """The result of decoding.

  Attributes:
    bits: one array per scale, uint8 `[b, t, h_s, w_s, d]`; without `t` for one frame.
    quantized: the accumulated codes `[b, t, h, w, d]`.
    logits: guided logits of each generated cell `[b, t, q, d]`; given frames have none.
  """

  bits: list[UInt8[Array, "b t _y _x d"]]
  quantized: Float[Array, "b t h w d"]
  logits: Float[Array, "b t q d"]


def decode_frame(
  model: Generator,
  layout: Layout,
  state: State,
  guidance: Float[Array, "s"],
  *,
  temperature: float | Array = 1.0,
  top_p: float | Array = 1.0,
  trained_frames: int | Int[Array, ""] | None = None,
  prefix_guidance: PrefixGuidance | None = None,
) -> tuple[State, Decoded]:
  """Generates the bits of the next frame.

  Args:
    model: the transformer.
    layout: the sequence; its number of frames is not used.
    state: from `start` or the previous frame.
    guidance: `g * conditional + (1 - g) * unconditional`, on logits; unused if not guided.
    temperature: see `sample_bits`.
    top_p: see `sample_bits`.
    trained_frames: frames after which the prompt moves along in time; None for never.
    prefix_guidance: see `prefix`; None if the state has no rows for it.
  """
  state = begin_frame(model, layout, state, trained_frames, prefix_guidance)
  past = past_of(model, layout, state, trained_frames)
  settings = {"temperature": temperature, "top_p": top_p, "prefix_guidance": prefix_guidance}
  uniform = draw(layout, state, range(layout.num_scales))
  partial = PartialFrame.empty(state)
  for s in range(layout.num_scales):
    given = {"past": past, "uniform": uniform[:, s]}
    partial = decode_scale(model, layout, state, partial, guidance[s], **given, **settings)
  state = end_frame(layout, state, partial.own, partial.quantized)
  return state, Decoded(partial.bits, partial.quantized, jnp.concatenate(partial.logits, 1))


def decode(
  model: Generator,
  layout: Layout,
  text: Text,
  null_text: Array | np.ndarray,
  keys: Array,
  guidance: Float[Array | np.ndarray, "t s"] | None,
  *,
  temperature: float | Array = 1.0,
  top_p: float | Array = 1.0,
  window: int | None = None,
  trained_frames: int | Int[Array, ""] | None = None,
  conditioning: list[UInt8[Array | np.ndarray, "b u _y _x d"]] | None = None,
  prefix_guidance: PrefixGuidance | None = None,
) -> Decoded:
  """Generates the bits of a clip.

  Args:
    model: the transformer.
    layout: the sequence to generate.
    text: tokens, or features, of each prompt.
    null_text: those of the empty prompt, for guidance.
    keys: a key for each sample.
    guidance: see `decode_frame`; None for 1 everywhere, at half the cost.
    temperature: see `sample_bits`.
    top_p: see `sample_bits`.
    window: number of earlier frames a frame sees; None for all.
    trained_frames: see `decode_frame`.
    conditioning: bits of the clip's first frames, which it continues.
    prefix_guidance: see `prefix`; None for none, at half the cost.
  Raises:
    ValueError: the layout is longer than the model's learned positions, or the given frames leave
      nothing to generate.
  """
  check_positions(model, layout)
  num_conditioning = 0 if conditioning is None else conditioning[0].shape[1]
  if num_conditioning >= layout.num_frames:
    raise ValueError(
      f"conditioning: {num_conditioning} frames leave nothing of {layout.num_frames} to generate"
    )
  model = model.unstacked()
  slots = num_slots(layout.num_frames, window)
  is_guided = guidance is not None
  kind = {"is_guided": is_guided, "is_prefix_guided": prefix_guidance is not None}
  state = start(model, layout, text, null_text, keys, slots=slots, **kind)
  if not is_guided:
    guidance = jnp.ones((layout.num_frames, layout.num_scales))

  def first(x):
    return jnp.moveaxis(x, 1, 0)

  moves = {"trained_frames": trained_frames, "prefix_guidance": prefix_guidance}
  if num_conditioning:

    def read(state, bits):
      return write_frame(model, layout, state, bits, **moves)

    state, latents = jax.lax.scan(read, state, jax.tree.map(first, conditioning))

  settings = {"temperature": temperature, "top_p": top_p, **moves}

  def next_frame(state, row):
    return decode_frame(model, layout, state, row, **settings)

  _, out = jax.lax.scan(next_frame, state, jnp.asarray(guidance)[num_conditioning:])
  out = jax.tree.map(first, out)
  if num_conditioning:
    bits = [jnp.concatenate(pair, axis=1) for pair in zip(conditioning, out.bits, strict=True)]
    out = Decoded(bits, jnp.concatenate([first(latents), out.quantized], axis=1), out.logits)
  return out


def check_positions(model: Generator, layout: Layout) -> None:
  """Raises ValueError if a sequence is longer than the model's learned positions."""
  if model.position_embedding is not None:
    trained = model.position_embedding.table.shape[0]
    if layout.length > trained:
      raise ValueError(f"layout: {layout.length} tokens are more than {trained} learned positions")
