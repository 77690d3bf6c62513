"""The loop: batches in, a trained state out; stops and goes on at any step.

The key of a step is a function of the seed and the step, the order of batches is in the iterator's
state, and both are saved with the parameters: a run that was interrupted ends with the same
numbers, bit for bit.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax

from videoar_jax.parallel import processes
from videoar_jax.parallel.mesh import AnyMesh, replicated, shard_batch
from videoar_jax.runtime.input_stall import InputStallMeter
from videoar_jax.runtime.preemption import Preempted, handle_preemption
from videoar_jax.runtime.watch import GoodputTracker, Profiler, Watchdog, report_at_exit
from videoar_jax.train import anomaly
from videoar_jax.train import state as train_state
from videoar_jax.train.adversary import AdversaryTrainer
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.logging import RunLog
from videoar_jax.train.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from videoar_jax.train.task import Task

log = logging.getLogger(__name__)

# What a batch says of its samples for people, and not for the model.
SAMPLE_FIELDS = ("id", "bucket")

# Fields of `LoopConfig` that may change while a stage goes on: steps that go well stay the same.
FREE_FIELDS = (
  "save_every",
  "max_to_keep",
  "keep_period",
  "save_timeout_s",
  "step_timeout_s",
  "profile_steps",
  "log_every",
  "media_every",
  "on_nan",
  "spike",
)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How long and how a stage trains.

  Attributes:
    num_steps: steps in all.
    batch_size: clips a step, over all devices.
    grad_accum_steps: parts in which a batch goes through, one after the other, their gradients
      added up: less memory for the same step. What a loss says of a batch as a whole, as the
      entropy of its bits, it says of each part.
    optimizer: see `OptimizerConfig`.
    ema_decay: of the averaged parameters; 0 keeps none.
    save_every: steps between checkpoints.
    max_to_keep: newest checkpoints that are kept.
    keep_period: steps between checkpoints that are kept for good; 0 for none.
    save_timeout_s: seconds that a save may take, and a run that is told to stop.
    step_timeout_s: seconds after which a step that does not end ends the process, with status 134;
      0 for none. Not before ten times the usual, nor in the first few steps, which compile. It
      bounds what comes between steps, too, of which samples compile.
    profile_steps: first and last step to profile; empty for none. SIGUSR1 profiles the next few.
    log_every: steps between lines of the log.
    media_every: steps between videos in TensorBoard.
    on_nan: "stop" ends the run where a loss or gradient is not finite; "skip" leaves all but the
      number of the step as it was, and goes on, but not past too many in a row.
    spike: how many times its running average a loss may be; more is handled as `on_nan` says.
      None for any.
  """

  num_steps: int
  batch_size: int
  optimizer: OptimizerConfig
  grad_accum_steps: int = 1
  ema_decay: float = 0.0
  save_every: int = 100
  max_to_keep: int = 2
  keep_period: int = 0
  save_timeout_s: int = 600
  step_timeout_s: int = 3600
  profile_steps: tuple[int, ...] = ()
  log_every: int = 10
  media_every: int = 100
  on_nan: str = "stop"
  spike: float | None = None

  def __post_init__(self):
    counts = ("num_steps", "batch_size", "save_every", "log_every", "media_every", "max_to_keep")
    for name in (*counts, "save_timeout_s", "grad_accum_steps"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    if self.step_timeout_s < 0:
      raise ValueError(f"step_timeout_s={self.step_timeout_s} must not be negative")
    if self.batch_size % self.grad_accum_steps:
      raise ValueError(
        f"batch_size={self.batch_size} must be a multiple of grad_accum_steps="
        f"{self.grad_accum_steps}"
      )
    if self.keep_period < 0 or self.keep_period % self.save_every:
      raise ValueError(
        f"keep_period={self.keep_period} must be a multiple of save_every={self.save_every}, or 0"
      )
    steps = self.profile_steps
    if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
      raise ValueError(f"profile_steps={steps} must be (first, last), counted from 1, or empty")
    if self.on_nan not in ("stop", "skip"):
      raise ValueError(f"on_nan={self.on_nan!r} must be 'stop' or 'skip'")
    if self.spike is not None and not self.spike > 1:
      raise ValueError(f"spike={self.spike} must be more than 1, or None")
    if not 0 <= self.ema_decay < 1:
      raise ValueError(f"ema_decay={self.ema_decay} must be in [0, 1)")


class Trainer:
  """A task on a mesh: its jitted step and where its state lives.

  Args:
    task: what to train.
    config: how.
    mesh: devices.
    seed: of the initialisation and of every step's draws.
    before, after: steps of the stages whose optimizer and schedule it goes on with, and of those
      that go on with its own.
  """

  def __init__(
    self,
    task: Task,
    config: LoopConfig,
    mesh: AnyMesh,
    seed: int,
    *,
    before: int = 0,
    after: int = 0,
  ):
    self.task, self.config, self.mesh, self.before = task, config, mesh, before
    num_steps = before + config.num_steps + after
    self.key = jax.random.key(seed)
    self.template = train_state.Template.of(task.init)
    self.optimizer = make_optimizer(config.optimizer, num_steps, self.template.axes)
    self.adversary = AdversaryTrainer(task.adversary, num_steps)
    abstract = jax.eval_shape(self._init, self.key)
    self.templates = {"": self.template}
    if task.adversary is not None:
      self.templates["discriminator"] = self.adversary.template
    self.shardings = train_state.state_shardings(abstract, self.templates, mesh)
    self.abstract_state = train_state.with_shardings(abstract, self.shardings)
    # A tokenizer's decoder is no part of a generator's step, but stays in memory for its samples:
    # kept as an argument, it is counted where the step is planned.
    self.step = jax.jit(
      self._step, donate_argnums=0, out_shardings=(self.shardings, None), keep_unused=True
    )
    # Whole everywhere: process 0 shows it.
    self.media = jax.jit(self._media, out_shardings=replicated(mesh))
    self.learning_rate = learning_rate_schedule(config.optimizer, num_steps)
    self._compiled: set[tuple] = set()  # Programs and the shapes of their batches.

  def _init(self, key) -> train_state.State:
    params = train_state.init_params(self.task.init, jax.random.fold_in(key, 0))
    return self._begin(params, {}, key)

  def _begin(self, params: dict, discriminator: dict, key) -> train_state.State:
    state = train_state.make_state(params, self.optimizer, self.config.ema_decay > 0)
    discriminator = self.adversary.init(jax.random.fold_in(key, 2)) | discriminator
    # Whatever the config does with bad steps, so that it may be set otherwise in the middle.
    return state | {"discriminator": discriminator, "anomaly": anomaly.init()}

  def init(
    self, params: dict | None = None, discriminator: dict | None = None
  ) -> train_state.State:
    """Returns the state before the first step, born sharded.

    Args:
      params: to start from; None for random ones.
      discriminator: parts of the discriminator's state to start from, beside `params`.
    """
    with jax.set_mesh(self.mesh):
      if params is None:
        return jax.jit(self._init, out_shardings=self.shardings)(self.key)
      begin = jax.jit(self._begin, out_shardings=self.shardings)
      return begin(params, discriminator or {}, self.key)

  def begin_again(self, state: train_state.State) -> train_state.State:
    """Returns the state before the first step that goes on from another stage's last one."""

    def begin(state):
      return state | {"step": jnp.zeros((), jnp.int32), "anomaly": anomaly.init()}

    return jax.jit(begin, donate_argnums=0, out_shardings=self.shardings)(state)

  def _gradients(self, state, frozen, batch, key):
    """Returns gradients by both networks, metrics, and what the discriminator hands on."""
    num_steps = self.before + state["step"]

    def loss(params, discriminator_params, lecam_ema, batch, key):
      module, discriminator = (
        self.template.module(params),
        self.adversary.module(discriminator_params),
      )
      if discriminator is None:
        value, metrics = self.task.loss(module, frozen, batch, key, is_training=True)
        return value, ({"loss": value, **metrics}, {})
      value, metrics, lecam_ema = self.task.adversarial_loss(
        module, discriminator, lecam_ema, frozen, batch, key, num_steps
      )
      return value, (metrics, lecam_ema)

    both = jax.grad(loss, argnums=(0, 1), has_aux=True)
    params = state["params"], state["discriminator"].get("params", {})
    lecam_ema, parts = state["discriminator"].get("lecam_ema", {}), self.config.grad_accum_steps
    if parts == 1:
      return both(*params, lecam_ema, batch, key)

    def add(carry, part):
      total, lecam_ema = carry
      rows, i = part
      gradients, (metrics, lecam_ema) = both(*params, lecam_ema, rows, jax.random.fold_in(key, i))
      return (jax.tree.map(jnp.add, total, gradients), lecam_ema), metrics

    # Every part has rows of every device.
    split = lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)  # noqa: E731
    start = jax.tree.map(jnp.zeros_like, params), lecam_ema
    batches = jax.tree.map(split, batch), jnp.arange(parts)
    (total, lecam_ema), metrics = jax.lax.scan(add, start, batches)
    gradients = jax.tree.map(lambda x: x / parts, total)
    return gradients, (jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics), lecam_ema)

  def _step(self, state, frozen, batch, key):
    step_key = jax.random.fold_in(jax.random.fold_in(key, 1), state["step"])
    # Of all stages that share the optimizer.
    num_steps = self.before + state["step"]
    (gradients, discriminator_gradients), (metrics, lecam_ema) = self._gradients(
      state, frozen, batch, step_key
    )
    discriminator, discriminator_metrics = self.adversary.update(
      state["discriminator"], discriminator_gradients, lecam_ema, num_steps
    )
    updates, opt_state = self.optimizer.update(gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    ema = state["ema"]
    if self.config.ema_decay > 0:
      # Early averages forget the random start faster than the decay alone would let them.
      warm = (1.0 + num_steps) / (10.0 + num_steps)
      decay = jnp.minimum(self.config.ema_decay, warm)
      ema = jax.tree.map(lambda a, p: a * decay + p * (1 - decay), ema, params)
    metrics = {
      **metrics,
      **discriminator_metrics,
      "gradient_norm": optax.global_norm(gradients),
      "parameter_norm": optax.global_norm(params),
      "learning_rate": self.learning_rate(num_steps),
    }
    new_state = {
      "params": params,
      "opt_state": opt_state,
      "ema": ema,
      "step": state["step"] + 1,
      "discriminator": discriminator,
      "anomaly": state["anomaly"],
    }
    is_bad, guard = anomaly.update(state["anomaly"], metrics, self.config.spike)
    if self.config.on_nan == "skip":
      kept = state | {"step": state["step"] + 1}
      new_state = jax.tree.map(lambda new, old: jnp.where(is_bad, old, new), new_state, kept)
    return new_state | {"anomaly": guard}, metrics | {"num_bad": guard["num_bad"]}

  def _media(self, params, frozen, batch):
    return self.task.media(self.template.module(params), frozen, batch)

  def train(
    self,
    state: train_state.State,
    iterator: Iterator,
    checkpointer: Checkpointer,
    run_log: RunLog,
    media_batch: dict,
    clock: GoodputTracker | None = None,
  ) -> train_state.State:
    """Trains from the state's step to the last one, and saves.

    Args:
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
    config, first = self.config, int(state["step"])
    frozen, save, folder = self.task.frozen, self._save, checkpointer.directory.parent
    # The last step, whose metrics are still being computed: (step, metrics, its batch's samples).
    waiting: tuple[int, dict, dict] | None = None
    waits = InputStallMeter()
    # To wait for the save before, to begin the next one, and to wait for the last one.
    save_s = 3 * config.save_timeout_s
    with (
      handle_preemption(config.save_timeout_s) as stop,
      contextlib.closing(checkpointer),
      jax.set_mesh(self.mesh),
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
        batch = shard_batch(batch, self.mesh)
        state, metrics = self._run(self.step, state, frozen, batch, self.key)
        waits.follow(metrics)
        if waiting is not None:
          self._report(run_log, folder, *waiting, first, started)
        waiting = (step, metrics, samples)
        if step % config.log_every == 0:
          waits.warn(step)
        profiler.after(step, metrics)
        watchdog.beat()
        self._check_saves(checkpointer.check)
        is_stopping = stop.is_due()
        if step % config.save_every == 0 or step == config.num_steps or is_stopping:
          self._report(run_log, folder, *waiting, first, started)
          waiting = None
          is_last = is_stopping or step == config.num_steps
          with clock.measure("checkpoints"), watchdog.rest("the save", save_s):
            save(checkpointer, run_log, step, state, iterator, is_last)
            if is_last:
              checkpointer.wait()
        # After the save, so that nothing that goes wrong here costs a step.
        if step % config.media_every == 0 or step == config.num_steps:
          params = train_state.evaluation_params(state)
          with clock.measure("samples"), watchdog.rest("the making of samples"):
            media = self._run(self.media, params, frozen, media_batch)
            run_log.videos(step, jax.device_get(media))
        if is_stopping:
          what = f"{stop.signal.name}: stopped at step {step} of {config.num_steps}"
          raise Preempted(what, stop.signal)
    log.info("waited for data %.1f%% of the time", 100 * waits.share)
    return state

  def _run(self, program, state, frozen, batch, *rest):
    """Runs a program; of several processes, none before all have compiled it.

    Some take longer to compile than others, and the connections that a program opens when it first
    needs them wait for half a minute on CPU.
    """
    if jax.process_count() > 1:
      shapes = (program, *(x.shape for x in jax.tree.leaves(batch)))
      if shapes not in self._compiled:
        program.lower(state, frozen, batch, *rest).compile()
        # Without a limit of steps, a day: the service knows no barrier without one.
        timeout_s = max(self.config.step_timeout_s or 86_400, processes.BARRIER_TIMEOUT_S)
        processes.wait_for_all("a program is compiled", timeout_s)
        self._compiled.add(shapes)
    return program(state, frozen, batch, *rest)

  @staticmethod
  def _check_saves(check: Callable[[], None]) -> None:
    """Tells of a save that failed; the run goes on, and tries again at the next one."""
    try:
      check()
    except TimeoutError:
      raise
    except Exception as error:
      log.error("A SAVE FAILED: %s. The run goes on and tries again at the next one", error)

  @staticmethod
  def _save(checkpointer, run_log, step, state, iterator, is_last):
    # The log is on disk before the checkpoint that makes it count.
    run_log.flush()
    # If the save before it failed, this one has to be tried all the same.
    Trainer._check_saves(checkpointer.wait)
    try:
      checkpointer.save(step, state, iterator.get_state())
    except TimeoutError:
      raise
    except Exception as error:
      if is_last:
        raise
      log.error("STEP %d WAS NOT SAVED: %s. The run goes on and tries again", step, error)

  def _report(
    self,
    run_log: RunLog,
    folder: pathlib.Path,
    step: int,
    metrics: dict,
    samples: dict,
    first: int,
    started: float,
  ):
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    self._check(folder, step, values, samples)
    values["steps_per_s"] = (step - first) / (time.perf_counter() - started)
    values |= self.task.rates(values["steps_per_s"] * self.config.batch_size)
    run_log.scalars(step, values, is_line=step % self.config.log_every == 0)

  def _check(
    self, folder: pathlib.Path, step: int, values: dict[str, float], samples: dict
  ) -> None:
    """Writes down what a bad step was made of, and stops the run where that is configured."""
    num_bad = round(values.pop("num_bad"))
    if not num_bad:
      return
    name = anomaly.reason(values)
    path = anomaly.write_bad_step(folder, step, name, values[name], samples)
    what = f"{name} of step {step} is {values[name]}; {path} has the ids of its samples"
    if self.config.on_nan == "stop":
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
