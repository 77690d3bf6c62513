"""Checks each step's metrics, adds the step rate, and logs them."""

import logging
import pathlib

import jax

from videoar_jax.runtime.goodput import GoodputTracker, StepRate
from videoar_jax.train import anomaly
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.logging import RunLog
from videoar_jax.train.trainer import Trainer

log = logging.getLogger(__name__)


class StepReporter:
  """Logs steps.

  Args:
    trainer: trainer of the steps.
    run_log: log to write to.
    folder: folder of the stage, for the list of bad steps.
    goodput: tracker of the loop's time.
    step: the last step before the first to log.
  """

  def __init__(
    self,
    trainer: Trainer,
    run_log: RunLog,
    folder: pathlib.Path,
    goodput: GoodputTracker,
    step: int,
  ):
    self._trainer, self._run_log, self._folder = trainer, run_log, folder
    self._rate = StepRate(goodput, step)

  def report(
    self, step: int, metrics: dict, samples: dict, held_out: dict[str, float] | None = None
  ) -> None:
    """Waits for a step's metrics, and logs them.

    Args:
      step: the step.
      metrics: scalars on devices.
      samples: fields that identify the samples of the step's batch.
      held_out: averages over held-out batches, if they were evaluated.
    Raises:
      FloatingPointError: a number is not finite, or the loss is far above its average.
    """
    config = self._trainer.config
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    _check(config, self._folder, step, values, samples)
    values["steps_per_s"] = self._rate.at(step)
    values |= self._trainer.task.rates(values["steps_per_s"] * config.batch_size)
    is_line = step % config.log_every == 0 or bool(held_out)
    self._run_log.scalars(step, values | (held_out or {}), is_line=is_line)
    if is_line:
      self._rate.restart(step)


def _check(
  config: LoopConfig, folder: pathlib.Path, step: int, values: dict[str, float], samples: dict
) -> None:
  """Records the samples of a bad step; stops the run if the config says so."""
  num_bad = round(values.pop("num_bad"))
  if not num_bad:
    return
  name = anomaly.reason(values)
  path = anomaly.write_bad_step(folder, step, name, values[name], samples)
  what = f"{name} of step {step} is {values[name]}; {path} has the ids of its samples"
  if config.on_nan == "stop":
    raise FloatingPointError(
      f"{what}. The previous checkpoint is kept; lower "
      "optimizer.learning_rate or optimizer.grad_clip_norm (with a discriminator, those of "
      "loss.adversarial.optimizer too) and run into a new workdir, or set loop.on_nan='skip'"
    )
  if num_bad > anomaly.MAX_BAD_IN_A_ROW:
    raise FloatingPointError(
      f"{what}. The {num_bad - 1} steps before it were bad, too, and skipped: their samples are "
      "not the cause. If the loss is finite, raise loop.spike or set it to None; else lower "
      "optimizer.learning_rate and run into a new workdir"
    )
  log.warning("%s; the step is skipped", what)
