"""Generates latents: frame by frame, each set by set, each token by diffusion.

The whole clip is one program of static shapes: sets of tokens, which differ in size, and the tokens
that the spatial encoder sees are padded to the most of a few groups of steps.

Source: NOVA sections 8 to 12.
"""

import dataclasses
import functools
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from videoar_jax.models.nova import orders
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.head import Factors
from videoar_jax.models.nova.network import Nova
from videoar_jax.models.nova.noise import NoiseProcess, Steps
from videoar_jax.models.nova.spatial import write as write_tokens
from videoar_jax.models.nova.tokens import patchify, unpatchify
from videoar_jax.models.request import sample_keys
from videoar_jax.nn.cache import make_ring, write

_NUM_GROUPS = 8  # Of steps with the same static shapes.
_MAX_FACTORS = 2**25  # Numbers that the head computes ahead for steps of diffusion.


@dataclasses.dataclass(frozen=True)
class Guidance:
  """Classifier-free guidance.

  Attributes:
    scale: weight of the difference between conditional and unconditional prediction; 1 for none.
    min_scale: weight at the first set of a frame, from which it rises linearly; None for constant.
    trunc: noise level below which there is no guidance.
    renorm: least factor by which a guided prediction is scaled back to the conditional one's norm;
      1 for none.
    image_scale: weight of the difference that earlier frames make; 0 for none.
  """

  scale: float = 5.0
  min_scale: float | None = None
  trunc: float = 0.0
  renorm: float = 1.0
  image_scale: float = 0.0

  @property
  def num_passes(self) -> int:
    """How many predictions are mixed."""
    if max(self.scale, self.min_scale or 0) <= 1:
      return 1
    return 3 if self.image_scale else 2

  def mix(
    self, predictions: Float[Array, "_ l p"], scale: Float[Array, ""]
  ) -> Float[Array, "b l p"]:
    """Returns the guided prediction, given those of all passes: conditional, unconditional, and
    unconditional with earlier frames."""
    cond, uncond, *rest = jnp.split(predictions, self.num_passes)
    base = rest[0] if rest else uncond
    mixed = uncond + scale * (cond - base)
    if self.renorm < 1:
      norms = [jnp.sqrt(jnp.sum(x**2, axis=(1, 2), keepdims=True)) for x in (cond, mixed)]
      mixed = mixed * jnp.clip(norms[0] / norms[1], self.renorm, 1)
    return mixed + self.image_scale * (base - uncond) if rest else mixed


@runtime_checkable
class Draws(Protocol):
  """The random numbers of clips; frames, steps and sets may be traced."""

  def order(self) -> Int[Array, "b l"]:
    """Returns the order in which tokens become known, the same in every frame."""

  def start(self, frame, step) -> Float[Array, "b l p"]:
    """Returns the noise that a set of tokens starts from."""

  def fresh(self, frame, step, level) -> Float[Array, "b l p"]:
    """Returns the noise that is added at a diffusion step."""


@dataclasses.dataclass(frozen=True)
class KeyDraws:
  """Draws from a key for each clip, so that a clip does not depend on the others of its batch.

  Attributes:
    keys: of each clip.
    num_tokens, width: of a frame, and of a token.
  """

  keys: Array
  num_tokens: int
  width: int

  def _normal(self, *numbers) -> Float[Array, "b l p"]:
    def draw(key):
      for number in numbers:
        key = jax.random.fold_in(key, number)
      return jax.random.normal(key, (self.num_tokens, self.width))

    return jax.vmap(draw)(self.keys)

  def order(self) -> Int[Array, "b l"]:
    """See `Draws`."""
    draw = lambda key: jax.random.uniform(jax.random.fold_in(key, 0), (self.num_tokens,))  # noqa: E731
    return orders.order_of(jax.vmap(draw)(self.keys))

  def start(self, frame, step) -> Float[Array, "b l p"]:
    """See `Draws`."""
    return self._normal(1, frame, step)

  def fresh(self, frame, step, level) -> Float[Array, "b l p"]:
    """See `Draws`."""
    return self._normal(2, frame, step, level)


class Plan(NamedTuple):
  """How clips are sampled.

  Attributes:
    num_frames: latent frames of a clip.
    size: (h, w) of a latent frame.
    num_ar_steps: steps of the schedule that fills in a frame's tokens.
    num_diffusion_steps: steps of the head for each set.
    noise: the process that the head was trained on.
    guidance: how predictions are mixed.
  """

  num_frames: int
  size: tuple[int, int]
  num_ar_steps: int
  num_diffusion_steps: int
  noise: NoiseProcess
  guidance: Guidance


def generate(
  net: Nova,
  plan: Plan,
  text: Array,
  null: Array,
  flow: Float[Array, "b"] | None,
  draws: Draws,
  conditioning: Float[Array, "b g h w c"] | None = None,
) -> Float[Array, "b t h w c"]:
  """Returns latents of clips.

  Args:
    net: the network.
    plan: what to sample.
    text: tokens or features of the prompts.
    null: the same for "no condition", broadcast against `text`.
    flow: how much moves; None for the default.
    draws: random numbers.
    conditioning: latents of the first frames, fewer than the clip has; None to generate all.
  """
  config, weights = net.config, net.temporal.start.dtype
  dtype = jnp.dtype(config.dtype) if weights == jnp.float32 else weights
  passes, b = plan.guidance.num_passes, len(text)
  nulls = jnp.broadcast_to(null, text.shape).astype(text.dtype)
  text = jnp.concatenate([text, *[nulls] * (passes - 1)])
  flow = None if flow is None else jnp.tile(flow, passes)
  grid = tuple(side // config.patch_size for side in plan.size)
  video_grid = tuple(side // config.video_patch_size for side in plan.size)
  fill = functools.partial(_fill, net, plan, draws, draws.order(), grid)

  prefix = net.temporal.prefix(text, flow, dtype)
  n, v = prefix.shape[1], video_grid[0] * video_grid[1]
  nothing = jnp.zeros((b, 1, *plan.size, config.num_channels), dtype)
  slot = _slot(net, plan, nothing, 0)
  anchor, cache = net.temporal.step(
    jnp.concatenate([prefix, slot], axis=1),
    net.temporal.angles(n, 0, 1, video_grid),
    num_prefix=n,
  )
  if plan.num_frames == 1:
    return unpatchify(fill(anchor, 0)[:, None], grid, config.patch_size)
  cache = write(make_ring(cache, n + plan.num_frames * v), cache, 0)

  def condition_of(cache, x, t):
    """Returns the condition of frame `t`, given the one before it, which the cache then has."""
    latents = unpatchify(x.astype(dtype), grid, config.patch_size)[:, None]
    is_seen = jnp.arange(n + plan.num_frames * v) < n + t * v
    y, new = net.temporal.step(
      _slot(net, plan, latents, t), net.temporal.angles(0, t, 1, video_grid), cache, is_seen
    )
    condition = y if net.temporal.mixer is None else net.temporal.mixer(anchor, y)
    return condition, write(cache, new, n + t * v)

  def step(carry, t):
    condition, cache = carry
    x = fill(condition, t)
    # After the last frame, one for nothing: so, the program has one place that fills a frame.
    return condition_of(cache, x, t + 1), x

  known = jnp.zeros((b, 0, grid[0] * grid[1], config.token_width))
  if conditioning is not None:
    known = patchify(conditioning.astype(jnp.float32), config.patch_size)
  carry = anchor, cache
  for t in range(known.shape[1]):  # Conditioning frames are only remembered.
    carry = condition_of(carry[1], known[:, t], t + 1)
  _, made = jax.lax.scan(step, carry, jnp.arange(known.shape[1], plan.num_frames))
  tokens = jnp.concatenate([known, jnp.moveaxis(made, 0, 1)], axis=1)
  return unpatchify(tokens, grid, config.patch_size)


def _slot(net: Nova, plan: Plan, latents, t) -> Float[Array, "_ v m"]:
  """Returns a slot's tokens for all passes of guidance."""
  tokens = net.temporal.slots(latents, t, plan.num_frames, latents.dtype)[:, 0]
  copies = [tokens] * plan.guidance.num_passes
  if len(copies) == 3:
    # The unconditional pass sees no earlier frame.
    copies[1] = jnp.broadcast_to(net.temporal.start[...].astype(tokens.dtype), tokens.shape)
  return jnp.concatenate(copies)


class SetGroup(NamedTuple):
  """Steps of a frame with the same static shapes.

  Attributes:
    index: number of each step.
    known: tokens that are known before it.
    sizes: tokens that it fills in.
    capacity: places for known tokens.
    largest: places for tokens that are filled in.
  """

  index: Int[np.ndarray, "n"]
  known: Int[np.ndarray, "n"]
  sizes: Int[np.ndarray, "n"]
  capacity: int
  largest: int


def set_groups(sizes: Int[np.ndarray, "n"]) -> list[SetGroup]:
  """Returns the steps in groups, given how many tokens each fills in."""
  known = np.cumsum(sizes) - sizes
  parts = np.array_split(np.arange(len(sizes)), min(_NUM_GROUPS, len(sizes)))
  return [
    SetGroup(part, known[part], sizes[part], max(int(known[part].max()), 1), int(sizes[part].max()))
    for part in parts
  ]


def _fill(net: Nova, plan: Plan, draws: Draws, order, grid, condition, frame):
  """Returns a frame's tokens `[b, l, p]`, filled in set by set."""
  b, l = order.shape
  sizes = orders.set_sizes(plan.num_ar_steps, l)
  # Beyond the last token, where writes are dropped.
  padded = jnp.pad(order, ((0, 0), (0, int(sizes.max()))), constant_values=l)
  passes = plan.guidance.num_passes
  x = jnp.zeros((b, l, net.config.token_width))

  def step(x, i, num_known, size, scale, group):
    shown = jnp.tile(order[:, : group.capacity], (passes, 1))
    tokens = jnp.tile(x.astype(condition.dtype), (passes, 1, 1))
    z = net.spatial(condition, tokens, shown, num_known, grid)
    chosen = jax.lax.dynamic_slice_in_dim(padded, num_known, group.largest, axis=1)
    chosen = jnp.where(jnp.arange(group.largest) < size, chosen, l)
    sample = _denoise(net, plan, draws, z, chosen, frame, i, scale)
    values = jnp.take_along_axis(sample, jnp.minimum(chosen, l - 1)[..., None], axis=1)
    return write_tokens(x, chosen, values)

  scales = _scales(plan.guidance, len(sizes))
  for group in set_groups(sizes):

    def body(x, step_of, group=group):
      return step(x, *step_of, group), None

    each = (group.index, group.known, group.sizes, scales[group.index])
    x, _ = jax.lax.scan(body, x, tuple(map(jnp.asarray, each)))
  return x


def _scales(guidance: Guidance, num: int) -> Float[np.ndarray, "n"]:
  """Returns the weight of guidance at each set of a frame."""
  low = guidance.scale if guidance.min_scale is None else guidance.min_scale
  return (low + (guidance.scale - low) * np.arange(1, num + 1) / num).astype(np.float32)


def _denoise(net: Nova, plan: Plan, draws: Draws, z, chosen, frame, step, scale):
  """Returns tokens `[b, l, p]`, of which the chosen ones are samples.

  All others are predicted as they are: no network runs on them, but renormalised guidance counts
  them, as the public code does. The process runs in float32, the network in the type of `z`.
  """
  steps = plan.noise.steps(plan.num_diffusion_steps)
  passes, b = plan.guidance.num_passes, len(chosen)
  places = jnp.minimum(chosen, z.shape[1] - 1)[..., None]
  z = jnp.take_along_axis(z, jnp.tile(places, (passes, 1, 1)), axis=1)
  condition, x = net.head.condition(z), draws.start(frame, step)

  def predict(x, time, factors, num_passes):
    own = jnp.take_along_axis(x, places, axis=1).astype(z.dtype)
    own = net.head.predict_with(jnp.tile(own, (num_passes, 1, 1)), time, factors)
    whole = jnp.tile(x, (num_passes, 1, 1))
    return write_tokens(whole, jnp.tile(chosen, (num_passes, 1)), own.astype(x.dtype))

  def run(x, part, num_passes):
    """Takes some of the steps, in chunks whose factors are computed at once."""
    own = condition[: num_passes * b]

    def chunk(x, each):
      factors = net.head.factors(each[1].times[:, None, None], own)

      def body(x, step_of):
        i, index, (time, keep, add, noise) = step_of
        # Not scanned over: the first axis of blocks is that of layers.
        of_step = Factors(factors.blocks[:, i], factors.out[i])
        prediction = predict(x, time, of_step, num_passes)
        if num_passes > 1:
          prediction = plan.guidance.mix(prediction, scale)
        x = keep * x + add * prediction
        if steps.noise.any():
          x = x + noise * draws.fresh(frame, step, index)
        return x, None

      return jax.lax.scan(body, x, (jnp.arange(len(each[0])), *each))

    numbers = own.shape[0] * own.shape[1] * net.head.num_factors
    each = _chunks(steps, part, max(_MAX_FACTORS // numbers, 1))
    return jax.lax.scan(chunk, x, jax.tree.map(jnp.asarray, each))[0]

  is_guided = (steps.times >= plan.guidance.trunc) & (passes > 1)
  index = np.arange(len(steps.times))
  # Noise levels fall, so that guidance ends once.
  for part, num_passes in ((index[is_guided], passes), (index[~is_guided], 1)):
    if len(part):
      x = run(x, part, num_passes)
  return x


def _chunks(steps: Steps, part: Int[np.ndarray, "n"], most: int) -> tuple[np.ndarray, Steps]:
  """Returns the numbers of some steps, and the steps, in chunks `[q, c]` of at most that many.

  Steps that fill up the last chunk change nothing.
  """
  num_chunks = -(-len(part) // most)
  added = -len(part) % num_chunks
  index = np.append(part, np.full(added, part[-1]))
  chosen = Steps(*(values[index] for values in steps))
  for values, nothing in ((chosen.keep, 1), (chosen.add, 0), (chosen.noise, 0)):
    values[len(part) :] = nothing
  return jax.tree.map(lambda x: x.reshape(num_chunks, -1), (index, chosen))


def key_draws(
  seed: int | Int[Array, ""] | UInt[Array, ""],
  sample_ids: Int[Array, "b"],
  plan: Plan,
  config: NovaConfig,
  window: int | Int[Array, ""] | UInt[Array, ""] = 0,
) -> KeyDraws:
  """Returns the random numbers of clips with given numbers under a seed.

  Args:
    seed: random seed.
    sample_ids: numbers of the clips.
    plan: how they are sampled.
    config: the network.
    window: frames before the first one; windows of a longer clip have different numbers.
  """
  num_tokens = (plan.size[0] // config.patch_size) * (plan.size[1] // config.patch_size)
  keys = jax.vmap(lambda key: jax.random.fold_in(key, window))(sample_keys(seed, sample_ids))
  return KeyDraws(keys, num_tokens, config.token_width)
