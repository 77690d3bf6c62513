"""In which order, and in which sets, a frame's tokens become known. Source: NOVA section 10."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

MIN_UNKNOWN = 0.7  # Least share of unknown tokens in training.
_SPREAD = 0.25  # Of the share's normal distribution, which is cut off at both ends.


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


def most_known(num_tokens: int) -> int:
  """Returns the largest number of known tokens of a frame in training."""
  return round((1 - MIN_UNKNOWN) * num_tokens)


def draw_num_known(key: Array, num_tokens: int) -> Int[Array, ""]:
  """Draws how many of a frame's tokens are known in a training step."""
  low = (MIN_UNKNOWN - 1) / _SPREAD
  share = 1 + _SPREAD * jax.random.truncated_normal(key, low, 0.0)
  # Not above, whatever the rounding of the share.
  return jnp.minimum(jnp.round((1 - share) * num_tokens), most_known(num_tokens)).astype(jnp.int32)


def order_of(uniform: Float[Array, "b l"]) -> Int[Array, "b l"]:
  """Returns the order of tokens that uniform draws stand for."""
  return jnp.argsort(uniform, axis=-1)
