"""The loss of bits. Source: INFINITY section S6."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from videoar_jax.models.bits import cross_entropy
from videoar_jax.models.infinity_star.layout import Layout
from videoar_jax.models.infinity_star.network import InfinityStar, Logits
from videoar_jax.models.prompts import Text
from videoar_jax.tokenizers.star.quantizer import Selected


class Losses(NamedTuple):
  """Means over the bits of each token, in the order of the sequence.

  Attributes:
    cross_entropy: in nats a bit.
    accuracy: share of bits whose likelier value is right.
  """

  cross_entropy: Float[Array, "b n"]
  accuracy: Float[Array, "b n"]


def token_losses(
  logits: Logits, labels: Sequence[UInt8[Array, "b _t _h _w _d"]], layout: Layout
) -> Losses:
  """Returns how well the bits of each token are predicted.

  Args:
    logits: of the network.
    labels: bits of each scale in the sequence.
    layout: the sequence.
  """
  losses, places = [], []
  for is_detail, both in ((False, logits.semantic), (True, logits.detail)):
    bits = [
      x.reshape(len(x), -1, x.shape[-1])
      for x, scale in zip(labels, layout.scales, strict=True)
      if scale.is_detail == is_detail
    ]
    if bits:
      target = jnp.concatenate(bits, axis=1)
      # The softmax over both values of a bit is the sigmoid of their difference.
      difference = both[..., 1] - both[..., 0]
      entropy = jnp.mean(cross_entropy(difference, target), axis=-1)
      losses.append((entropy, jnp.mean((difference > 0) == (target > 0), axis=-1)))
      tokens = np.arange(layout.num_tokens)
      places.append(np.concatenate([tokens[run] for run in layout.runs(is_detail)]))
  order = np.argsort(np.concatenate(places))
  return Losses(*(jnp.concatenate(part, axis=1)[:, order] for part in zip(*losses, strict=True)))


def weighted_mean(values: Float[Array, "b n"], weights: Float[np.ndarray, "n"]) -> Float[Array, ""]:
  """Returns the mean over clips and tokens, whose weights need not be normalised."""
  return jnp.mean(values, axis=0) @ (weights / weights.sum())


def clip_losses(
  net: InfinityStar,
  text: Text,
  selected: Sequence[Selected],
  repetitions: Sequence[Int[Array, "b"]],
  layout: Layout,
  is_dropped: Bool[Array, "b"] | None = None,
) -> Losses:
  """Returns how well a network predicts the bits of clips, teacher-forced.

  Args:
    net: the network.
    text: of the prompts.
    selected: what it trains on of all scales of the schedule.
    repetitions: numbers of the repetitions that these are.
    layout: the sequence, maybe of some of the scales.
    is_dropped: whether "no prompt" replaces the prompt.
  """
  own = [selected[s] for s in layout.kept]
  inputs = [x.inputs.reshape(len(x.inputs), -1, x.inputs.shape[-1]) for x in own]
  logits = net(
    text,
    jnp.concatenate(inputs, axis=1),
    layout,
    repetitions=jnp.stack([repetitions[s] for s in layout.kept], axis=1),
    is_dropped=is_dropped,
  )
  return token_losses(logits, [x.labels for x in own], layout)
