"""The interface of what the loop trains: a module, its loss, and media to show."""

from typing import Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from videoar_jax.train.adversary import Adversary

Metrics = dict[str, jax.Array]


@runtime_checkable
class Task(Protocol):
  """A training task; the loop uses nothing else of a model.

  Attributes:
    frozen: tree of parameters that the loss needs but that are not trained.
    adversary: a second network that trains against the module, or None. With one, the task is an
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
    """Returns further rates to log, given the clips per second over all devices."""

  def media(self, module: nnx.Module, frozen: dict, batch: dict) -> dict[str, Array]:
    """Returns videos to show, uint8 [b, f, H, W, 3], by name."""


@runtime_checkable
class SelectiveTask(Task, Protocol):
  """A task that decides by a parameter's dotted name whether it is trained, and whether it decays.

  Otherwise all are trained, and those of two or more axes decay.
  """

  def is_trained(self, name: str) -> bool:
    """Returns whether a parameter is trained; others keep their values, and have no moments."""

  def is_decayed(self, name: str) -> bool:
    """Returns whether weight decay applies to a parameter."""


@runtime_checkable
class AdversarialTask(Task, Protocol):
  """A task with an adversary; training calls its `adversarial_loss` instead of `loss`."""

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
    """Returns the loss to differentiate, scalars to log, and the new LeCAM averages.

    The loss is a sum whose gradient with respect to each network is that of the network's own
    loss. In the scalars, `loss` is the module's own.
    """
