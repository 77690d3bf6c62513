"""What the loop trains: a module, its loss, and what to show of it."""

from typing import Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from videoar_jax.train.adversary import Adversary

Metrics = dict[str, jax.Array]


@runtime_checkable
class Task(Protocol):
  """A trainable thing. The loop knows no more of it than this.

  Attributes:
    frozen: parameters that the loss needs and does not train, a tree of arrays.
    adversary: a second network that trains against the module; None for none. With one, it is an
      `AdversarialTask`.
  """

  frozen: dict
  adversary: Adversary | None

  def init(self, key: Array) -> nnx.Module:
    """Makes the module to train."""

  def loss(
    self, module: nnx.Module, frozen: dict, batch: dict, key: Array, is_training: bool
  ) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss and scalars to log."""

  def rates(self, clips_per_s: float) -> dict[str, float]:
    """Returns what else to log of a speed of training, over all devices."""

  def media(self, module: nnx.Module, frozen: dict, batch: dict) -> dict[str, Array]:
    """Returns videos to show, uint8 [b, f, H, W, 3], by name."""


@runtime_checkable
class AdversarialTask(Task, Protocol):
  """A task with an adversary, of which the loop calls `adversarial_loss` in place of `loss`."""

  def adversarial_loss(
    self,
    module: nnx.Module,
    discriminator: nnx.Module,
    lecam_ema: dict,
    frozen: dict,
    batch: dict,
    key: Array,
    step: Int[Array, ""],
  ) -> tuple[Float[Array, ""], Metrics, dict]:
    """Returns a sum whose gradient by each network is its own, scalars, and the new LeCAM averages.

    The scalars have the module's own loss as `loss`.
    """
