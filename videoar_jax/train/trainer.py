"""A task on a mesh: the jitted train step, and its sharded state."""

import functools

import jax
import jax.numpy as jnp
import optax
from clu.metrics import Average

from videoar_jax.parallel import processes
from videoar_jax.parallel.compiler import compiler_options
from videoar_jax.parallel.rules import AnyMesh, platform_of, replicated
from videoar_jax.train import anomaly
from videoar_jax.train import state as train_state
from videoar_jax.train.adversary import AdversaryTrainer
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.optimizer import learning_rate_schedule, make_optimizer
from videoar_jax.train.task import SelectiveTask, Task

NUM_SHOWN = 8  # Clips of the media, on every mesh.


class Trainer:
  """The jitted step of a task on a mesh, and the shardings of its state.

  Args:
    task: the task to train.
    config: settings of the loop.
    mesh: the mesh.
    seed: seed of the initialisation and of every step's randomness.
    before, after: steps of the stages before and after this one that share its optimizer state and
      learning-rate schedule.
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
    is_decayed = None
    self.is_trained: dict | None = None  # Of each parameter; None for all.
    if isinstance(task, SelectiveTask):
      is_decayed, self.is_trained = (
        train_state.by_name(select, self.template.shapes)
        for select in (task.is_decayed, task.is_trained)
      )
    self.optimizer = make_optimizer(
      config.optimizer,
      num_steps,
      self.template.axes,
      is_decayed=is_decayed,
      is_trained=self.is_trained,
    )
    self.adversary = AdversaryTrainer(task.adversary, num_steps)
    abstract = jax.eval_shape(self._init, self.key)
    self.templates = {"": self.template}
    if task.adversary is not None:
      self.templates["discriminator"] = self.adversary.template
    self.shardings = train_state.state_shardings(abstract, self.templates, mesh)
    self.abstract_state = train_state.with_shardings(abstract, self.shardings)
    # `keep_unused`: the step of a generator does not use the tokenizer's decoder, but the decoder
    # stays in memory for samples. As an argument, it counts in the planned memory of the step.
    jit = functools.partial(jax.jit, compiler_options=compiler_options(platform_of(mesh)))
    self.step = jit(
      self._step, donate_argnums=0, out_shardings=(self.shardings, None), keep_unused=True
    )
    # Replicated, since process 0 writes the media to the log.
    self.media = jit(self._media, out_shardings=replicated(mesh))
    self.evaluate = jit(self._evaluate, out_shardings=replicated(mesh))
    # Replicates the key once; else each step would have to copy it from one device.
    self.place_key = jax.jit(lambda key: key, out_shardings=replicated(mesh))
    self.learning_rate = learning_rate_schedule(config.optimizer, num_steps)
    self._compiled: set[tuple] = set()  # Programs and the shapes of their batches.

  def _init(self, key) -> train_state.State:
    params = train_state.init_params(self.task.init, jax.random.fold_in(key, 0))
    return self._begin(params, {}, key)

  def _begin(self, params: dict, discriminator: dict, key) -> train_state.State:
    state = train_state.make_state(params, self.optimizer, self.config.ema_decay > 0)
    discriminator = self.adversary.init(jax.random.fold_in(key, 2)) | discriminator
    # Always with the anomaly state, so that `on_nan` and `spike` may change when a run resumes.
    return state | {"discriminator": discriminator, "anomaly": anomaly.init()}

  def init(
    self, params: dict | None = None, discriminator: dict | None = None
  ) -> train_state.State:
    """Returns the state before the first step, initialized directly in its sharding.

    Args:
      params: parameters to start from; None for random ones, as for those that are not there.
      discriminator: parts of the discriminator's state to start from, with `params`.
    """
    with jax.set_mesh(self.mesh):
      if params is None:
        return jax.jit(self._init, out_shardings=self.shardings)(self.key)
      if len(jax.tree.leaves(params)) < len(jax.tree.leaves(self.template.shapes)):
        params = self._completed(params)
      begin = jax.jit(self._begin, out_shardings=self.shardings)
      return begin(params, discriminator or {}, self.key)

  def _completed(self, params: dict) -> dict:
    """Returns all parameters, random ones for those that are not there."""

    def make(key):
      made = train_state.init_params(self.task.init, jax.random.fold_in(key, 0))
      return {name: x for name, x in train_state.flatten(made).items() if name not in given}

    given = train_state.flatten(params)
    shardings = train_state.flatten(self.shardings["params"])
    split = {name: x for name, x in shardings.items() if name not in given}
    random = jax.jit(make, out_shardings=split)(self.key)
    return train_state.unflatten({name: (given | random)[name] for name in shardings})

  def begin_again(self, state: train_state.State) -> train_state.State:
    """Returns the state before the first step, continuing another stage's last state."""

    def begin(state):
      return state | {"step": jnp.zeros((), jnp.int32), "anomaly": anomaly.init()}

    return jax.jit(begin, donate_argnums=0, out_shardings=self.shardings)(state)

  def _gradients(self, state, frozen, batch, key):
    """Returns the gradients of both networks, metrics, and the new LeCAM averages."""
    num_steps = self.before + state["step"]

    def loss(params, discriminator_params, lecam_ema, batch, key):
      params = self._where_trained(lambda p: p, jax.lax.stop_gradient, params)
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

    # Interleaved, so that every microbatch has rows of every device.
    def split(x):
      return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    start = jax.tree.map(jnp.zeros_like, params), lecam_ema
    batches = jax.tree.map(split, batch), jnp.arange(parts)
    (total, lecam_ema), metrics = jax.lax.scan(add, start, batches)
    gradients = jax.tree.map(lambda x: x / parts, total)
    return gradients, (jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics), lecam_ema)

  def _where_trained(self, trained, frozen, *trees):
    """Maps trees of parameters: those that are trained by one function, others by another."""
    if self.is_trained is None:
      return jax.tree.map(trained, *trees)
    return jax.tree.map(
      lambda is_own, *leaves: (trained if is_own else frozen)(*leaves), self.is_trained, *trees
    )

  def _average(self, ema: dict, params: dict, num_steps) -> dict:
    """Returns the average of the parameters after a step."""
    config = self.config
    if config.ema_decay == 0:
      return ema

    def update(ema):
      # Warm-up: early averages forget the random initialisation faster.
      num_updates = num_steps // config.ema_every
      decay = jnp.minimum(config.ema_decay, (1.0 + num_updates) / (10.0 + num_updates))
      average = lambda a, p: a * decay + p * (1 - decay)  # noqa: E731
      return self._where_trained(average, lambda a, p: p, ema, params)

    if config.ema_every == 1:
      return update(ema)
    return jax.lax.cond((num_steps + 1) % config.ema_every == 0, update, lambda ema: ema, ema)

  def _step(self, state, frozen, batch, key):
    step_key = jax.random.fold_in(jax.random.fold_in(key, 1), state["step"])
    # Counts the steps of all stages that share the optimizer.
    num_steps = self.before + state["step"]
    (gradients, discriminator_gradients), (metrics, lecam_ema) = self._gradients(
      state, frozen, batch, step_key
    )
    discriminator, discriminator_metrics = self.adversary.update(
      state["discriminator"], discriminator_gradients, lecam_ema, num_steps
    )
    updates, opt_state = self.optimizer.update(gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    ema = self._average(state["ema"], params, num_steps)
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
    is_bad, bad_steps = anomaly.update(state["anomaly"], metrics, self.config.spike)
    if self.config.on_nan == "skip":
      kept = state | {"step": state["step"] + 1}
      new_state = jax.tree.map(lambda new, old: jnp.where(is_bad, old, new), new_state, kept)
    return new_state | {"anomaly": bad_steps}, metrics | {"num_bad": bad_steps["num_bad"]}

  def _media(self, params, frozen, batch):
    # A mesh of more batch shards repeats the clips.
    media = self.task.media(self.template.module(params), frozen, batch)
    return {name: clips[:NUM_SHOWN] for name, clips in media.items()}

  def _evaluate(self, params, frozen, batch, key) -> dict[str, Average]:
    """Returns the loss and metrics of a held-out batch, as `Average`s to merge with others."""
    module = self.template.module(params)
    loss, metrics = self.task.loss(module, frozen, batch, key, is_training=False)
    values = {"loss": loss, **metrics}
    return {name: Average.from_model_output(jnp.asarray(x)) for name, x in values.items()}

  def run(self, program, state, frozen, batch, *rest):
    """Runs a jitted program, after all processes have compiled it.

    Processes may differ in compile time, and on CPU a program's first collectives wait for only
    half a minute for the other processes to connect.
    """
    if jax.process_count() > 1:
      shapes = (program, *(x.shape for x in jax.tree.leaves(batch)))
      if shapes not in self._compiled:
        program.lower(state, frozen, batch, *rest).compile()
        # A day if steps have no time limit, since barriers must have one.
        timeout_s = max(self.config.step_timeout_s or 86_400, processes.BARRIER_TIMEOUT_S)
        processes.wait_for_all("a program is compiled", timeout_s)
        self._compiled.add(shapes)
    return program(state, frozen, batch, *rest)
