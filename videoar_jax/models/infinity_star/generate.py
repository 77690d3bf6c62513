"""Generates latents: pyramid after pyramid, scale after scale, repetition after repetition.

A scale sees the prompt, itself, and the largest scale of the pyramid before, whose keys and values
are those of its last repetition. So only these and the prompt's are kept, and only while a pyramid
follows. All repetitions of a scale are one program, and scales of the same shape share it.

Source: INFINITY sections S9 and S10.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from videoar_jax.models.bits import sample_bits
from videoar_jax.models.infinity_star.config import InfinityStarSampling
from videoar_jax.models.infinity_star.layout import Layout, positions
from videoar_jax.models.infinity_star.network import InfinityStar
from videoar_jax.models.prompts import Text, is_text
from videoar_jax.tokenizers.star.quantizer import code_of_bits, input_of
from videoar_jax.tokenizers.star.schedules import Scale

# Keys and values of all layers: stacked, or a list.
Caches = object


class Prompts(NamedTuple):
  """Prompts of clips and, with guidance, also what it leads away from: `g` is 1 or 2.

  Attributes:
    rows: embedded tokens; 0 where there is none.
    is_present: whether there is a token.
    is_seen: whether the tokens of scales and of the prompt see it.
  """

  rows: Float[Array, "g b P m"]
  is_present: Bool[Array, "g b P"]
  is_seen: Bool[Array, "g b P"]


class Step(NamedTuple):
  """One repetition of a scale, or several, with a leading axis.

  Attributes:
    inputs: what the network gets, `[b, n, c]`.
    logits: of clips, then of what guidance leads away from, `[g b, n, d, 2]`; None for given bits.
    guided: of clips, at the temperature, `[b, n, d, 2]`; None for given bits.
    bits: `[b, t, h, w, d]`.
  """

  inputs: Float[Array, "*k b n c"]
  logits: Float[Array, "*k gb n d 2"] | None
  guided: Float[Array, "*k b n d 2"] | None
  bits: UInt8[Array, "*k b t h w d"]


class Done(NamedTuple):
  """A scale.

  Attributes:
    total: the sum of codes after it.
    kept: keys and values of its last repetition; None unless a later scale sees them.
    steps: its repetitions; where the last one is kept, those before, and it.
  """

  total: Float[Array, "b t H W c"]
  kept: Caches | None
  steps: list[Step]


def prompts_of(net: InfinityStar, text: Text, negative: Text | None, is_guided: bool) -> Prompts:
  """Embeds prompts.

  Args:
    net: the network.
    text: tokens or features of each clip's prompt.
    negative: those of what guidance leads away from; None for the learned "no prompt", as long as
      each prompt.
    is_guided: whether there is anything to lead away from.
  """
  rows, present = [net.embed_text(text)], [is_text(text)]
  if is_guided and negative is None:
    rows.append(net.embed_nothing(present[0]))
    present.append(present[0])
  elif is_guided:
    rows.append(net.embed_text(negative))
    present.append(is_text(negative))
  is_present = jnp.stack(present)
  return Prompts(jnp.stack(rows), is_present, is_present)


def read_prompts(net: InfinityStar, prompts: Prompts) -> Caches:
  """Returns the keys and values of prompts."""
  rows, is_present, is_seen = (x.reshape(-1, *x.shape[2:]) for x in prompts)
  length = rows.shape[1]
  # Padding sees itself, whose values are 0: so it stays 0 in all layers.
  mask = jnp.where(is_present[:, :, None], is_seen[:, None, :], jnp.eye(length, dtype=bool))
  places = np.zeros((length, 4), np.float32)
  places[:, 0] = np.arange(length)
  return net.step(rows, places, (), (mask,))[1]


def read_latents(
  net: InfinityStar,
  latents: Float[Array, "b t h w c"],
  places: Float[Array | np.ndarray, "n 4"],
  num_passes: int,
) -> Caches:
  """Returns the keys and values of latents that see themselves alone.

  Args:
    net: the network.
    latents: of earlier frames.
    places: their rotary positions.
    num_passes: `g`, rows of `Prompts`, which see the same.
  """
  x = latents.reshape(len(latents), -1, latents.shape[-1])
  x = net.codes_in(x.astype(net.activation_dtype))
  return net.step(jnp.tile(x, (num_passes, 1, 1)), places, (), (None,))[1]


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=("scale", "threshold"), meta_fields=("kind",)
)
@dataclasses.dataclass(frozen=True)
class Guidance:
  """How logits are mixed; see `InfinityStarSampling`."""

  # JAX also puts other objects into the fields: tracers, placeholders.
  __no_type_check__ = True

  kind: str
  scale: float | Array
  threshold: float | Array

  @classmethod
  def of(cls, sampling: InfinityStarSampling) -> "Guidance":
    """Returns the guidance of settings; numbers are arguments of programs, not parts of them."""
    numbers = (sampling.guidance, sampling.apg_threshold)
    return cls(sampling.guidance_kind, *(np.asarray(x, np.float32) for x in numbers))

  def mix(
    self, cond: Float[Array, "b n d 2"], uncond: Float[Array, "b n d 2"]
  ) -> Float[Array, "b n d 2"]:
    """Returns guided logits, given those of clips, and of what guidance leads away from."""
    if self.kind == "cfg":
      return self.scale * cond + (1 - self.scale) * uncond
    axes = tuple(range(1, cond.ndim))
    difference = cond - uncond
    size = jnp.sqrt(jnp.mean(jnp.square(difference), axes, keepdims=True))
    limit = jnp.minimum(1, self.threshold / jnp.maximum(size, 1e-30))
    difference = difference * jnp.where(self.threshold > 0, limit, 1)
    # The part of the difference along the conditional logits, a scale of a clip being one vector.
    along = jnp.sum(difference * cond, axes, keepdims=True)
    squared = jnp.maximum(jnp.sum(jnp.square(cond), axes, keepdims=True), 1e-30)
    return cond + (self.scale - 1) * (difference - along / squared * cond)


def run_scale(
  net: InfinityStar,
  scale: Scale,
  size: tuple[int, int],
  total: Float[Array, "b t H W c"] | None,
  places: Float[Array | np.ndarray, "n 4"],
  seen: tuple[Caches, ...],
  is_seen: Bool[Array, "g b P"],
  guidance: Guidance,
  temperature: Float[Array | np.ndarray, ""],
  keys: UInt32[Array | np.ndarray, "b _k"] | None,
  first: Int[Array | np.ndarray, ""],
  given: UInt8[Array, "k b t h w d"] | None = None,
  *,
  is_kept: bool,
) -> Done:
  """Runs all repetitions of a scale.

  Args:
    net: the network.
    scale: its shape; where it is in the clip is not read.
    size: (H, W) of the latents.
    total: the sum of codes before it, of the frames of its pyramid; None before the first scale.
    places: rotary positions of its first repetition.
    seen: keys and values of the prompt, and of the context, if it has one.
    is_seen: which tokens of the prompt it sees, see `Prompts`.
    guidance: how logits are mixed.
    temperature: of its bits.
    keys: data of a key for each clip; None takes the likelier value of each bit.
    first: repetitions of the clip before its own.
    given: bits of all repetitions that are not generated. The network runs on them only to be seen.
    is_kept: whether a later scale sees it.
  """
  num_passes, num_clips, length = is_seen.shape
  if total is None:
    total = jnp.zeros((num_clips, scale.num_frames, *size, net.config.num_channels))
  masks = (is_seen.reshape(-1, 1, length), *[None] * len(seen))

  def repeat(total, turn, is_kept: bool):
    r, bits = turn
    inputs = input_of(total, scale.grid)
    inputs = inputs.reshape(len(total), -1, inputs.shape[-1])
    logits = guided = new = None
    if bits is None or is_kept:
      x = net.codes_in(inputs.astype(net.activation_dtype))
      own = jnp.asarray(places) + r.astype(jnp.float32) * np.float32([1, 0, 0, 0])
      y, new = net.step(jnp.tile(x, (num_passes, 1, 1)), own, seen, masks)
    if bits is None:
      logits = net.head(y, scale.is_detail)
      guided = logits / temperature
      if num_passes > 1:
        guided = guidance.mix(*jnp.split(guided, 2))
      bits = _choose(guided, keys, first + r)
      bits = bits.reshape(*total.shape[:2], *scale.grid, -1)
    total = total + code_of_bits(bits, size, total.shape[-1])
    return total, new if is_kept else None, Step(inputs, logits, guided, bits)

  turns = jnp.arange(scale.repetitions), given
  num_alike = scale.repetitions - is_kept
  kept, steps = None, []
  if num_alike:

    def body(total, turn):
      total, _, step = repeat(total, turn, is_kept=False)
      return total, step

    total, alike = jax.lax.scan(body, total, jax.tree.map(lambda x: x[:num_alike], turns))
    steps.append(alike)
  if is_kept:
    last = jax.tree.map(lambda x: x[-1], turns)
    total, kept, step = repeat(total, last, is_kept=True)
    steps.append(jax.tree.map(lambda x: x[None], step))
  return Done(total, kept, steps)


def _choose(logits: Float[Array, "b n d 2"], keys, number) -> UInt8[Array, "b n d"]:
  """Draws bits, or takes the likelier ones."""
  # The softmax over both values of a bit is the sigmoid of their difference.
  difference = logits[..., 1] - logits[..., 0]
  if keys is None:
    return (difference > 0).astype(jnp.uint8)
  keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(jax.random.wrap_key_data(keys))
  return sample_bits(keys, difference, temperature=1.0, top_p=1.0)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is sampled, and how.

  Attributes:
    layout: the sequence, with all scales.
    guidance: how logits are mixed.
    image_temperature: of bits of the first frame.
    video_temperature: of bits of later frames.
  """

  layout: Layout
  guidance: Guidance
  image_temperature: float
  video_temperature: float

  @classmethod
  def of(cls, layout: Layout, sampling: InfinityStarSampling) -> "Plan":
    """Returns how a sequence is sampled by settings."""
    temperatures = sampling.image_temperature, sampling.video_temperature
    return cls(layout, Guidance.of(sampling), *temperatures)


def is_kept(layout: Layout, number: int) -> bool:
  """Returns whether a later scale sees the scale of a number, so that its keys are kept."""
  return layout.scales[number].is_last and number + 1 < len(layout.scales)


def pyramids(
  net: InfinityStar,
  plan: Plan,
  prompts: Prompts,
  keys: UInt32[Array | np.ndarray, "b _k"] | None,
  given: Sequence[Sequence[UInt8[Array, "b _t _h _w _d"]]] = (),
  context: tuple[Caches, ...] = (),
  *,
  read: Callable[..., Caches] = read_prompts,
  run: Callable[..., Done] = run_scale,
) -> Iterator[Float[Array, "b t H W c"]]:
  """Yields the latents of each pyramid: the first frame, then each clip.

  Args:
    net: the network.
    plan: what is sampled.
    prompts: see `prompts_of`.
    keys: data of a key for each clip; None takes the likelier value of each bit.
    given: bits of each repetition of the first scales, if they are not generated.
    context: what the first pyramid sees besides the prompt.
    read, run: `read_prompts` and `run_scale`, or jitted versions of them.
  """
  layout = plan.layout
  prompt, total = read(net, prompts), None
  for s, (scale, first_id) in enumerate(zip(layout.scales, layout.first_ids, strict=True)):
    temperature = plan.video_temperature if scale.pyramid else plan.image_temperature
    total, kept, _ = run(
      net,
      # So that scales of one shape are one program.
      dataclasses.replace(scale, start=0, pyramid=0),
      layout.grid,
      total,
      positions(scale, layout.grid, first_id),
      (prompt, *context),
      prompts.is_seen,
      plan.guidance,
      np.asarray(temperature, np.float32),
      keys,
      np.asarray(first_id - layout.text_length, np.int32),
      jnp.stack(given[s]) if s < len(given) else None,
      is_kept=is_kept(layout, s),
    )
    if scale.is_last:
      yield total
      context, total = (kept,), None


def generate(*arguments, **settings) -> Float[Array, "b t H W c"]:
  """Returns the latents of whole clips; takes what `pyramids` takes."""
  return jnp.concatenate(list(pyramids(*arguments, **settings)), axis=1)
