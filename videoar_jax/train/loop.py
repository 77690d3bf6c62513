"""The training loop, which can stop and resume at any step.

A step's PRNG key is a function of the seed and the step, and the iterator's state is saved with the
parameters: an interrupted and resumed run ends with the same numbers, bit for bit.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence

import jax

from videoar_jax.parallel.mesh import shard_batch, shard_padded
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
from videoar_jax.train.saving import Saver
from videoar_jax.train.trainer import Trainer

log = logging.getLogger(__name__)

# Fields of a batch that identify its samples, for the log and not for the model.
SAMPLE_FIELDS = ("id", "bucket")


def train(
  trainer: Trainer,
  state: train_state.State,
  iterator: Iterator,
  checkpointer: Checkpointer,
  run_log: RunLog,
  media_batch: dict,
  goodput: GoodputTracker | None = None,
  held_out: Sequence[dict] = (),
) -> train_state.State:
  """Trains from the state's step to the last one, and saves checkpoints.

  Args:
    trainer: the trainer.
    state: state to start from; its buffers are donated.
    iterator: iterator of batches, with `get_state`.
    checkpointer: checkpointer of this stage.
    run_log: log for scalars and videos.
    media_batch: clips to show in the log.
    goodput: tracker that already counted the time of start-up; None for a new one.
    held_out: this process's shard of the batches to evaluate on.
  Raises:
    Preempted: a signal stopped the run; the state is saved.
    FloatingPointError: a metric is not finite, or the loss is far above its average.
  """
  config, first = trainer.config, int(jax.device_get(state["step"]))
  folder, on_all = checkpointer.directory.parent, replicated(trainer.mesh)
  frozen = jax.tree.map(lambda x: place(x, on_all), trainer.task.frozen)
  key, evaluator = trainer.place_key(trainer.key), Evaluator(trainer, held_out)
  # The last dispatched step, which is not reported yet: (step, metrics, its batch's samples).
  pending: tuple[int, dict, dict] | None = None
  input_stall = InputStallMeter()
  # Time to wait for the previous save, to start the next one, and to wait for the last one.
  save_s = 3 * config.save_timeout_s
  with (
    handle_preemption(config.save_timeout_s) as stop,
    contextlib.closing(checkpointer),
    jax.set_mesh(trainer.mesh),
    Watchdog(config.step_timeout_s) as watchdog,
    Profiler(folder / "profile", config.profile_steps) as profiler,
    report_at_exit(goodput or GoodputTracker()) as goodput,
  ):
    saver = Saver(checkpointer, run_log)
    reporter = StepReporter(trainer, run_log, folder, goodput, first)
    for step in range(first + 1, config.num_steps + 1):
      profiler.before(step)
      with _step_context(step):
        batch, samples = _take(iterator, input_stall, goodput)
        batch = shard_batch(batch, trainer.mesh)
        state, metrics = trainer.run(trainer.step, state, frozen, batch, key)
        input_stall.follow(metrics)
        if pending is not None:
          reporter.report(*pending)
      pending = (step, metrics, samples)
      if step % config.log_every == 0:
        input_stall.warn(step)
      profiler.after(step, metrics)
      watchdog.beat()
      saver.check()
      is_stopping, is_end = stop.is_due(), step == config.num_steps
      is_saved = step % config.save_every == 0 or is_end or is_stopping
      is_shown = step % config.media_every == 0 or is_end
      # A run that must stop has little time and only saves, except at the last step: a resumed run
      # would not evaluate that one.
      is_evaluated = evaluator.is_due(step) and (is_end or not is_stopping)
      if is_saved or is_shown or is_evaluated:
        # Else the rest of the step would be counted as part of the following work.
        jax.block_until_ready(metrics)
        averages = None
        if is_evaluated:
          with goodput.measure("evaluation"), watchdog.rest("the evaluation"):
            averages = evaluator(state, frozen)
        reporter.report(*pending, averages)
        pending = None
      if is_saved:
        is_last = is_stopping or is_end
        with goodput.measure("checkpoints"), watchdog.rest("the save", save_s):
          saver.save(step, state, iterator, is_last)
      # After the save, so that a failure here does not lose steps.
      if is_shown:
        with goodput.measure("samples"), watchdog.rest("sampling"):
          _show(trainer, run_log, step, state, frozen, media_batch)
      if is_stopping:
        what = f"{stop.signal.name}: stopped at step {step} of {config.num_steps}"
        raise Preempted(what, stop.signal)
  log.info("waited for data %.1f%% of the time", 100 * input_stall.share)
  return state


def _show(trainer, run_log, step: int, state, frozen, media_batch: dict) -> None:
  """Logs media; if that fails, as for lack of memory, training continues without them."""
  try:
    params, shown = train_state.evaluation_params(state), shard_padded(media_batch, trainer.mesh)
    media = trainer.run(trainer.media, params, frozen, shown)
    run_log.videos(step, jax.device_get(media))
  except Exception:
    log.exception("STEP %d HAS NO SAMPLES in the log; the run continues", step)


@contextlib.contextmanager
def _step_context(step: int) -> Iterator[None]:
  """Names a step in profiles, and disallows implicit transfers in it."""
  with (
    jax.profiler.StepTraceAnnotation("train", step_num=step),
    jax.transfer_guard("disallow"),
  ):
    yield


def _take(
  iterator: Iterator, input_stall: InputStallMeter, goodput: GoodputTracker
) -> tuple[dict, dict]:
  """Returns the next batch, and separately its `SAMPLE_FIELDS`."""
  with input_stall:
    batch = next(iterator)
  goodput.count("data", input_stall.last)
  samples = {name: batch.pop(name) for name in SAMPLE_FIELDS if name in batch}
  return batch, samples
