"""The steps of cached decoding: a prompt is read, and a frame's scales are decoded one by one.

`start` reads the prompt. For each frame, `begin_frame`, `decode_scale` for each scale and
`end_frame` follow, which `decode.decode_frame` does in one program; `write_frame` reads a given
frame instead.

Beside the prompt's keys and values, the cache is a ring of slots, each with the tokens of one frame
that later frames see: its scales or, with `context="full_frame"`, its complete latent. With one
slot per frame of a window, memory and time per frame are constant, however long the video. The
scales of the current frame are kept outside the cache until the frame is complete.

Source: VIDEOAR section 4.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from videoar_jax.models.bits import drawn_bits
from videoar_jax.models.prompts import Text, is_text
from videoar_jax.models.videoar import patches
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.models.videoar.prefix import PrefixGuidance, combine, corrupt
from videoar_jax.nn.cache import Cache, PartialCache, length_of, make_ring, write
from videoar_jax.nn.resize import area_resize, linear_resize
from videoar_jax.nn.rope import rotate
from videoar_jax.nn.transformer import has_small_layers
from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("text", "cache", "text_mask", "keys", "before", "frame"),
  meta_fields=("is_prefix_guided",),
)
@dataclasses.dataclass(frozen=True)
class State:
  """What the next frame needs from the prompt and from earlier frames.

  Attributes:
    text: keys and values of the prompt, for all layers; `rows` is `b`, or `2 b` with the
      unconditional half last; with prefix guidance the same rows follow again, for the corrupted
      prefix.
    cache: keys and values of the frames in the ring.
    text_mask: false on padding.
    keys: a key for each sample.
    before: the last frame's accumulated codes.
    frame: number of the next frame.
    is_prefix_guided: whether there are rows for a corrupted prefix, see `prefix`.
  """

  # JAX also puts other objects into the fields: shardings, placeholders.
  __no_type_check__ = True

  text: Any
  cache: Any
  text_mask: Bool[Array, "rows P"]
  keys: Array
  before: Float[Array, "b h w d"]
  frame: Int[Array, ""]
  is_prefix_guided: bool = False

  @property
  def num_halves(self) -> int:
    """2 with guidance, else 1."""
    num = self.text_mask.shape[0] // self.before.shape[0]
    return num // 2 if self.is_prefix_guided else num


class PartialFrame(NamedTuple):
  """A frame of which the first scales are there.

  Attributes:
    bits: of each scale, as in `Decoded`.
    quantized: the sum of their codes `[b, h, w, d]`: decoded, what the frame looks like so far.
    logits: of each scale, as in `Decoded`.
    own: keys and values of their tokens; None before the first.
  """

  bits: list[UInt8[Array, "b _y _x d"]]
  quantized: Float[Array, "b h w d"]
  logits: list[Float[Array, "b _q d"]]
  own: Any

  @classmethod
  def empty(cls, state: State) -> "PartialFrame":
    """Returns a frame without any scale, the next one of a state."""
    return cls([], jnp.zeros_like(state.before), [], None)


def num_slots(num_frames: int, window: int | None) -> int:
  """Returns the number of earlier frames that the cache holds for a clip."""
  return num_frames - 1 if window is None else min(window, num_frames - 1)


def start(
  model: Generator,
  layout: Layout,
  text: Text,
  null_text: Array | np.ndarray,
  keys: Array,
  *,
  slots: int,
  is_guided: bool = True,
  is_prefix_guided: bool = False,
) -> State:
  """Reads the prompt.

  Args:
    model: the transformer; the cache has the type of its parameters.
    layout: the sequence; its number of frames is not used.
    text: tokens, or features, of each prompt.
    null_text: those of the empty prompt, for guidance.
    keys: a key for each sample.
    slots: earlier frames that a frame sees, see `num_slots`.
    is_guided: false leaves the unconditional half out, as for a guidance of 1 everywhere.
    is_prefix_guided: whether the steps that follow take `prefix_guidance`.
  """
  b, p, *_ = text.shape
  if is_guided:
    text = jnp.concatenate([text, jnp.broadcast_to(null_text, text.shape)])
  if is_prefix_guided:
    text = jnp.concatenate([text, text])
  text_mask = is_text(text)
  # Padding sees itself, so that its softmax is defined.
  visible = layout.visible(slice(p))[:, :p]
  mask = (visible & text_mask[:, None, :]) | jnp.eye(p, dtype=bool)
  x = model.embed_text(text, model.feature_in.kernel.dtype)
  if model.position_embedding is not None:
    x = x + model.position_embedding(jnp.arange(p)).astype(x.dtype)
  _, own = model.step(x, model.angles(layout.positions[:p]), (), (mask,))
  cache = make_ring(own, slots * _slot_size(layout))
  before = jnp.zeros((b, *layout.grid, model.config.num_bits))
  return State(own, cache, text_mask, keys, before, jnp.zeros((), jnp.int32), is_prefix_guided)


def begin_frame(
  model: Generator,
  layout: Layout,
  state: State,
  trained_frames: int | Int[Array, ""] | None,
  prefix_guidance: PrefixGuidance | None = None,
) -> State:
  """Returns a state that is ready for the next frame.

  With `context="full_frame"`, adds the previous frame's complete latent to the cache.
  `trained_frames` and `prefix_guidance` are as in `decode_frame`.
  """
  if layout.context == "scales" or not _slots(layout, state):
    return state
  tokens = slice(layout.frame_size, layout.frame_stride)
  b, *_, d = state.before.shape
  before = state.frame - 1

  def run(state):
    features = model.final_features(state.before.reshape(b, -1, d), layout)
    number = 2 * layout.num_scales
    features = _with_corrupted(features, state, before, number, prefix_guidance)
    past, masks = past_of(model, layout, state, trained_frames, before)
    return _step(model, layout, state, features, tokens, past, (*masks, None), before)[1]

  # The first frame has no previous one: zeros go to a slot that no frame sees yet.
  def empty(state):
    return jax.tree.map(jnp.zeros_like, jax.eval_shape(run, state))

  own = jax.lax.cond(state.frame > 0, run, empty, state)
  return dataclasses.replace(state, cache=_write_slot(layout, state, own, before))


def decode_scale(
  model: Generator,
  layout: Layout,
  state: State,
  partial: PartialFrame,
  guidance: Any,
  *,
  temperature: float | Array = 1.0,
  top_p: float | Array = 1.0,
  trained_frames: int | Int[Array, ""] | None = None,
  prefix_guidance: PrefixGuidance | None = None,
  past: Any = None,
  uniform: Float[Array, "b n"] | None = None,
) -> PartialFrame:
  """Generates the bits of the next scale of a frame, between `begin_frame` and `end_frame`.

  Args:
    model, layout, temperature, top_p, trained_frames, prefix_guidance: see `decode_frame`.
    state: from `begin_frame`.
    partial: the scales before.
    guidance: a number, that of this scale.
    past: what the frame sees of earlier ones, and masks; None to take it from the state.
    uniform: random numbers of this scale, from `draw`; None to draw them.
  """
  past, past_masks = past_of(model, layout, state, trained_frames) if past is None else past
  s, (b, *_, d) = len(partial.bits), state.before.shape
  features = _scale_features(model, layout, partial.quantized, state.before, s)
  features = _with_corrupted(features, state, state.frame, layout.num_scales + s, prefix_guidance)
  masks = (*past_masks, None)
  tokens = layout.scale_slice(s)
  y, own = _step(model, layout, state, features, tokens, past, masks, own=partial.own)
  logits = patches.to_cells(model.logits(y), layout, s, d)
  if prefix_guidance is None:
    logits = _guided(logits, state, guidance)
  else:
    true, corrupted = (_guided(part, state, guidance) for part in jnp.split(logits, 2))
    logits = combine(true, corrupted, prefix_guidance)
  uniform = draw(layout, state, [s])[:, 0] if uniform is None else uniform
  uniform = uniform[:, : logits[0].size].reshape(logits.shape)
  bits = drawn_bits(uniform, logits, temperature=temperature, top_p=top_p)
  bits = bits.reshape(b, *layout.schedule[s], d)
  quantized = partial.quantized + linear_resize(bits_to_codes(bits), layout.grid)
  return PartialFrame([*partial.bits, bits], quantized, [*partial.logits, logits], own)


def draw(layout: Layout, state: State, scales: Sequence[int]) -> Float[Array, "b s n"]:
  """Returns random numbers in [0, 1) for the next frame's bits in some scales.

  Each scale has as many as the largest one: then all are drawn by one operation, which takes far
  less time to compile than one for each. Those of a sample, frame and scale are always the same.
  """
  num = max(layout.cell_sizes) * state.before.shape[-1]

  def uniform(key, s):
    return jax.random.uniform(jax.random.fold_in(key, s), (num,))

  keys = jax.vmap(lambda key: jax.random.fold_in(key, state.frame))(state.keys)
  by_scale = jax.vmap(uniform, in_axes=(None, 0))
  return jax.vmap(by_scale, in_axes=(0, None))(keys, jnp.asarray(scales))


def end_frame(layout: Layout, state: State, own, total) -> State:
  """Returns the state after a frame; its scales enter the ring if later frames see them."""
  cache = state.cache
  if layout.context == "scales":
    cache = _write_slot(layout, state, own, state.frame)
  return dataclasses.replace(state, cache=cache, before=total, frame=state.frame + 1)


def write_frame(
  model: Generator,
  layout: Layout,
  state: State,
  bits: list[UInt8[Array, "b _y _x d"]],
  *,
  trained_frames: int | Int[Array, ""] | None = None,
  prefix_guidance: PrefixGuidance | None = None,
) -> tuple[State, Float[Array, "b h w d"]]:
  """Appends a given frame's bits to the state; also returns its accumulated codes.

  All scales are processed at once. With `context="full_frame"` none are: later frames only see
  their sum. `trained_frames` and `prefix_guidance` are as in `decode_frame`.
  """
  state = begin_frame(model, layout, state, trained_frames, prefix_guidance)
  features, total = [], jnp.zeros_like(state.before)
  for s, scale_bits in enumerate(bits):
    own = _scale_features(model, layout, total, state.before, s)
    number = layout.num_scales + s
    features.append(_with_corrupted(own, state, state.frame, number, prefix_guidance))
    total = total + linear_resize(bits_to_codes(scale_bits), layout.grid)
  own = None
  if layout.context == "scales":
    tokens = slice(0, layout.frame_size)
    scales = layout.frame_scale_ids[tokens]
    past, past_masks = past_of(model, layout, state, trained_frames)
    masks = (*past_masks, (scales[None] <= scales[:, None])[None])
    features = jnp.concatenate(features, axis=1)
    _, own = _step(model, layout, state, features, tokens, past, masks)
  return end_frame(layout, state, own, total), total


def past_of(
  model: Generator,
  layout: Layout,
  state: State,
  trained_frames: int | Int[Array, ""] | None,
  frame: Array | None = None,
):
  """Returns what a frame, by default the next one, sees: prompt and ring, and the mask of each."""
  frame, text = state.frame if frame is None else frame, state.text
  if trained_frames is not None:
    text = _moved(model, layout, text, jnp.maximum(frame - (trained_frames - 1), 0))
  cache, slots, size = state.cache, _slots(layout, state), _slot_size(layout)
  if not slots:
    return (text,), (state.text_mask[:, None],)
  is_written = jnp.repeat(jnp.arange(slots) < frame, size)
  # Branches take time to compile. In large layers attention is a small part, and accelerators were
  # not measured.
  if isinstance(cache, Cache) and has_small_layers(model.blocks, model.config):
    cache = PartialCache.of(cache, jnp.minimum(frame, slots) * size, size)
  return (text, cache), (state.text_mask[:, None], is_written[None, None])


def _guided(logits: Float[Array, "rows q d"], state: State, scale) -> Float[Array, "b q d"]:
  """Returns the logits that classifier-free guidance gives."""
  if state.num_halves == 1:
    return logits
  conditional, unconditional = jnp.split(logits, 2)
  return scale * conditional + (1 - scale) * unconditional


def _with_corrupted(
  features, state: State, frame, number: int, guidance: PrefixGuidance | None
) -> Float[Array, "rows n c"]:
  """Returns the features of one scale, followed by corrupted ones if the state has rows for them.

  `number` makes draws differ, also from those of the bits, which have the numbers of the scales.
  """
  if guidance is None:
    return features
  keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, frame), number))(
    state.keys
  )
  return jnp.concatenate([features, corrupt(features, keys, guidance.share)])


def _slot_size(layout: Layout) -> int:
  """Returns how many tokens of a frame later frames see."""
  return layout.final_size or layout.frame_size


def _slots(layout: Layout, state: State) -> int:
  return length_of(state.cache) // _slot_size(layout)


def _moved(model: Generator, layout: Layout, text, num_frames: Array):
  """Returns the prompt's cache as if it stood so many frames later; nothing moves by none."""
  angles = model.angles(jnp.array([[1.0, 0.0, 0.0]]) * num_frames)
  if angles is None:
    return text

  angles = jnp.broadcast_to(angles, (layout.text_length, angles.shape[-1]))

  def turn(keys: Float[Array, "b g k l"]) -> Float[Array, "b g k l"]:
    return rotate(keys.transpose(0, 3, 1, 2), angles).transpose(0, 2, 3, 1)

  def move(cache: Cache) -> Cache:
    # Keys of scanned layers are stacked.
    keys = jax.vmap(turn)(cache.keys) if cache.keys.ndim == 5 else turn(cache.keys)
    # Exactly the same keys within the trained length.
    return dataclasses.replace(cache, keys=jnp.where(num_frames > 0, keys, cache.keys))

  return jax.tree.map(move, text, is_leaf=lambda x: isinstance(x, Cache))


def _scale_features(
  model: Generator, layout: Layout, total, before, s: int
) -> Float[Array, "b n c"]:
  """Returns the inputs of a scale's tokens: the sum of earlier scales, or the previous frame."""
  grid = layout.schedule[s]
  inputs = area_resize(before, grid) if s == 0 else linear_resize(total, grid)
  if layout.prev_frame_input == "all_scales":
    inputs = jnp.concatenate([inputs, area_resize(before, grid)], axis=-1)
  inputs = inputs.reshape(len(inputs), grid[0] * grid[1], -1)
  return patches.to_tokens(inputs, layout, s, model.feature_in.kernel.shape[0])


def _step(
  model: Generator,
  layout: Layout,
  state: State,
  features,
  tokens,
  seen,
  masks,
  frame=None,
  own=None,
):
  """Runs the network on some tokens of a frame, by default the next one, in all rows."""
  frame = state.frame if frame is None else frame
  features = features.astype(model.feature_in.kernel.dtype)
  x = model.embed_features(features, layout, frame == 0, tokens)
  if model.position_embedding is not None:
    at = layout.text_length + frame * layout.frame_stride
    numbers = at + jnp.arange(tokens.start, tokens.stop)
    x = x + model.position_embedding(numbers).astype(x.dtype)
  parts = jnp.split(x, 2) if state.is_prefix_guided else [x]
  x = jnp.concatenate([jnp.tile(part, (state.num_halves, 1, 1)) for part in parts])
  origin = layout.text_length + frame * jnp.array([1, 0, 0])
  angles = model.angles(origin + layout.frame_positions[tokens])
  return model.step(x, angles, seen, masks, own)


def _write_slot(layout: Layout, state: State, own, frame):
  slots = _slots(layout, state)
  if not slots:
    return state.cache
  return write(state.cache, own, (frame % slots) * _slot_size(layout))
