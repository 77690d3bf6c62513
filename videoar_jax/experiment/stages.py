"""Trains the stages of a config; each resumes from its newest checkpoint."""

import logging
import pathlib

import jax

from videoar_jax.data.sources.base import EncodedSource
from videoar_jax.data.sources.latents import Index, LatentsSource
from videoar_jax.experiment import model_folder
from videoar_jax.experiment.captions import source_encoder, stage_encoder
from videoar_jax.experiment.checkpoints import (
  StageCheckpoints,
  check_last,
  init_path,
  params_without_zero_taps,
)
from videoar_jax.experiment.inputs import Batches, media_batch
from videoar_jax.experiment.schema import StageConfig
from videoar_jax.experiment.token_cache import Cache, check_fits, encode, encoder_fingerprint
from videoar_jax.nn.layers import count_parameters
from videoar_jax.parallel import processes
from videoar_jax.parallel.rules import place
from videoar_jax.runtime.goodput import GoodputTracker
from videoar_jax.train import loop as training_loop
from videoar_jax.train.adversary import AdversaryTrainer
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.logging import NoLog, RunLog
from videoar_jax.train.overview import count_by_module, parameter_table
from videoar_jax.train.state import (
  State,
  Template,
  flatten,
  state_shardings,
  unflatten,
  with_shardings,
)
from videoar_jax.train.task import Task
from videoar_jax.train.trainer import Trainer

log = logging.getLogger(__name__)


class Stages(StageCheckpoints):
  """The stages of one run, and their training."""

  def make_task(self, stage: StageConfig) -> Task:
    """Returns a stage's training task; a generator uses the last tokenizer before it, frozen."""
    run = self.run
    if stage.kind == "tokenizer":
      family, resolution = run.tokenizer_family, stage.data.resolution
      return family.make_task(run.tokenizer, stage.loss, resolution, None)
    template, params = self.tokenizer_for(stage)
    return run.family.make_task(run, stage, template, params)

  def encode(self, cache: Cache, source) -> None:
    """Encodes the missing shards of a cache.

    Raises:
      ValueError: its folder holds other latents.
    """
    template, params, index = self._encoder_of(cache, source)
    params = params_without_zero_taps(template, params)
    folder, batch_size = cache.folder(self.workdir), cache.config.batch_size
    log.info("stage %s: %d clips in %s", cache.name, index.num_clips, folder)
    # Clips whose captions cannot be encoded are replaced here, as other unusable samples are.
    source = EncodedSource(source, source_encoder(self.run, cache.data).encode)
    encode(
      folder, index, source, self.run.tokenizer_family, template, params, self.mesh, batch_size
    )

  def _encoder_of(self, cache: Cache, source) -> tuple[Template, dict, Index]:
    """Returns the tokenizer that encodes a cache, and the index of the finished cache."""
    if self.run.frozen_tokenizer is not None:
      template, params = self.frozen_tokenizer()
    else:
      names = [stage.name for stage in self.run.stages]
      before = self.run.stages[: names.index(cache.after) + 1]
      tokenizer_stage = next(stage for stage in reversed(before) if stage.kind == "tokenizer")
      template, params = self.trained_tokenizer(tokenizer_stage)
    fingerprint = encoder_fingerprint(params)
    run = self.run
    index = cache.index(run.tokenizer, fingerprint, source, run.tokenizer_dtype)
    return template, params, index

  def make_trainer(self, stage: StageConfig, seed: int) -> Trainer:
    """Returns a stage's trainer."""
    chain = self.run.chain(stage)
    i = chain.index(stage)
    before, after = (
      sum(other.loop.num_steps for other in part) for part in (chain[:i], chain[i + 1 :])
    )
    task = self.make_task(stage)
    return Trainer(task, stage.loop, self.mesh, seed, before=before, after=after)

  def first_state(self, stage: StageConfig, trainer: Trainer, seed: int) -> State:
    """Returns the initial state of a stage."""
    if stage.init.with_optimizer:
      before = self.stage_before(stage, stage.kind)
      with self.reader(before) as checkpointer:
        step, state, _ = checkpointer.restore_newest(trainer.abstract_state | {"anomaly": {}})
      check_last(before, step)
      return trainer.begin_again(state)
    params = self._first_params(stage, seed)
    if params is not None:
      # Those of an image tokenizer are replicated.
      shardings = flatten(trainer.template.shardings(self.mesh))
      placed = {name: place(x, shardings[name]) for name, x in flatten(params).items()}
      params = unflatten(placed)
    return trainer.init(params, self._first_adversary(stage))

  def _first_params(self, stage: StageConfig, seed: int) -> dict | None:
    """Returns the initial parameters of a stage; None for random ones.

    A file may lack some, if `init.missing` says so.
    """
    path = init_path(stage)
    if path is None:
      before = self.stage_before(stage, stage.kind)
      return None if before is None else self.hand_over(before, is_split=True)[1]
    if not self.is_inflated(stage):
      template, may_lack = self.module_template(stage), stage.init.missing == "random"
      abstract = with_shardings(template.shapes, template.shardings(self.mesh))
      try:
        found = model_folder.load_initial(path, abstract, may_lack=may_lack)
      except ValueError as error:
        raise ValueError(f"stage.{stage.name}.init.from={path}: {error}") from error
      missing = ", ".join(name for name in flatten(abstract) if name not in found)
      if missing:
        log.info("stage %s: not in %s, so random: %s", stage.name, path, missing)
      return unflatten(found)
    key = jax.random.fold_in(jax.random.key(seed), 3)
    family, folder = self.run.tokenizer_family, pathlib.Path(path)
    params, lines = family.load_init(folder, self.run.tokenizer, stage.init.temporal, key)
    for line in lines:
      log.info("stage %s: %s", stage.name, line)
    return params

  def _first_adversary(self, stage: StageConfig) -> dict:
    """Returns the initial parameters and averages of a stage's discriminator, if any.

    They come from the stage that its tokenizer starts from, if its discriminator has the same
    network.
    """
    before = self.stage_before(stage, stage.kind)
    if stage.kind != "tokenizer" or self.is_inflated(stage) or before is None:
      return {}
    own, other = (self.run.tokenizer_family.make_adversary(each.loss) for each in (stage, before))
    if own is None:
      return {}
    if other is None or own.network != other.network:
      log.info("stage %s: its discriminator starts from scratch", stage.name)
      return {}
    trainer = AdversaryTrainer(other, before.loop.num_steps)
    abstract = jax.eval_shape(trainer.init, jax.random.key(0))
    abstract, templates = {"discriminator": abstract}, {"": trainer.template}
    abstract = with_shardings(abstract, state_shardings(abstract, templates, self.mesh))[
      "discriminator"
    ]
    with self.reader(before) as checkpointer:
      step, discriminator = checkpointer.restore_newest_item("discriminator", abstract)
    check_last(before, step)
    return {name: discriminator[name] for name in ("params", "lecam_ema")}

  def _open_log(self, stage: StageConfig, first_step: int) -> RunLog | NoLog:
    if not processes.is_first():
      return NoLog()
    return RunLog(
      self.workdir / stage.name,
      first_step=first_step,
      num_steps=stage.loop.num_steps,
      name=stage.name,
      frame_rate=stage.data.frame_rate,
    )

  def train(self, stage: StageConfig, train_sources: list, test_source) -> None:
    """Trains one stage to its end, from its newest checkpoint.

    Args:
      stage: the stage.
      train_sources: one for each of `stage.source_data`; a stage with a cache reads its latents
        instead.
      test_source: clips to evaluate on and to show.
    Raises:
      Preempted: a signal came; the state is saved.
      Damaged: a stage that it starts from has to resume first.
    """
    loop = stage.loop
    seed = self.run.seed + 1000 * (1 + self.run.stages.index(stage))
    clock = GoodputTracker()
    trainer = self.make_trainer(stage, seed)
    params = trainer.abstract_state["params"]
    parts = ", ".join(f"{name} {count:,}" for name, count in count_by_module(params).items())
    log.info(
      "stage %s: %s parameters (%s), %d steps of %d clips",
      *(stage.name, f"{count_parameters(params):,}", parts, loop.num_steps, loop.batch_size),
    )
    log.info("%s", parameter_table(params), extra={"is_for_file": True})
    if stage.cache is not None:
      _, _, index = self._encoder_of(stage.cache, train_sources[0])
      folder = stage.cache.folder(self.workdir)
      check_fits(folder, index, self.run.tokenizer_family.network)
      train_sources = [LatentsSource(folder, index)]
    batches = Batches(self.run, self.mesh)
    mixture = batches.mixture(stage, train_sources, seed)
    if mixture is not None:
      batches.log_mixture(stage, mixture)
    iterator = batches.iterator(stage, train_sources, seed, mixture)
    checkpointer = Checkpointer(
      self.checkpoints(stage),
      max_to_keep=loop.max_to_keep,
      keep_period=loop.keep_period,
      timeout_s=loop.save_timeout_s,
    )
    # Other processes may see new files late.
    step = int(processes.broadcast(checkpointer.latest_step or 0))
    if not step:
      state = self.first_state(stage, trainer, seed)
    else:
      step, state, iterator_state = checkpointer.restore_newest(trainer.abstract_state)
      iterator.set_state(iterator_state)
      log.info("stage %s: resumes from step %d", stage.name, step)
    run_log = self._open_log(stage, step)
    try:
      media = media_batch(stage.data, test_source, stage_encoder(self.run, stage, stage.data))
      held_out = batches.held_out(stage, test_source)
      clock.count_rest("start")
      clock.lose(run_log.lost_s)
      training_loop.train(trainer, state, iterator, checkpointer, run_log, media, clock, held_out)
    finally:
      run_log.close()
      iterator.close()
