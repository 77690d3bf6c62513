"""What the loop trains: a module, its loss, and what to show of it."""

from typing import Protocol

import jax
from flax import nnx
from jaxtyping import Array, Float

Metrics = dict[str, jax.Array]


class Task(Protocol):
  """A trainable thing. The loop knows no more of it than this.

  Attributes:
    frozen: parameters that the loss needs and does not train, a tree of arrays.
  """

  frozen: dict

  def init(self, key: Array) -> nnx.Module:
    """Makes the module to train."""

  def loss(
    self, module: nnx.Module, frozen: dict, batch: dict, key: Array, is_training: bool
  ) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss and scalars to log."""

  def media(self, module: nnx.Module, frozen: dict, batch: dict) -> dict[str, Array]:
    """Returns videos to show, uint8 [b, f, H, W, 3], by name."""
