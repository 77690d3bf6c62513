"""Runs a config's stages in order, each from where it stopped."""

import dataclasses
import logging
import pathlib

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from videoar_jax.data.pipeline import MixedIterator, make_iterator
from videoar_jax.data.text import TextEncoder
from videoar_jax.nn.layers import count_parameters
from videoar_jax.parallel.sharding import replicated
from videoar_jax.tokenizer.autoencoder import Autoencoder
from videoar_jax.tokenizer.files import read_params, read_saved
from videoar_jax.tokenizer.inflation import check_inflatable, inflate
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.config import RunConfig, StageConfig
from videoar_jax.train.generator import GeneratorTask
from videoar_jax.train.logs import RunLog
from videoar_jax.train.loop import Trainer
from videoar_jax.train.state import Template, with_shardings
from videoar_jax.train.task import Task
from videoar_jax.train.tokenizer import TokenizerTask, load_frozen
from videoar_jax.videoar.guidance import guidance_table
from videoar_jax.videoar.model import Generator

log = logging.getLogger(__name__)

NUM_MEDIA_CLIPS = 4  # Or a few more, where the mesh needs them.


@dataclasses.dataclass(frozen=True)
class Stages:
  """The stages of one run in one workdir, on one mesh."""

  run: RunConfig
  workdir: pathlib.Path
  mesh: Mesh

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
      return TokenizerTask(run.tokenizer, run.schedule, stage.loss)
    template, params = self.load_params(self.stage_before(stage, "tokenizer"))
    layout = run.layout_of(stage.data)
    table = guidance_table(run.sampling.guidance, layout.num_frames, layout.num_scales)
    return GeneratorTask(
      run.generator,
      layout,
      stage.loss,
      template,
      params,
      run.text.encoder,
      dataclasses.asdict(run.sampling) | {"guidance": table},
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
    layout = run.layout_of(stage.data)
    return Template.of(lambda key: Generator(nnx.Rngs(params=key), run.generator, layout))

  def load_params(self, stage: StageConfig, step: int | None = None) -> tuple[Template, dict]:
    """Returns a stage's structure and its (averaged, where kept) parameters, on every device.

    Raises:
      FileNotFoundError: the stage has no checkpoint.
    """
    template = self.module_template(stage)
    whole = jax.tree.map(lambda _: replicated(self.mesh), template.shapes)
    abstract = with_shardings(template.shapes, whole)
    if not self.checkpoints(stage).is_dir():
      raise FileNotFoundError(
        f"no checkpoint in {self.checkpoints(stage)}; train stage {stage.name!r} first"
      )
    checkpointer = Checkpointer(self.checkpoints(stage), is_reader=True)
    is_average = stage.loop.ema_decay > 0
    params = checkpointer.restore_params(abstract, is_average=is_average, step=step)
    checkpointer.close()
    return template, params

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

  def _first_params(self, stage: StageConfig, seed: int) -> dict | None:
    """Returns the parameters that a stage starts from; None for random ones."""
    if stage.inflate is None:
      before = self.stage_before(stage, stage.kind)
      return None if before is None else self.load_params(before)[1]
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

  def _make_iterator(self, source, batch_size: int, seed: int):
    return make_iterator(
      source,
      batch_size=batch_size,
      seed=seed,
      tokenize=self.run.text.encoder.encode,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def train(self, stage: StageConfig, train_source, image_source, test_source) -> None:
    """Trains one stage to its end, from its newest checkpoint.

    Args:
      stage: which.
      train_source: clips.
      image_source: single frames; None where the stage has none.
      test_source: clips to show.
    Raises:
      Interrupted: a signal came; the state is saved.
    """
    loop = stage.loop
    text_encoder = self.run.text.encoder
    seed = self.run.seed + 1000 * (1 + self.run.stages.index(stage))
    trainer = Trainer(self.make_task(stage), loop, self.mesh, seed)
    log.info(
      "stage %s: %s parameters, %d steps of %d clips",
      stage.name,
      f"{count_parameters(trainer.template.shapes):,}",
      loop.num_steps,
      loop.batch_size,
    )
    iterator = self._make_iterator(train_source, loop.batch_size, seed)
    if stage.images.share > 0:
      images = self._make_iterator(image_source, stage.images.batch_size, seed)
      share = stage.images.share
      iterator = MixedIterator([iterator, images], (1.0 - share, share))
    checkpointer = Checkpointer(self.checkpoints(stage))
    step = checkpointer.latest_step
    if step is None:
      if trainer.rival.rival is not None and self.stage_before(stage, stage.kind) is not None:
        log.info("stage %s: its discriminator starts at random", stage.name)
      state = trainer.init(self._first_params(stage, seed))
    else:
      state, iterator_state = checkpointer.restore(trainer.abstract_state)
      iterator.set_state(iterator_state)
      log.info("stage %s: goes on from step %d", stage.name, step)
    run_log = RunLog(
      self.workdir / stage.name,
      first_step=step or 0,
      num_steps=loop.num_steps,
      name=stage.name,
      frame_rate=self.run.data.frame_rate,
    )
    try:
      media = media_batch(test_source, text_encoder, self.mesh)
      trainer.train(state, iterator, checkpointer, run_log, media)
    finally:
      run_log.close()
      iterator.close()


def media_batch(source, text_encoder: TextEncoder, mesh: Mesh) -> dict[str, np.ndarray]:
  """Returns the first clips of a source, to look at during training."""
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  num = -(-NUM_MEDIA_CLIPS // ways) * ways
  items = [source[i % len(source)] for i in range(num)]
  return {
    "video": np.stack([item["video"] for item in items]),
    "text": np.stack([text_encoder.encode(item["caption"]) for item in items]),
  }
