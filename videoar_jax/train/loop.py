"""The loop: batches in, a trained state out; stops and goes on at any step.

The key of a step is a function of the seed and the step, the order of batches is in the iterator's
state, and both are saved with the parameters: a run that was interrupted ends with the same
numbers, bit for bit.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

import jax

from videoar_jax.parallel.mesh import shard_batch
from videoar_jax.parallel.rules import place, replicated
from videoar_jax.runtime.goodput import GoodputTracker, report_at_exit
from videoar_jax.runtime.input_stall import InputStallMeter
from videoar_jax.runtime.preemption import Preempted, handle_preemption
from videoar_jax.runtime.profiler import Profiler
from videoar_jax.runtime.watchdog import Watchdog
from videoar_jax.train import state as train_state
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.evaluation import Evaluator
from videoar_jax.train.logging import RunLog
from videoar_jax.train.reporting import StepReporter
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
  held_out: Sequence[dict] = (),
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
    held_out: this process's part of the batches to evaluate on.
  Raises:
    Preempted: a signal came; the state is saved.
    FloatingPointError: the loss is not finite.
  """
  config, first = trainer.config, int(jax.device_get(state["step"]))
  folder, on_all = checkpointer.directory.parent, replicated(trainer.mesh)
  frozen = jax.tree.map(lambda x: place(x, on_all), trainer.task.frozen)
  key, evaluator = trainer.place_key(trainer.key), Evaluator(trainer, held_out)
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
    Profiler(folder / "profile", config.profile_steps) as profiler,
    report_at_exit(clock or GoodputTracker()) as clock,
  ):
    reporter = StepReporter(trainer, run_log, folder, clock, first)
    for step in range(first + 1, config.num_steps + 1):
      profiler.before(step)
      with _step_context(step):
        batch, samples = _take(iterator, waits, clock)
        batch = shard_batch(batch, trainer.mesh)
        state, metrics = trainer.run(trainer.step, state, frozen, batch, key)
        waits.follow(metrics)
        if waiting is not None:
          reporter.report(*waiting)
      waiting = (step, metrics, samples)
      if step % config.log_every == 0:
        waits.warn(step)
      profiler.after(step, metrics)
      watchdog.beat()
      _check_saves(checkpointer.check)
      is_stopping, is_end = stop.is_due(), step == config.num_steps
      is_saved = step % config.save_every == 0 or is_end or is_stopping
      is_shown = step % config.media_every == 0 or is_end
      # Who is told to stop has little time, and saves; nobody comes back to the last step.
      is_evaluated = evaluator.is_due(step) and (is_end or not is_stopping)
      if is_saved or is_shown or is_evaluated:
        # Else the rest of the step would be counted as what comes now.
        jax.block_until_ready(metrics)
        averages = None
        if is_evaluated:
          with clock.measure("evaluation"), watchdog.rest("the evaluation"):
            averages = evaluator(state, frozen)
        reporter.report(*waiting, averages)
        waiting = None
      if is_saved:
        is_last = is_stopping or is_end
        with clock.measure("checkpoints"), watchdog.rest("the save", save_s):
          _save(checkpointer, run_log, step, state, iterator, is_last)
          if is_last:
            checkpointer.wait()
      # After the save, so that nothing that goes wrong here costs a step.
      if is_shown:
        params = train_state.evaluation_params(state)
        shown = jax.tree.map(lambda x: place(x, on_all), media_batch)
        with clock.measure("samples"), watchdog.rest("the making of samples"):
          media = trainer.run(trainer.media, params, frozen, shown)
          run_log.videos(step, jax.device_get(media))
      if is_stopping:
        what = f"{stop.signal.name}: stopped at step {step} of {config.num_steps}"
        raise Preempted(what, stop.signal)
  log.info("waited for data %.1f%% of the time", 100 * waits.share)
  return state


@contextlib.contextmanager
def _step_context(step: int) -> Iterator[None]:
  """Names a step in profiles, and refuses transfers that nobody asked for within it."""
  with (
    jax.profiler.StepTraceAnnotation("train", step_num=step),
    jax.transfer_guard("disallow"),
  ):
    yield


def _take(iterator: Iterator, waits: InputStallMeter, clock: GoodputTracker) -> tuple[dict, dict]:
  """Returns the next batch, and what it says of its samples."""
  with waits:
    batch = next(iterator)
  clock.count("data", waits.last)
  samples = {name: batch.pop(name) for name in SAMPLE_FIELDS if name in batch}
  return batch, samples


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
