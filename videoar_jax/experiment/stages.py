"""Runs a config's stages in order, each from where it stopped."""

import contextlib
import dataclasses
import logging
import pathlib
from typing import Self

import jax
import numpy as np
from flax import nnx

from videoar_jax.data.sources.base import EncodedSource
from videoar_jax.data.sources.latents import Index, LatentsSource
from videoar_jax.experiment.inputs import Batches, media_batch
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.experiment.token_cache import Cache, check_fits, encode, encoder_fingerprint
from videoar_jax.interop import weights
from videoar_jax.models.videoar.guidance import guidance_table
from videoar_jax.models.videoar.network import Generator
from videoar_jax.models.videoar.task import GeneratorTask
from videoar_jax.nn.layers import count_parameters
from videoar_jax.parallel import processes
from videoar_jax.parallel.mesh import AnyMesh, make_mesh, place, replicated
from videoar_jax.runtime.watch import GoodputTracker
from videoar_jax.tokenizers.bsq.autoencoder import Autoencoder
from videoar_jax.tokenizers.bsq.files import flatten, read_params, read_saved, unflatten
from videoar_jax.tokenizers.bsq.inflation import check_inflatable, inflate
from videoar_jax.tokenizers.bsq.task import TokenizerTask, adversary_of, load_frozen
from videoar_jax.train.adversary import AdversaryTrainer
from videoar_jax.train.checkpoint import Checkpointer, Damaged
from videoar_jax.train.logging import NoLog, RunLog
from videoar_jax.train.loop import Trainer
from videoar_jax.train.state import State, Template, state_shardings, with_shardings
from videoar_jax.train.task import Task

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stages:
  """The stages of one run in one workdir, on one mesh; see `on_mesh_of` for a stage's own."""

  run: RunConfig
  workdir: pathlib.Path
  mesh: AnyMesh

  def on_mesh_of(self, stage: StageConfig) -> Self:
    """Returns the stages on the mesh of one of them, onto which it reads what others left.

    Raises:
      ValueError: there are no devices for that mesh; names the field.
    """
    if stage.mesh == self.run.mesh:
      return self
    try:
      return dataclasses.replace(self, mesh=make_mesh(stage.mesh))
    except ValueError as error:
      text = "what it does not set is as in config.mesh"
      raise ValueError(f"stage.{stage.name}.mesh: {error}; {text}") from None

  def checkpoints(self, stage: StageConfig) -> pathlib.Path:
    """Returns the folder of a stage's checkpoints."""
    return self.workdir / stage.name / "checkpoints"

  def latest_step(self, stage: StageConfig) -> int:
    """Returns the step of a stage's newest checkpoint; 0 where there is none."""
    if not self.checkpoints(stage).is_dir():
      return 0
    checkpointer = Checkpointer(self.checkpoints(stage), is_reader=True)
    step = checkpointer.latest_step or 0
    checkpointer.close()
    return step

  def is_finished(self, stage: StageConfig) -> bool:
    """Says whether a stage has its last step."""
    return self.latest_step(stage) >= stage.loop.num_steps

  def make_task(self, stage: StageConfig) -> Task:
    """Makes what a stage trains; a generator takes the last tokenizer before it, frozen."""
    run = self.run
    if stage.kind == "tokenizer":
      return TokenizerTask(run.tokenizer, run.schedule_of(stage.data.resolution), stage.loss)
    template, params = self._hand_over(self.stage_before(stage, "tokenizer"))
    return self.make_generator_task(stage, template, params)

  def make_generator_task(
    self, stage: StageConfig, tokenizer: Template, params: dict
  ) -> GeneratorTask:
    """Makes what a generator's stage trains, on a tokenizer with these parameters."""
    run = self.run
    layout = run.layout_of(stage.data)
    table = guidance_table(run.sampling.guidance, layout.num_frames, layout.num_scales)
    return GeneratorTask(
      run.generator,
      layout,
      stage.loss,
      tokenizer,
      params,
      run.text.encoder,
      dataclasses.asdict(run.sampling) | {"guidance": table},
      others=(*run.layouts_of(stage), run.widest_layout),
    )

  def stage_before(self, stage: StageConfig, kind: str) -> StageConfig | None:
    """Returns the nearest stage before this one that trains that kind of thing."""
    before = self.run.stages[: self.run.stages.index(stage)]
    return next((other for other in reversed(before) if other.kind == kind), None)

  def module_template(self, stage: StageConfig) -> Template:
    """Returns the structure of the module that a stage trains."""
    run = self.run
    if stage.kind == "tokenizer":
      return Template.of(lambda key: Autoencoder(nnx.Rngs(params=key), run.tokenizer))
    layout = run.widest_layout
    return Template.of(lambda key: Generator(nnx.Rngs(params=key), run.generator, layout))

  def load_params(
    self, stage: StageConfig, step: int | None = None, *, is_split: bool = False
  ) -> tuple[Template, dict]:
    """Returns a stage's structure and its (averaged, where kept) parameters.

    Args:
      stage: which.
      step: of the checkpoint; None for the newest.
      is_split: over the devices, as in training; else whole on every device.
    Raises:
      FileNotFoundError: the stage has no checkpoint.
    """
    template, part, abstract = self._part(stage, is_split)
    with self._reader(stage) as checkpointer:
      return template, checkpointer.restore_item(part, abstract, step)

  def _part(self, stage: StageConfig, is_split: bool) -> tuple[Template, str, dict]:
    """Returns a stage's structure, and the name and arrays of the parameters that it leaves."""
    template = self.module_template(stage)
    shardings = jax.tree.map(lambda _: replicated(self.mesh), template.shapes)
    if is_split:
      shardings = template.shardings(self.mesh)
    part = "ema" if stage.loop.ema_decay > 0 else "params"
    return template, part, with_shardings(template.shapes, shardings)

  def _reader(self, stage: StageConfig):
    """Opens a stage's checkpoints, to be closed at the end of a `with`.

    Raises:
      FileNotFoundError: it has none.
    """
    if not self.checkpoints(stage).is_dir():
      raise FileNotFoundError(
        f"no checkpoint in {self.checkpoints(stage)}; train stage {stage.name!r} first"
      )
    return contextlib.closing(Checkpointer(self.checkpoints(stage), is_reader=True))

  def _hand_over(self, stage: StageConfig, *, is_split: bool = False) -> tuple[Template, dict]:
    """Returns what `load_params` does, of a finished stage, to all processes of a run.

    Raises:
      Damaged: its last step cannot be read, and does not count any more.
    """
    template, part, abstract = self._part(stage, is_split)
    with self._reader(stage) as checkpointer:
      step, params = checkpointer.restore_newest_item(part, abstract)
    _check_last(stage, step)
    return template, params

  def export_params(self, stage: StageConfig, path: pathlib.Path) -> int:
    """Writes a stage's (averaged) parameters as safetensors; returns how many there are.

    Raises:
      FileNotFoundError: the stage has no checkpoint.
    """
    params = self.load_params(stage)[1]
    weights.save(path, {name: np.asarray(x) for name, x in flatten(params).items()})
    return count_parameters(params)

  def is_needed(self, cache: Cache) -> bool:
    """Says whether a cache is yet to be read by a stage, or made for other runs to read."""
    readers = [stage for stage in self.run.stages if stage.cache == cache]
    return not readers or not all(self.is_finished(stage) for stage in readers)

  def check_cache(self, cache: Cache, source) -> None:
    """Checks that a cache that was made before is of this config.

    Raises:
      ValueError: it is not; names the fields.
    """
    # The tokenizer is perhaps not trained yet.
    index = cache.index(self.run.tokenizer, "", source)
    check_fits(cache.folder(self.workdir), index, but=("fingerprint",))

  def encode(self, cache: Cache, source) -> None:
    """Encodes what is missing of a cache.

    Raises:
      ValueError: its folder holds something else.
    """
    template, params, index = self._encoder_of(cache, source)
    folder, batch_size = cache.folder(self.workdir), cache.config.batch_size
    log.info("stage %s: %d clips in %s", cache.name, index.num_clips, folder)
    # A clip whose caption no stage could read is replaced here, where the others are.
    source = EncodedSource(source, self.run.text.encoder.encode)
    encode(folder, index, source, template, params, self.mesh, batch_size)

  def _encoder_of(self, cache: Cache, source) -> tuple[Template, dict, Index]:
    """Returns the tokenizer that a cache encodes with, and what the cache is to hold."""
    names = [stage.name for stage in self.run.stages]
    before = self.run.stages[: names.index(cache.after) + 1]
    coder = next(stage for stage in reversed(before) if stage.kind == "tokenizer")
    template, params = self._hand_over(coder)
    fingerprint = encoder_fingerprint(params)
    return template, params, cache.index(self.run.tokenizer, fingerprint, source)

  def check_inflation(self) -> None:
    """Checks that the image tokenizers that stages are to start from are there and fit.

    Raises:
      ValueError: one is not, or does not; names the field.
    """
    for stage in self.run.stages:
      if stage.inflate is not None and self.latest_step(stage) == 0:
        try:
          check_inflatable(read_saved(stage.inflate.path).config, self.run.tokenizer)
        except (ValueError, OSError) as error:
          field = f"stage.{stage.name}.inflate.path={stage.inflate.path}"
          raise ValueError(f"{field}: {error}") from error

  def check_starts(self) -> None:
    """Checks that the files of weights that stages are to start from are there and fit.

    Raises:
      ValueError: one is not, or does not; names the field.
    """
    for stage in self.run.stages:
      if stage.start is not None and self.latest_step(stage) == 0:
        try:
          weights.check_file(stage.start, self._shapes(stage))
        except ValueError as error:
          raise ValueError(f"stage.{stage.name}.start={stage.start}: {error}") from None

  def _shapes(self, stage: StageConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a stage's parameters, by the names that they have in files."""
    return {name: x.shape for name, x in flatten(self.module_template(stage).shapes).items()}

  def check_frozen(self) -> None:
    """Checks that the weights that losses need are there, before anything is trained.

    Raises:
      ValueError: they are not; names the field and the command that makes them.
    """
    for stage in self.run.stages:
      if stage.kind == "tokenizer" and not self.is_finished(stage):
        try:
          load_frozen(stage.loss)
        except ValueError as error:
          raise ValueError(f"stage.{stage.name}.{error}") from None

  def make_trainer(self, stage: StageConfig, seed: int) -> Trainer:
    """Returns what trains a stage."""
    chain = self.run.chain(stage)
    i = chain.index(stage)
    before, after = (
      sum(other.loop.num_steps for other in part) for part in (chain[:i], chain[i + 1 :])
    )
    task = self.make_task(stage)
    return Trainer(task, stage.loop, self.mesh, seed, before=before, after=after)

  def first_state(self, stage: StageConfig, trainer: Trainer, seed: int) -> State:
    """Returns the state that a stage starts from."""
    if stage.continues:
      before = self.stage_before(stage, stage.kind)
      with self._reader(before) as checkpointer:
        step, state, _ = checkpointer.restore_newest(trainer.abstract_state | {"anomaly": {}})
      _check_last(before, step)
      return trainer.begin_again(state)
    params = self._first_params(stage, seed)
    if params is not None:
      # Those of a file would be whole on every device.
      params = jax.tree.map(place, params, trainer.template.shardings(self.mesh))
    return trainer.init(params, self._first_adversary(stage))

  def _first_params(self, stage: StageConfig, seed: int) -> dict | None:
    """Returns the parameters that a stage starts from; None for random ones."""
    if stage.start is not None:
      try:
        return unflatten(weights.load(stage.start, self._shapes(stage)))
      except ValueError as error:
        raise ValueError(f"stage.{stage.name}.start={stage.start}: {error}") from error
    if stage.inflate is None:
      before = self.stage_before(stage, stage.kind)
      return None if before is None else self._hand_over(before, is_split=True)[1]
    saved, params = read_params(stage.inflate.path)
    key = jax.random.fold_in(jax.random.key(seed), 3)
    params, fresh = inflate(params, saved.config, self.run.tokenizer, stage.inflate.rest, key)
    log.info(
      "stage %s: starts from %s (%s), taps of earlier frames are %s",
      stage.name,
      stage.inflate.path,
      saved.source,
      stage.inflate.rest,
    )
    if fresh:
      bits = f"{self.run.tokenizer.num_bits} bits instead of {saved.config.num_bits}"
      log.info("stage %s: random, for %s: %s", stage.name, bits, ", ".join(fresh))
    return params

  def _first_adversary(self, stage: StageConfig) -> dict:
    """Returns the discriminator's parameters and averages that a stage starts from, if any.

    They are those of the stage that its tokenizer starts from, where that had the same one.
    """
    before = self.stage_before(stage, stage.kind)
    if stage.kind != "tokenizer" or stage.inflate is not None or before is None:
      return {}
    rivals = [adversary_of(other.loss) for other in (stage, before)]
    if rivals[0] is None:
      return {}
    adversarial = stage.loss.adversarial
    if rivals[1] is None or adversarial.discriminator != before.loss.adversarial.discriminator:
      log.info("stage %s: its discriminator starts at random", stage.name)
      return {}
    trainer = AdversaryTrainer(rivals[1], before.loop.num_steps)
    abstract = jax.eval_shape(trainer.init, jax.random.key(0))
    abstract, templates = {"discriminator": abstract}, {"": trainer.template}
    abstract = with_shardings(abstract, state_shardings(abstract, templates, self.mesh))[
      "discriminator"
    ]
    with self._reader(before) as checkpointer:
      step, discriminator = checkpointer.restore_newest_item("discriminator", abstract)
    _check_last(before, step)
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
      stage: which.
      train_sources: clips, of which a stage with a cache reads the latents from that, and single
        frames, where the stage has them; or the parts of its mixture.
      test_source: clips to show.
    Raises:
      Preempted: a signal came; the state is saved.
      Damaged: a stage that it starts from has to go on before it.
    """
    loop = stage.loop
    text_encoder = self.run.text.encoder
    seed = self.run.seed + 1000 * (1 + self.run.stages.index(stage))
    clock = GoodputTracker()
    trainer = self.make_trainer(stage, seed)
    log.info(
      "stage %s: %s parameters, %d steps of %d clips",
      stage.name,
      f"{count_parameters(trainer.template.shapes):,}",
      loop.num_steps,
      loop.batch_size,
    )
    if stage.cache is not None:
      _, _, index = self._encoder_of(stage.cache, train_sources[0])
      folder = stage.cache.folder(self.workdir)
      check_fits(folder, index)
      train_sources = [LatentsSource(folder, index)]
    batches = Batches(self.run, self.mesh)
    iterator = batches.iterator(stage, train_sources, seed)
    mixture = batches.mixture(stage, train_sources, seed)
    if mixture is not None:
      batches.tell_of(stage, mixture)
    checkpointer = Checkpointer(
      self.checkpoints(stage),
      max_to_keep=loop.max_to_keep,
      keep_period=loop.keep_period,
      timeout_s=loop.save_timeout_s,
    )
    # Processes may see late what others wrote.
    step = int(processes.broadcast(checkpointer.latest_step or 0))
    if not step:
      state = self.first_state(stage, trainer, seed)
    else:
      step, state, iterator_state = checkpointer.restore_newest(trainer.abstract_state)
      iterator.set_state(iterator_state)
      log.info("stage %s: goes on from step %d", stage.name, step)
    run_log = self._open_log(stage, step)
    try:
      media = media_batch(test_source, text_encoder, self.mesh)
      clock.count_rest("start")
      clock.lose(run_log.lost_s)
      trainer.train(state, iterator, checkpointer, run_log, media, clock)
    finally:
      run_log.close()
      iterator.close()


def _check_last(stage: StageConfig, step: int) -> None:
  """Raises Damaged unless a step that was read is a stage's last."""
  if step < stage.loop.num_steps:
    raise Damaged(f"stage {stage.name} goes on from step {step} of {stage.loop.num_steps}")
