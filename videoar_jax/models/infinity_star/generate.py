"""Generates latents: pyramid after pyramid, scale after scale, repetition after repetition.

A scale sees the prompt, itself, and the largest scale of the pyramid before, whose keys and values
are those of its last repetition. So only these and the prompt's are kept, and only while a pyramid
follows. All repetitions of a scale are one program, and scales of the same shape share it.

Source: INFINITY sections S9 and S10.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

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
  """Prompts of all rows of a batch: of each clip, and with guidance, of what leads away from it.

  Attributes:
    rows: embedded; 0 where there is no token.
    is_present: whether there is a token.
    is_seen: whether the tokens of scales and of the prompt see it.
  """

  rows: Float[Array, "r P m"]
  is_present: Bool[Array, "r P"]
  is_seen: Bool[Array, "r P"]


class Step(NamedTuple):
  """One repetition of a scale, or several, with a leading axis.

  Attributes:
    inputs: what the network gets, `[b, n, c]`.
    logits: of all rows, `[r, n, d, 2]`; None for given bits.
    guided: of clips, at the temperature, `[b, n, d, 2]`; None for given bits.
    bits: `[b, t, h, w, d]`.
  """

  inputs: Float[Array, "*k b n c"]
  logits: Float[Array, "*k r n d 2"] | None
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
    negative: those of what guidance leads away from, broadcast against `text`; None for the learned
      "no prompt", as long as each prompt.
    is_guided: whether there are rows of it.
  """
  rows, present = net.embed_text(text), is_text(text)
  if is_guided and negative is None:
    rows = jnp.concatenate([rows, net.embed_nothing(present)])
    present = jnp.concatenate([present, present])
  elif is_guided:
    negative = jnp.broadcast_to(negative, text.shape)
    rows = jnp.concatenate([rows, net.embed_text(negative)])
    present = jnp.concatenate([present, is_text(negative)])
  return Prompts(rows, present, present)


def read_prompts(net: InfinityStar, prompts: Prompts) -> Caches:
  """Returns the keys and values of prompts."""
  length = prompts.rows.shape[1]
  # Padding sees itself, whose values are 0: so it stays 0 in all layers.
  itself = jnp.eye(length, dtype=bool)
  mask = jnp.where(prompts.is_present[:, :, None], prompts.is_seen[:, None, :], itself)
  places = np.zeros((length, 4), np.float32)
  places[:, 0] = np.arange(length)
  return net.step(prompts.rows, places, (), (mask,))[1]


def mix(sampling: InfinityStarSampling, logits: Float[Array, "r n d 2"]) -> Float[Array, "b n d 2"]:
  """Returns guided logits, given those of all rows.

  Args:
    sampling: kind and scale of guidance.
    logits: of clips, then of what leads away from them, if they are guided.
  """
  if not is_guided(sampling):
    return logits
  cond, uncond = jnp.split(logits, 2)
  if sampling.guidance_kind == "cfg":
    return sampling.guidance * cond + (1 - sampling.guidance) * uncond
  axes = tuple(range(1, cond.ndim))
  difference = cond - uncond
  if sampling.apg_threshold > 0:
    size = jnp.sqrt(jnp.mean(jnp.square(difference), axes, keepdims=True))
    difference = difference * jnp.minimum(1, sampling.apg_threshold / jnp.maximum(size, 1e-30))
  # The part of the difference along the conditional logits, a scale of a clip being one vector.
  along = jnp.sum(difference * cond, axes, keepdims=True)
  squared = jnp.maximum(jnp.sum(jnp.square(cond), axes, keepdims=True), 1e-30)
  return cond + (sampling.guidance - 1) * (difference - along / squared * cond)


def is_guided(sampling: InfinityStarSampling) -> bool:
  """Returns whether logits of two rows are mixed."""
  return sampling.guidance != 1


def run_scale(
  net: InfinityStar,
  scale: Scale,
  sampling: InfinityStarSampling,
  total: Float[Array, "b t H W c"],
  places: Float[Array | np.ndarray, "n 4"],
  seen: tuple[Caches, ...],
  is_seen: Bool[Array, "r P"],
  temperature: Float[Array | np.ndarray, ""],
  keys: Array,
  given: UInt8[Array, "k b t h w d"] | None = None,
  *,
  is_kept: bool,
) -> Done:
  """Runs all repetitions of a scale.

  Args:
    net: the network.
    scale: its shape; where it is in the clip is not read.
    sampling: guidance, and how bits are chosen.
    total: the sum of codes before it, of the frames of its pyramid.
    places: rotary positions of its first repetition.
    seen: keys and values of the prompt, and of the context, if it has one.
    is_seen: which tokens of the prompt it sees.
    temperature: of its bits.
    keys: a key for each clip and repetition, `[k, b]`.
    given: bits of all repetitions that are not generated. The network runs on them only to be seen.
    is_kept: whether a later scale sees it.
  """
  size, num_rows = total.shape[2:4], is_seen.shape[0] // total.shape[0]
  masks = (is_seen[:, None], *[None] * len(seen))

  def repeat(total, turn, is_kept: bool):
    r, key, bits = turn
    inputs = input_of(total, scale.grid)
    inputs = inputs.reshape(len(total), -1, inputs.shape[-1])
    logits = guided = new = None
    if given is None or is_kept:
      x = net.codes_in(inputs.astype(net.activation_dtype))
      own = jnp.asarray(places) + r * np.float32([1, 0, 0, 0])
      y, new = net.step(jnp.tile(x, (num_rows, 1, 1)), own, seen, masks)
    if given is None:
      logits = net.head(y, scale.is_detail)
      guided = mix(sampling, logits / temperature)
      chosen = 0.0 if sampling.is_greedy else 1.0
      bits = sample_bits(key, guided[..., 1] - guided[..., 0], temperature=chosen, top_p=1.0)
      bits = bits.reshape(*total.shape[:2], *scale.grid, -1)
    total = total + code_of_bits(bits, size, total.shape[-1])
    return total, new if is_kept else None, Step(inputs, logits, guided, bits)

  turns = jnp.arange(scale.repetitions, dtype=jnp.float32), keys, given
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


def pyramids(
  net: InfinityStar,
  layout: Layout,
  prompts: Prompts,
  keys: Array,
  sampling: InfinityStarSampling,
  given: Sequence[Sequence[UInt8[Array, "b t _h _w _d"]]] = (),
  *,
  read: Callable[..., Caches] = read_prompts,
  run: Callable[..., Done] = run_scale,
) -> Iterator[Float[Array, "b t H W c"]]:
  """Yields the latents of each pyramid: the first frame, then each clip.

  Args:
    net: the network.
    layout: the sequence, with all scales.
    prompts: see `prompts_of`.
    keys: a key for each clip.
    sampling: settings.
    given: bits of each repetition of the first scales, if they are not generated.
    read, run: `read_prompts` and `run_scale`, or jitted versions of them.
  """
  prompt, context, total = read(net, prompts), (), None
  for s, (scale, first_id) in enumerate(zip(layout.scales, layout.first_ids, strict=True)):
    is_kept = scale.is_last and s + 1 < len(layout.scales)
    if total is None:
      shape = (len(keys), scale.num_frames, *layout.grid, net.config.num_channels)
      total = jnp.zeros(shape)
    is_image = scale.pyramid == 0
    total, kept, _ = run(
      net,
      # So that scales of one shape are one program.
      dataclasses.replace(scale, start=0, pyramid=0),
      sampling,
      total,
      positions(scale, layout.grid, first_id),
      (prompt, *context),
      prompts.is_seen,
      np.array(sampling.image_temperature if is_image else sampling.video_temperature, np.float32),
      _step_keys(keys, first_id - layout.text_length, scale.repetitions),
      jnp.stack(given[s]) if s < len(given) else None,
      is_kept=is_kept,
    )
    if scale.is_last:
      yield total
      context, total = (kept,), None


def generate(*arguments, **settings) -> Float[Array, "b t H W c"]:
  """Returns the latents of whole clips; takes what `pyramids` takes."""
  return jnp.concatenate(list(pyramids(*arguments, **settings)), axis=1)


def _step_keys(keys: Array, first: int, num: int) -> Array:
  """Returns keys `[k, b]` of the repetitions of a scale, of which `first` came before."""
  fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
  return jax.vmap(lambda number: fold(keys, number))(first + jnp.arange(num))
