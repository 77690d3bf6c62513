"""The loop: batches in, a trained state out; stops and goes on at any step.

The key of a step is a function of the seed and the step, the order of batches is in the iterator's
state, and both are saved with the parameters: a run that was interrupted ends with the same
numbers, bit for bit.
"""

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable, Iterator

import jax

from videoar_jax.parallel.mesh import shard_batch
from videoar_jax.runtime.goodput import GoodputTracker, report_at_exit
from videoar_jax.runtime.input_stall import InputStallMeter
from videoar_jax.runtime.preemption import Preempted, handle_preemption
from videoar_jax.runtime.profiler import Profiler
from videoar_jax.runtime.watchdog import Watchdog
from videoar_jax.train import anomaly
from videoar_jax.train import state as train_state
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.logging import RunLog
from videoar_jax.train.trainer import Trainer

log = logging.getLogger(__name__)

# What a batch says of its samples for people, and not for the model.
SAMPLE_FIELDS = ("id", "bucket")


def train(
  trainer: Trainer,
  state: train_state.State,
  iterator: Iterator,
  checkpointer: Checkpointer,
  run_log: RunLog,
  media_batch: dict,
  clock: GoodputTracker | None = None,
) -> train_state.State:
  """Trains from the state's step to the last one, and saves.

  Args:
    trainer: of what.
    state: where to start; its buffers are given up.
    iterator: of batches, with `get_state`.
    checkpointer: of this stage.
    run_log: where numbers and videos go.
    media_batch: clips to show.
    clock: that counted what led here; None for a new one.
  Raises:
    Preempted: a signal came; the state is saved.
    FloatingPointError: the loss is not finite.
  """
  config, first = trainer.config, int(state["step"])
  frozen, folder = trainer.task.frozen, checkpointer.directory.parent
  # The last step, whose metrics are still being computed: (step, metrics, its batch's samples).
  waiting: tuple[int, dict, dict] | None = None
  waits = InputStallMeter()
  # To wait for the save before, to begin the next one, and to wait for the last one.
  save_s = 3 * config.save_timeout_s
  with (
    handle_preemption(config.save_timeout_s) as stop,
    contextlib.closing(checkpointer),
    jax.set_mesh(trainer.mesh),
    Watchdog(config.step_timeout_s) as watchdog,
    Profiler(checkpointer.directory.parent / "profile", config.profile_steps) as profiler,
    report_at_exit(clock or GoodputTracker()) as clock,
  ):
    started = time.perf_counter()
    for step in range(first + 1, config.num_steps + 1):
      profiler.before(step)
      with waits:
        batch = next(iterator)
      clock.count("data", waits.last)
      samples = {name: batch.pop(name) for name in SAMPLE_FIELDS if name in batch}
      batch = shard_batch(batch, trainer.mesh)
      state, metrics = trainer.run(trainer.step, state, frozen, batch, trainer.key)
      waits.follow(metrics)
      if waiting is not None:
        _report(trainer, run_log, folder, *waiting, first, started)
      waiting = (step, metrics, samples)
      if step % config.log_every == 0:
        waits.warn(step)
      profiler.after(step, metrics)
      watchdog.beat()
      _check_saves(checkpointer.check)
      is_stopping = stop.is_due()
      if step % config.save_every == 0 or step == config.num_steps or is_stopping:
        _report(trainer, run_log, folder, *waiting, first, started)
        waiting = None
        is_last = is_stopping or step == config.num_steps
        with clock.measure("checkpoints"), watchdog.rest("the save", save_s):
          _save(checkpointer, run_log, step, state, iterator, is_last)
          if is_last:
            checkpointer.wait()
      # After the save, so that nothing that goes wrong here costs a step.
      if step % config.media_every == 0 or step == config.num_steps:
        params = train_state.evaluation_params(state)
        with clock.measure("samples"), watchdog.rest("the making of samples"):
          media = trainer.run(trainer.media, params, frozen, media_batch)
          run_log.videos(step, jax.device_get(media))
      if is_stopping:
        what = f"{stop.signal.name}: stopped at step {step} of {config.num_steps}"
        raise Preempted(what, stop.signal)
  log.info("waited for data %.1f%% of the time", 100 * waits.share)
  return state


def _check_saves(check: Callable[[], None]) -> None:
  """Tells of a save that failed; the run goes on, and tries again at the next one."""
  try:
    check()
  except TimeoutError:
    raise
  except Exception as error:
    log.error("A SAVE FAILED: %s. The run goes on and tries again at the next one", error)


def _save(checkpointer, run_log, step, state, iterator, is_last):
  # The log is on disk before the checkpoint that makes it count.
  run_log.flush()
  # If the save before it failed, this one has to be tried all the same.
  _check_saves(checkpointer.wait)
  try:
    checkpointer.save(step, state, iterator.get_state())
  except TimeoutError:
    raise
  except Exception as error:
    if is_last:
      raise
    log.error("STEP %d WAS NOT SAVED: %s. The run goes on and tries again", step, error)


def _report(
  trainer: Trainer,
  run_log: RunLog,
  folder: pathlib.Path,
  step: int,
  metrics: dict,
  samples: dict,
  first: int,
  started: float,
):
  values = {name: float(value) for name, value in jax.device_get(metrics).items()}
  _check(trainer.config, folder, step, values, samples)
  values["steps_per_s"] = (step - first) / (time.perf_counter() - started)
  values |= trainer.task.rates(values["steps_per_s"] * trainer.config.batch_size)
  run_log.scalars(step, values, is_line=step % trainer.config.log_every == 0)


def _check(
  config: LoopConfig, folder: pathlib.Path, step: int, values: dict[str, float], samples: dict
) -> None:
  """Writes down what a bad step was made of, and stops the run where that is configured."""
  num_bad = round(values.pop("num_bad"))
  if not num_bad:
    return
  name = anomaly.reason(values)
  path = anomaly.write_bad_step(folder, step, name, values[name], samples)
  what = f"{name} of step {step} is {values[name]}; {path} has the ids of its samples"
  if config.on_nan == "stop":
    raise FloatingPointError(
      f"{what}. The checkpoint before it is kept; lower "
      "optimizer.learning_rate or optimizer.grad_clip_norm (with a discriminator, those of "
      "loss.adversarial.optimizer too) and run into a new workdir, or set loop.on_nan='skip'"
    )
  if num_bad > anomaly.MAX_BAD_IN_A_ROW:
    raise FloatingPointError(
      f"{what}. So were the {num_bad - 1} steps before it, which are skipped: that is no "
      "accident of their samples. Where the loss is finite, raise loop.spike or set it to None; "
      "else lower optimizer.learning_rate and run into a new workdir"
    )
  log.warning("%s; the step is skipped", what)
