"""The checkpoints of a run's stages: where they are, and loading parameters from them."""

import contextlib
import dataclasses
import logging
import pathlib
from typing import Self

import jax
import numpy as np
from flax import nnx

from videoar_jax.experiment import final_weights, model_folder
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.experiment.token_cache import Cache
from videoar_jax.interop import hub, weights
from videoar_jax.nn.conv import without_zero_taps
from videoar_jax.nn.layers import count_parameters, merge_adapters
from videoar_jax.parallel.mesh import make_mesh
from videoar_jax.parallel.rules import AnyMesh, place, replicated
from videoar_jax.tokenizers.files import read_params
from videoar_jax.train.state import Template, flatten, with_shardings

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StageCheckpoints:
  """The checkpoints of one run's stages in one workdir, on one mesh; see `on_mesh_of`."""

  run: RunConfig
  workdir: pathlib.Path
  mesh: AnyMesh

  def on_mesh_of(self, stage: StageConfig) -> Self:
    """Returns the same on the mesh of a stage, onto which it loads the others' parameters.

    Raises:
      ValueError: the devices do not fit that mesh; names the field.
    """
    if stage.mesh == self.run.mesh:
      return self
    try:
      return dataclasses.replace(self, mesh=make_mesh(stage.mesh))
    except ValueError as error:
      text = "fields that it does not set come from config.mesh"
      raise ValueError(f"stage.{stage.name}.mesh: {error}; {text}") from None

  def checkpoints(self, stage: StageConfig) -> pathlib.Path:
    """Returns the folder of a stage's checkpoints."""
    return self.workdir / stage.name / "checkpoints"

  def latest_step(self, stage: StageConfig) -> int:
    """Returns the step of a stage's newest checkpoint; 0 if there is none."""
    if model_folder.is_model(self.workdir):
      return stage.loop.num_steps
    if not self.checkpoints(stage).is_dir():
      return 0
    # Complete checkpoints are renamed to their steps; asking Orbax would import it.
    names = [path.name for path in self.checkpoints(stage).iterdir() if path.is_dir()]
    return max((int(name) for name in names if name.isdecimal()), default=0)

  def is_finished(self, stage: StageConfig) -> bool:
    """Returns whether a stage has reached its last step."""
    return self.latest_step(stage) >= stage.loop.num_steps

  def is_needed(self, cache: Cache) -> bool:
    """Returns whether a stage still has to read a cache, or no stage of this run reads it."""
    readers = [stage for stage in self.run.stages if stage.cache == cache]
    return not readers or not all(self.is_finished(stage) for stage in readers)

  def stage_before(self, stage: StageConfig, kind: str) -> StageConfig | None:
    """Returns the nearest earlier stage of a kind; None without one."""
    before = self.run.stages[: self.run.stages.index(stage)]
    return next((other for other in reversed(before) if other.kind == kind), None)

  def module_template(self, stage: StageConfig) -> Template:
    """Returns the structure of the module that a stage trains."""
    if stage.kind == "tokenizer":
      return self.tokenizer_template()
    return Template.of(self.run.family.make_module(self.run))

  def tokenizer_template(self, *, is_trained: bool = True) -> Template:
    """Returns the structure of the tokenizer, as it trains or in its type where it does not."""
    template = Template.of(self.run.tokenizer_family.make_module(self.run.tokenizer))
    if is_trained:
      return template
    dtype = self.run.tokenizer_dtype
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), template.shapes)
    return dataclasses.replace(template, shapes=shapes)

  def tokenizer_for(self, stage: StageConfig) -> tuple[Template, dict]:
    """Returns structure and parameters, replicated, of the tokenizer that a generator stage uses.

    Temporal taps that are zero are left out.

    Raises:
      Damaged: as `hand_over`.
      ValueError: the files of a frozen tokenizer are damaged.
    """
    if self.run.frozen_tokenizer is None:
      template, params = self.trained_tokenizer(self.stage_before(stage, "tokenizer"))
    else:
      template, params = self.frozen_tokenizer()
    return template, params_without_zero_taps(template, params)

  def trained_tokenizer(self, stage: StageConfig) -> tuple[Template, dict]:
    """Returns what a finished stage hands over, in the type that codes clips; see `hand_over`."""
    template, params = self.hand_over(stage)
    return template, self.in_tokenizer_dtype(params)

  def in_tokenizer_dtype(self, params: dict) -> dict:
    """Returns a tokenizer's parameters in the type in which it codes clips."""
    return jax.tree.map(lambda x: x.astype(self.run.tokenizer_dtype), params)

  def frozen_tokenizer(self) -> tuple[Template, dict]:
    """Returns structure and parameters, replicated, of a tokenizer that no stage trains.

    Raises:
      ValueError: its files are damaged.
    """
    folder, template = self.run.frozen_tokenizer, self.tokenizer_template()
    try:
      _, params = read_params(folder, self.run.tokenizer_family)
    except (ValueError, OSError) as error:
      raise ValueError(f"frozen_tokenizer={folder}: {error}") from error
    params = jax.tree.map(lambda x: place(x, replicated(self.mesh)), params)
    return template, self.in_tokenizer_dtype(params)

  def load_params(
    self,
    stage: StageConfig,
    step: int | None = None,
    *,
    is_split: bool = False,
    dtype: np.dtype | None = None,
  ) -> tuple[Template, dict]:
    """Returns a stage's structure and its (averaged, where kept) parameters.

    Args:
      stage: the stage.
      step: of the checkpoint; None for the newest.
      is_split: whether to shard over devices, as in training; otherwise replicated.
      dtype: to read a model's folder in; None for the type of its file. Checkpoints have their own.
    Raises:
      FileNotFoundError: the stage has no checkpoint.
    """
    template, part, abstract = self._part(stage, is_split)
    if model_folder.is_model(self.workdir):
      return template, model_folder.load_params(self.workdir, abstract, dtype)
    if wanted := self.latest_step(stage) if step is None else step:
      origin = final_weights.origin_of(self.checkpoints(stage), wanted, part)
      if (params := final_weights.load(self.workdir, stage.name, origin, abstract)) is not None:
        return template, params
    with self.reader(stage) as checkpointer:
      return template, checkpointer.restore_item(part, abstract, step)

  def _part(self, stage: StageConfig, is_split: bool) -> tuple[Template, str, dict]:
    """Returns a stage's structure, and its parameters' checkpoint item and abstract arrays."""
    template = self.module_template(stage)
    shardings = jax.tree.map(lambda _: replicated(self.mesh), template.shapes)
    if is_split:
      shardings = template.shardings(self.mesh)
    part = "ema" if stage.loop.ema_decay > 0 else "params"
    return template, part, with_shardings(template.shapes, shardings)

  def reader(self, stage: StageConfig):
    """Returns a context manager that opens a stage's checkpoints for reading.

    Raises:
      FileNotFoundError: it has none.
    """
    if not self.checkpoints(stage).is_dir():
      raise FileNotFoundError(
        f"no checkpoint in {self.checkpoints(stage)}; train stage {stage.name!r} first"
      )
    # Imported late: Orbax takes half a second, and exported weights do not need it.
    from videoar_jax.train.checkpoint import Checkpointer

    return contextlib.closing(Checkpointer(self.checkpoints(stage), is_reader=True))

  def hand_over(self, stage: StageConfig, *, is_split: bool = False) -> tuple[Template, dict]:
    """Loads a finished stage's parameters, as `load_params`, in all processes of a run.

    Raises:
      Damaged: its last step cannot be read; the stage is no longer finished.
    """
    template, part, abstract = self._part(stage, is_split)
    with self.reader(stage) as checkpointer:
      step, params = checkpointer.restore_newest_item(part, abstract)
    check_last(stage, step)
    return template, params

  def write_final_weights(self) -> None:
    """Writes the weights of a finished run that `load_params` then reads; see `final_weights`.

    What fails is logged: the checkpoints have all of them.
    """
    last = self.run.stages[-1]
    tokenizer = self.stage_before(last, "tokenizer") if last.kind == "generator" else None
    wanted = [stage for stage in (last, tokenizer) if stage is not None]
    try:
      origins = {}
      for stage in wanted:
        _, part, _ = self._part(stage, False)
        step = self.latest_step(stage)
        origins[stage.name] = final_weights.origin_of(self.checkpoints(stage), step, part)
      if not final_weights.are_of(self.workdir, origins):
        params = {stage.name: self.load_params(stage, origins[stage.name].step) for stage in wanted}
        parts = {name: (origin, params[name][1]) for name, origin in origins.items()}
        final_weights.write(self.workdir, parts)
    except Exception as error:  # Of the disk, of memory, or any of the libraries' own types.
      log.warning("no %s is written: %s", self.workdir / final_weights.WEIGHTS, error)

  def export_params(
    self, stage: StageConfig, path: pathlib.Path, *, has_merged_adapters: bool = False
  ) -> int:
    """Writes a stage's (averaged) parameters as safetensors; returns their number.

    Args:
      stage: the stage.
      path: the file.
      has_merged_adapters: add adapters to the kernels that they belong to.
    Raises:
      FileNotFoundError: the stage has no checkpoint.
    """
    params = flatten(self.load_params(stage)[1])
    params = merge_adapters(params) if has_merged_adapters else params
    weights.save(path, {name: np.asarray(x) for name, x in params.items()})
    return count_parameters(params)

  def shapes(self, stage: StageConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a stage's parameters, by their names in files."""
    return {name: x.shape for name, x in flatten(self.module_template(stage).shapes).items()}

  @staticmethod
  def is_inflated(stage: StageConfig) -> bool:
    """Returns whether a stage starts from a converted image tokenizer, which is a folder."""
    path = init_path(stage)
    return path is not None and stage.kind == "tokenizer" and pathlib.Path(path).is_dir()


def init_path(stage: StageConfig) -> str | None:
  """Returns where the initial weights of a stage are, downloaded if they are on the hub.

  Raises:
    ValueError: they cannot be; names the field.
  """
  path = stage.init.from_
  return None if path is None else hub.local(path, f"stage.{stage.name}.init.from")


def check_last(stage: StageConfig, step: int) -> None:
  """Raises Damaged unless the step that could be read is the stage's last."""
  from videoar_jax.train.checkpoint import Damaged

  if step < stage.loop.num_steps:
    raise Damaged(f"stage {stage.name} resumes from step {step} of {stage.loop.num_steps}")


def params_without_zero_taps(template: Template, params: dict) -> dict:
  """Returns a tokenizer's parameters with which it codes the same; see `conv.without_zero_taps`."""
  module = without_zero_taps(template.module(params))
  return nnx.to_pure_dict(nnx.split(module)[1])
