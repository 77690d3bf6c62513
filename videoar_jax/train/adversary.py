"""A second network that trains against the first, on the same batches.

Its part of the train state is {"params", "opt_state", "lecam_ema"}: an optimizer of its own, and
numbers that one step hands to the next. A task without an adversary has {} there.
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
  """What a task says of its adversary.

  Attributes:
    init: makes the network.
    optimizer: its own.
    lecam_ema: numbers that steps hand on, as they are before the first one.
    start_step: it rests before this step.
    network: its settings; stages with equal ones hand it on.
  """

  init: Callable[[jax.Array], nnx.Module]
  optimizer: OptimizerConfig
  lecam_ema: dict
  start_step: int = 0
  network: Any = None


class AdversaryTrainer:
  """How an adversary's part of the state begins and moves.

  Args:
    adversary: of the task; None for a task without.
    num_steps: length of the stage.
  """

  def __init__(self, adversary: Adversary | None, num_steps: int):
    self.adversary = adversary
    if adversary is not None:
      self.template = Template.of(adversary.init)
      # Its schedule begins when it does.
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
    """Returns the state after a step, unmoved while the adversary rests, and scalars to log."""
    if self.adversary is None:
      return state, {}
    updates, opt_state = self.optimizer.update(gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    metrics = {"discriminator_gradient_norm": optax.global_norm(gradients)}
    new = {"params": params, "opt_state": opt_state, "lecam_ema": lecam_ema}
    is_started = step >= self.adversary.start_step
    return jax.tree.map(lambda x, y: jnp.where(is_started, x, y), new, state), metrics
