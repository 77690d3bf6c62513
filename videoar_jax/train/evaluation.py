"""Loss and metrics on held-out batches during training."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from videoar_jax.parallel.mesh import shard_batch
from videoar_jax.train.state import State, evaluation_params
from videoar_jax.train.trainer import Trainer


class Evaluator:
  """Evaluates a trainer's network on the same batches and with the same keys each time.

  All processes must call it together.

  Args:
    trainer: the trainer; its seed determines the keys.
    batches: this process's shard of each batch, all of one shape.
  """

  def __init__(self, trainer: Trainer, batches: Sequence[dict[str, np.ndarray]]):
    self._trainer = trainer
    key = jax.random.fold_in(trainer.key, 4)
    self._batches = [
      (batch, trainer.place_key(jax.random.fold_in(key, i))) for i, batch in enumerate(batches)
    ]

  def is_due(self, step: int) -> bool:
    """Returns whether to evaluate after a step."""
    config = self._trainer.config
    is_due = config.eval_every and (step % config.eval_every == 0 or step == config.num_steps)
    return bool(is_due and self._batches)

  def __call__(self, state: State, frozen: dict) -> dict[str, float]:
    """Returns averages over all batches, `eval/loss` and others, with the EMA parameters.

    Args:
      state: the train state; if it has no EMA, the trained parameters are used.
      frozen: parameters that the loss needs but that are not trained, on the mesh.
    """
    trainer, params = self._trainer, evaluation_params(state)
    found = []
    for batch, key in self._batches:
      batch = shard_batch(batch, trainer.mesh)
      found.append(trainer.run(trainer.evaluate, params, frozen, batch, key))
    averages = functools.reduce(_merge, jax.device_get(found))
    return {f"eval/{name}": float(average.compute()) for name, average in averages.items()}


def _merge(averages: dict, others: dict) -> dict:
  return {name: average.merge(others[name]) for name, average in averages.items()}
