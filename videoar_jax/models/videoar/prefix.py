"""Prefix guidance: away from what a corrupted prefix would lead to.

Beside its prompt, each step of the decoder has a prefix: earlier frames, and the earlier scales of
its own. With g(prefix) for the logits that classifier-free guidance gives, and the weight l,

  logits = (1 + l) g(prefix) - l g(corrupted prefix).

A share of the corrupted prefix's positions have, for their whole embedding, that of another
position of the same scale; the embedding of where they stand is not changed. The corrupted prefix
is decoded beside the true one: its rows of a batch have keys and values of their own, so that a
clip takes twice the work.

Source: "VPG: Visual Prefix Guidance for Autoregressive Image and Video Generation" (arXiv
2605.30317), which needs no training.
"""

import dataclasses
import math
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class PrefixGuidance(NamedTuple):
  """Prefix guidance in a program.

  Attributes:
    weight: `l` above.
    share: of the positions that are replaced.
  """

  weight: float | Array
  share: float | Array


@dataclasses.dataclass(frozen=True)
class PrefixGuidanceConfig:
  """Guidance away from what a corrupted prefix would lead to (arXiv 2605.30317).

  Attributes:
    weight: how far; 0 for none, else a clip takes twice the work.
    share: of a scale's positions that have the embedding of another one in the corrupted prefix.
  """

  weight: float = 0.0
  share: float = 0.25

  def __post_init__(self):
    if not (math.isfinite(self.weight) and self.weight >= 0):
      raise ValueError(f"prefix_guidance.weight={self.weight} must be a number, 0 or more")
    if not 0 < self.share <= 1:
      raise ValueError(f"prefix_guidance.share={self.share} must be in (0, 1]")

  @classmethod
  def parse(cls, text: str) -> Self:
    """Reads WEIGHT, or WEIGHT,SHARE.

    Raises:
      ValueError: it is neither.
    """
    try:
      values = [float(part) for part in text.split(",")]
    except ValueError:
      values = []
    if len(values) not in (1, 2):
      raise ValueError(f"prefix_guidance={text} must be WEIGHT or WEIGHT,SHARE, such as 0.5,0.25")
    return cls(*values)

  def active(self) -> PrefixGuidance | None:
    """Returns what a program takes; None without guidance."""
    return PrefixGuidance(self.weight, self.share) if self.weight else None


def corrupt(
  features: Float[Array, "b n c"], keys: Array, share: float | Array
) -> Float[Array, "b n c"]:
  """Replaces a share of positions by others.

  Args:
    features: inputs of the positions of one scale.
    keys: a key for each sample.
    share: of the positions.
  """
  n = features.shape[1]
  if n == 1:  # There is no other one.
    return features

  def one(x: Float[Array, "n c"], key: Array) -> Float[Array, "n c"]:
    pick, move = jax.random.split(key)
    is_replaced = jax.random.permutation(pick, n) < jnp.round(share * n)
    others = (jnp.arange(n) + jax.random.randint(move, (n,), 1, n)) % n
    return jnp.where(is_replaced[:, None], x[others], x)

  return jax.vmap(one)(features, keys)


def combine(
  logits: Float[Array, "b q d"], corrupted: Float[Array, "b q d"], guidance: PrefixGuidance
) -> Float[Array, "b q d"]:
  """Returns guided logits."""
  return (1 + guidance.weight) * logits - guidance.weight * corrupted
