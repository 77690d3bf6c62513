"""NOVA's training loss: diffusion of the tokens that are unknown. Source: NOVA section 11."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videoar_jax.models.nova import orders
from videoar_jax.models.nova.head import Head
from videoar_jax.models.nova.network import Nova
from videoar_jax.models.nova.noise import NoiseProcess
from videoar_jax.models.nova.orders import KnownRange, UnknownShare
from videoar_jax.models.nova.spatial import SpatialTransformer
from videoar_jax.models.nova.tokens import patchify
from videoar_jax.parallel.rules import constrain, num_shards


class Draws(NamedTuple):
  """The random numbers of a training step; frames are those of clip 0, of clip 1, and so on.

  Attributes:
    order: in which each frame's tokens become known.
    num_known: how many are, in all frames.
    noise: of each token, `r` times.
    level: noise level of each token.
  """

  order: Int[Array, "_frames l"]
  num_known: Int[Array, ""]
  noise: Float[Array, "_rows l p"]
  level: Int[Array, "_rows l"]


def draw(
  key: Array,
  num_frames: int,
  num_tokens: int,
  width: int,
  repeats: int,
  process: NoiseProcess,
  unknown: UnknownShare = UnknownShare(),  # noqa: B008, it is frozen.
) -> Draws:
  """Draws the random numbers of a step.

  Args:
    key: the key.
    num_frames: of all clips.
    num_tokens, width: of a frame, and of a token.
    repeats: `r`, how often each token is noised.
    process: draws the noise levels.
    unknown: draws how many tokens are unknown.
  """
  keys = jax.random.split(key, 4)
  rows = repeats * num_frames
  return Draws(
    orders.order_of(jax.random.uniform(keys[0], (num_frames, num_tokens))),
    unknown.draw_num_known(keys[1], num_tokens),
    jax.random.normal(keys[2], (rows, num_tokens, width)),
    process.draw(keys[3], (rows, num_tokens)),
  )


class Errors(NamedTuple):
  """Errors of a network's predictions.

  Attributes:
    squared: mean squared error of each token, `r` times; 0 for known ones.
    is_unknown: 1 for the tokens that count.
  """

  squared: Float[Array, "r b t l"]
  is_unknown: Float[Array, "b t l"]

  def by_frame(self) -> Float[Array, " t"]:
    """Returns each frame's part of the mean over all clips."""
    total = len(self.squared) * jnp.sum(self.is_unknown)
    return jnp.sum(self.squared, (0, 1, 3)) / (total + 1e-5)

  def by_clip(self) -> Float[Array, "b t"]:
    """Returns each frame's part of the mean over its clip."""
    total = len(self.squared) * jnp.sum(self.is_unknown, (1, 2))
    return jnp.sum(self.squared, (0, 3)) / (total[:, None] + 1e-5)


def _frames(net: Nova, latents, prefix) -> tuple[Float[Array, "_b v m"], Float[Array, "_b l p"]]:
  """Returns the condition and the tokens of each frame, of clip 0, of clip 1, and so on."""
  b, t = latents.shape[:2]
  conditions = net.temporal.conditions(net.temporal(prefix, latents))
  tokens = patchify(latents, net.config.patch_size)
  return tuple(x.reshape(b * t, *x.shape[2:]) for x in (conditions, tokens))


def _errors(
  spatial: SpatialTransformer,
  head: Head,
  conditions: Float[Array, "_b v m"],
  tokens: Float[Array, "_b l p"],
  shape: tuple[int, ...],
  draws: Draws,
  process: NoiseProcess,
  known: KnownRange,
) -> Errors:
  """Returns how far predictions are from their targets, of tokens that may be unknown.

  Args:
    spatial, head: parts of the network.
    conditions, tokens: of frames.
    shape: of the clips' latents.
    draws: random numbers.
    process: how tokens get noisy.
    known: how many tokens may be known. The encoder's part of a frame is padded to the most; the
      head leaves out the first tokens in the frame's order, which are known for certain, but for
      some where a sequence's devices would not have equal parts.
  """
  b, t, h, w, _ = shape
  size = spatial.config.patch_size
  z = spatial(
    conditions,
    tokens.astype(conditions.dtype),
    draws.order[:, : max(known.most, 1)],
    draws.num_known,
    (h // size, w // size),
  )
  noise, level = (
    x.reshape(-1, *tokens.shape[:2], *x.shape[2:]) for x in (draws.noise, draws.level)
  )
  num_tokens, num_parts = tokens.shape[1], num_shards("sequence")
  num_left_out = known.least - (known.least % num_parts if num_tokens % num_parts == 0 else 0)
  # Place of each token in its frame's order: the first ones are known.
  if num_left_out:
    rest = draws.order[:, num_left_out:]
    place = jnp.broadcast_to(jnp.arange(num_left_out, num_tokens), rest.shape)
    take = jax.vmap(lambda x, index: x[index])  # Of each frame.
    tokens, z = take(tokens, rest), take(z, rest)
    noise, level = (jax.vmap(take, (0, None))(x, rest) for x in (noise, level))
  else:
    place = jnp.argsort(draws.order, axis=1)
  repeats = len(noise)
  noisy = process.add(jnp.broadcast_to(tokens, noise.shape), noise, level)
  # The mesh axis for sequences splits a frame's tokens, if it divides them.
  axis = "sequence" if num_tokens % num_parts == 0 else None
  split = (None, "batch", axis, None)
  inputs = constrain(noisy.tokens.astype(z.dtype), split)
  prediction = head.predict(inputs, noisy.time, head.condition(constrain(z, split[1:])))
  prediction = prediction.astype(jnp.float32)
  error = jnp.mean(jnp.square(prediction - noisy.target), axis=-1).reshape(repeats, b, t, -1)
  weights = (place >= draws.num_known).reshape(b, t, -1).astype(jnp.float32)
  return Errors(error * weights, weights)


def errors(
  net: Nova,
  latents: Float[Array, "b t h w c"],
  prefix: Float[Array, "b n m"],
  draws: Draws,
  process: NoiseProcess,
  unknown: UnknownShare = UnknownShare(),  # noqa: B008, it is frozen.
) -> Errors:
  """Returns how far predictions are from their targets.

  All tokens of a frame have one shape, whatever is known of them: the encoder's share of them is
  padded to the most that may be known.

  Args:
    net: the network.
    latents: of clips.
    prefix: of the prompts, see `TemporalEncoder.prefix`.
    draws: random numbers.
    process: how tokens get noisy.
    unknown: with which the random numbers were drawn.
  """
  conditions, tokens = _frames(net, latents, prefix)
  known = KnownRange(0, unknown.most_known(tokens.shape[1]), 1.0)
  return _errors(net.spatial, net.head, conditions, tokens, latents.shape, draws, process, known)


def parts_of(by_frame: Float[Array, "*b t"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
  """Returns the loss of first frames and that of later ones, which counts as much.

  The second is 0 for images.

  Args:
    by_frame: each frame's part of a mean, see `Errors`.
  """
  t = by_frame.shape[-1]
  first = t * by_frame[..., 0]
  if t == 1:
    return first, jnp.zeros_like(first)
  return first, t / (t - 1) * jnp.sum(by_frame[..., 1:], axis=-1)


def losses(
  net: Nova,
  latents: Float[Array, "b t h w c"],
  prefix: Float[Array, "b n m"],
  draws: Draws,
  process: NoiseProcess,
  unknown: UnknownShare = UnknownShare(),  # noqa: B008, it is frozen.
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Returns the loss of first frames and that of later ones; see `errors` and `parts_of`."""
  return parts_of(errors(net, latents, prefix, draws, process, unknown).by_frame())


def training_loss(
  net: Nova,
  latents: Float[Array, "b t h w c"],
  prefix: Float[Array, "b n m"],
  draws: Draws,
  process: NoiseProcess,
  unknown: UnknownShare,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
  """Returns the sum of `losses`, and both; only the sum has a gradient.

  The program has a branch for each of `unknown.ranges`: the fewer tokens may be known, the fewer
  the encoder has, and the more are known for certain, the fewer the head has.
  """
  ranges = unknown.ranges(draws.order.shape[1])
  if len(ranges) == 1:
    both = losses(net, latents, prefix, draws, process, unknown)
    return sum(both), jax.lax.stop_gradient(both)
  structure, params = nnx.split((net.spatial, net.head))

  def make_branch(known: KnownRange):
    def branch(params, conditions, tokens, draws):
      parts = nnx.merge(structure, params)
      found = _errors(*parts, conditions, tokens, latents.shape, draws, process, known)
      both = parts_of(found.by_frame())
      return sum(both), both

    return branch

  branches = [make_branch(known) for known in ranges]
  index = jnp.sum(draws.num_known > np.array([known.most for known in ranges[:-1]]))
  total, both = _switch(branches, index, params, *_frames(net, latents, prefix), draws)
  return total, jax.lax.stop_gradient(both)


def _switch(branches, index: Int[Array, ""], params, conditions, tokens, draws: Draws):
  """Returns what one of several branches does.

  Its gradient is computed with it: that of `jax.lax.switch` would write zeros, in every step, for
  what the other branches would have kept.

  Args:
    branches: from what follows to a loss, and metrics without a gradient.
    index: of the branch to take.
    params, conditions: with a gradient.
    tokens, draws: without.
  """

  @jax.custom_vjp
  def run(index, *given):
    return jax.lax.switch(index, branches, *given)

  def forward(index, *given):
    with_gradients = [jax.value_and_grad(branch, (0, 1), has_aux=True) for branch in branches]
    return jax.lax.switch(index, with_gradients, *given)

  def backward(gradients, outputs):
    scaled = jax.tree.map(lambda x: outputs[0].astype(x.dtype) * x, gradients)
    return None, *scaled, None, None

  run.defvjp(forward, backward)
  return run(index, params, conditions, tokens, draws)
