"""In which order, and in which sets, a frame's tokens become known. Source: NOVA section 10."""

import dataclasses
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class KnownRange(NamedTuple):
  """Numbers of known tokens of a frame.

  Attributes:
    least, most: the smallest and the largest.
    chance: how likely they are, from 0 to 1.
  """

  least: int
  most: int
  chance: float


@dataclasses.dataclass(frozen=True)
class UnknownShare:
  """The share of a frame's tokens that is unknown in a training step.

  It is drawn from a normal distribution around 1 that is cut off at 1 and at `least`.

  Attributes:
    least: the smallest share.
    deviation: of the distribution before it is cut off; large ones make it uniform.
    num_ranges: into how many the numbers of known tokens are divided, see `ranges`.
  """

  least: float = 0.7
  deviation: float = 0.25
  num_ranges: int = 1

  def most_known(self, num_tokens: int) -> int:
    """Returns the largest number of known tokens of a frame; one is always unknown."""
    return min(round((1 - self.least) * num_tokens), num_tokens - 1)

  def ranges(self, num_tokens: int) -> tuple[KnownRange, ...]:
    """Divides the numbers of known tokens of a frame into ranges, as equally likely as they can be.

    There are fewer than `num_ranges` if a frame has too few tokens.
    """
    most, width = self.most_known(num_tokens), self.deviation * num_tokens
    # Counts are rounded, and the largest stands for all that would be above.
    edges = np.array([*np.arange(most) + 0.5, (1 - self.least) * num_tokens]) / width
    # How likely it is that no more are known: half of a normal distribution, cut off.
    below = np.array([statistics.NormalDist().cdf(x) - 0.5 for x in edges])
    below = below / below[-1] if most else np.ones(1)
    parts = np.arange(1, self.num_ranges) / self.num_ranges
    tops = sorted({*(int(np.argmin(np.abs(below - part))) for part in parts), most})
    firsts, chances = (0, *(top + 1 for top in tops[:-1])), np.diff(below[tops], prepend=0.0)
    return tuple(map(KnownRange, firsts, tops, map(float, chances)))

  def draw_num_known(self, key: Array, num_tokens: int) -> Int[Array, ""]:
    """Draws how many of a frame's tokens are known."""
    low = (self.least - 1) / self.deviation
    share = 1 + self.deviation * jax.random.truncated_normal(key, low, 0.0)
    # Not above, whatever the rounding of the share.
    known = jnp.round((1 - share) * num_tokens)
    return jnp.minimum(known, self.most_known(num_tokens)).astype(jnp.int32)


def set_sizes(num_steps: int, num_tokens: int) -> Int[np.ndarray, "n"]:
  """Returns how many tokens each step of sampling fills in, without steps that would fill none.

  Args:
    num_steps: of a cosine schedule.
    num_tokens: of a frame.
  Raises:
    ValueError: there is no step.
  """
  if num_steps < 1:
    raise ValueError(f"{num_steps} autoregressive steps: there must be at least 1")
  unknown = np.cos(np.pi / 2 * np.arange(num_steps + 1) / num_steps)
  sizes = -np.diff(np.round(unknown * num_tokens).astype(int))
  return sizes[sizes > 0]


def order_of(uniform: Float[Array, "b l"]) -> Int[Array, "b l"]:
  """Returns the order of tokens that uniform draws stand for."""
  return jnp.argsort(uniform, axis=-1)
