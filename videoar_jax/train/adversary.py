"""An adversary: a second network (discriminator) that trains against the first on the same batches.

Its part of the train state is {"params", "opt_state", "lecam_ema"}: it has its own optimizer, and
LeCAM averages that are carried from step to step. For a task without an adversary the part is {}.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from videoar_jax.train.optimizer import OptimizerConfig, make_optimizer
from videoar_jax.train.state import Template


@dataclasses.dataclass(frozen=True)
class Adversary:
  """A task's definition of its adversary.

  Attributes:
    init: makes the network.
    optimizer: settings of its optimizer.
    lecam_ema: initial values of the LeCAM averages.
    start_step: the adversary does not train before this step.
    network: settings of the network; a stage can continue the adversary of a stage with equal ones.
  """

  init: Callable[[jax.Array], nnx.Module]
  optimizer: OptimizerConfig
  lecam_ema: dict
  start_step: int = 0
  network: Any = None


class AdversaryTrainer:
  """Initializes and updates the adversary's part of the train state.

  Args:
    adversary: the task's adversary; None if it has none.
    num_steps: length of the stage.
  """

  def __init__(self, adversary: Adversary | None, num_steps: int):
    self.adversary = adversary
    if adversary is not None:
      self.template = Template.of(adversary.init)
      # Its schedule starts at its first step.
      num_steps = max(1, num_steps - adversary.start_step)
      self.optimizer = make_optimizer(adversary.optimizer, num_steps, self.template.axes)

  def init(self, key: jax.Array) -> dict:
    """Returns the adversary's state before the first step."""
    if self.adversary is None:
      return {}
    params = nnx.to_pure_dict(nnx.split(self.adversary.init(key))[1])
    opt_state = self.optimizer.init(params)
    return {"params": params, "opt_state": opt_state, "lecam_ema": self.adversary.lecam_ema}

  def module(self, params: dict) -> nnx.Module | None:
    """Returns the network with these parameters."""
    return None if self.adversary is None else self.template.module(params)

  def update(self, state: dict, gradients: dict, lecam_ema: dict, step) -> tuple[dict, dict]:
    """Returns the state after a step, unchanged before `start_step`, and scalars to log."""
    if self.adversary is None:
      return state, {}
    updates, opt_state = self.optimizer.update(gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    metrics = {"discriminator_gradient_norm": optax.global_norm(gradients)}
    new = {"params": params, "opt_state": opt_state, "lecam_ema": lecam_ema}
    is_started = step >= self.adversary.start_step
    return jax.tree.map(lambda x, y: jnp.where(is_started, x, y), new, state), metrics
