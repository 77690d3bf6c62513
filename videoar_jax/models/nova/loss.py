"""NOVA's training loss: diffusion of the tokens that are unknown. Source: NOVA section 11."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videoar_jax.models.nova import orders
from videoar_jax.models.nova.network import Nova
from videoar_jax.models.nova.noise import NoiseProcess
from videoar_jax.models.nova.orders import UnknownShare
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
  b, t, h, w, _ = latents.shape
  size = net.config.patch_size
  conditions = net.temporal.conditions(net.temporal(prefix, latents))
  conditions = conditions.reshape(b * t, *conditions.shape[2:])
  tokens = patchify(latents, size).reshape(b * t, -1, net.config.token_width)
  num_tokens = tokens.shape[1]
  order = draws.order[:, : max(unknown.most_known(num_tokens), 1)]
  z = net.spatial(
    conditions, tokens.astype(prefix.dtype), order, draws.num_known, (h // size, w // size)
  )
  noise, level = (
    x.reshape(-1, *tokens.shape[:2], *x.shape[2:]) for x in (draws.noise, draws.level)
  )
  repeats = len(noise)
  noisy = process.add(jnp.broadcast_to(tokens, noise.shape), noise, level)
  # The mesh axis for sequences splits a frame's tokens, if it divides them.
  axis = "sequence" if num_tokens % num_shards("sequence") == 0 else None
  split = (None, "batch", axis, None)
  inputs = constrain(noisy.tokens.astype(z.dtype), split)
  prediction = net.head.predict(inputs, noisy.time, net.head.condition(constrain(z, split[1:])))
  prediction = prediction.astype(jnp.float32)
  # Place of each token in its frame's order: the first ones are known.
  is_unknown = jnp.argsort(draws.order, axis=1) >= draws.num_known
  error = jnp.mean(jnp.square(prediction - noisy.target), axis=-1).reshape(repeats, b, t, -1)
  weights = is_unknown.reshape(b, t, -1).astype(jnp.float32)
  return Errors(error * weights, weights)


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
