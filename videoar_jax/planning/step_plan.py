"""A stage's training step on a pod: abstract, estimated, or compiled ahead of time.

If batches have several shapes, the largest is planned, since all have to fit.
"""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp

from videoar_jax.experiment.checkpoints import StageCheckpoints
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.models.base import ClipShape
from videoar_jax.parallel.mesh import MeshConfig, num_batch_shards
from videoar_jax.parallel.rules import AnyMesh, ShardingError, replicated, sharding_of
from videoar_jax.parallel.traffic import device_bytes
from videoar_jax.planning.estimate import Cost, estimate
from videoar_jax.planning.pod import Pod
from videoar_jax.train.state import evaluation_params, with_shardings
from videoar_jax.train.task import Task
from videoar_jax.train.trainer import NUM_SHOWN, Trainer


class DoesNotFit(ValueError):
  """A program needs more memory than a chip has."""


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes that a program needs on a device, according to the compiler."""

  arguments: int
  temporaries: int
  peak: int


@dataclasses.dataclass(frozen=True)
class StepPlan:
  """A stage's step on a mesh.

  Attributes:
    run: the run.
    stage: of the run, with only the largest shape of its batches.
    pod: the pod.
    mesh: its devices.
    trainer: has the step.
    frozen: shapes of frozen parameters.
  """

  run: RunConfig
  stage: StageConfig
  pod: Pod
  mesh: AnyMesh
  trainer: Trainer
  frozen: dict

  @classmethod
  def of(cls, run: RunConfig, stage: StageConfig, pod: Pod, mesh_config: MeshConfig) -> "StepPlan":
    """Makes the plan.

    Raises:
      ValueError: the mesh does not fit the devices, the network or the batch.
    """
    mesh = pod.mesh(mesh_config)
    check_divides(run, stage, pod, mesh)
    task, frozen = _abstract_task(run, stage, mesh)
    trainer = Trainer(task, stage.loop, mesh, run.seed)
    whole = jax.tree.map(lambda _: replicated(mesh), frozen)
    largest = with_largest_shape(run, stage, num_batch_shards(mesh))
    return cls(run, largest, pod, mesh, trainer, with_shardings(frozen, whole))

  @property
  def state_bytes(self) -> int:
    """Bytes per device of the parameters, their average, and the optimizer."""
    return device_bytes(self.trainer.abstract_state, self.trainer.shardings)

  def estimate(self) -> Cost | None:
    """Estimates the step."""
    state, shardings = self.trainer.abstract_state, self.trainer.shardings
    return estimate(self.run, self.stage, state, shardings, self.frozen, self.mesh)

  def compile(self) -> Memory:
    """Compiles the step.

    Raises:
      DoesNotFit: it does not fit into the chip's memory; says by how much.
      ValueError: it does not compile.
    """
    batch = _abstract_batch(self.run, self.stage, self.mesh)
    arguments = (self.trainer.abstract_state, self.frozen, batch, abstract_key(self.mesh))
    return compile_program(self.trainer.step, arguments, self.mesh, _FIXES)

  def compile_media(self) -> Memory:
    """Compiles the samples that are shown in training; the rest of the state counts as held.

    Raises:
      DoesNotFit: they do not fit into the chip's memory; says by how much.
      ValueError: they do not compile.
    """
    params = evaluation_params(self.trainer.abstract_state)
    shards = num_batch_shards(self.mesh)
    clips = _abstract_clips(self.run, self.stage, self.mesh, -(-NUM_SHOWN // shards) * shards)
    memory = compile_program(
      self.trainer.media, (params, self.frozen, clips), self.mesh, "the run would leave them out"
    )
    shardings = jax.tree.map(lambda x: x.sharding, params)
    others = self.state_bytes - device_bytes(params, shardings)
    return dataclasses.replace(memory, peak=memory.peak + others)


_FIXES = (
  "split parameters further (--mesh=fsdp:N), take a smaller batch_size, or set "
  "generator.remat='full'; --search=3 tries"
)


def check_divides(run: RunConfig, stage: StageConfig, pod: Pod, mesh) -> None:
  """Checks that a mesh divides a stage's batches and heads.

  Raises:
    ShardingError: it does not.
  """
  shards = num_batch_shards(mesh)
  if not stage.mixture and stage.loop.batch_size % shards:
    raise ShardingError(
      f"stage.{stage.name}.loop.batch_size={stage.loop.batch_size} does not divide over the "
      f"{shards} shards of mesh.slice x mesh.data x mesh.fsdp; take a multiple"
    )
  if stage.kind == "generator":
    run.family.check_mesh(run, mesh)


def with_largest_shape(run: RunConfig, stage: StageConfig, num_shards: int) -> StageConfig:
  """Returns a stage with only the largest shape of its batches.

  Args:
    run: the run.
    stage: of the run.
    num_shards: parts that batches are split into.
  """
  batch_sizes = {stage.shape: stage.loop.batch_size}
  if stage.mixture:
    batch_sizes = {
      shape: run.batch_size_of(stage, part, shape, num_shards)
      for part in stage.mixture
      for shape in part.shapes
    }

  def size(shape: ClipShape) -> tuple[int, int]:
    tokens = run.num_tokens(stage, shape) if stage.kind == "generator" else 0
    num_frames, (height, width) = shape
    return batch_sizes[shape] * tokens, batch_sizes[shape] * num_frames * height * width

  largest = max(batch_sizes, key=size)
  return dataclasses.replace(
    stage,
    data=dataclasses.replace(
      stage.data, num_frames=largest.num_frames, resolution=largest.resolution
    ),
    loop=dataclasses.replace(stage.loop, batch_size=batch_sizes[largest]),
  )


# The compiler stops tuning a convolution at this share of its best performance. The default takes
# twice as long to compile; the program's memory is the same.
_OPTIONS = {"xla_jf_convolution_performance_target": 0.1}


def compile_program(program, arguments: tuple, mesh: AnyMesh, fixes: str, **settings) -> Memory:
  """Compiles a jitted function ahead of time for a TPU topology.

  Args:
    program: the function.
    arguments: shapes with their shardings.
    mesh: over the topology's devices.
    fixes: how to make it fit, for the error.
    **settings: keyword arguments of the function.
  Raises:
    DoesNotFit: it does not fit into the chip's memory; says by how much.
    ValueError: it does not compile.
  """
  try:
    with jax.set_mesh(mesh):
      compiled = program.lower(*arguments, **settings).compile(_OPTIONS)
  except jax.errors.JaxRuntimeError as error:
    raise _describe(error, fixes) from error
  memory = compiled.memory_analysis()
  peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Memory(memory.argument_size_in_bytes, memory.temp_size_in_bytes, peak)


_TOO_LARGE = (
  r"Used ([\d.]+)G of ([\d.]+)G hbm",
  # Raised before memory is assigned, for arguments or temporaries alone.
  r"required for HLO \w+ \(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)",
)


def _describe(error: Exception, fixes: str) -> ValueError:
  text = str(error)
  match = next(filter(None, (re.search(pattern, text) for pattern in _TOO_LARGE)), None)
  if not match:
    return ValueError(f"the program does not compile: {text[:600]}")
  used, memory = map(float, match.groups())
  return DoesNotFit(
    f"the program does not fit: it needs {used:.2f}G of {memory:.2f}G of a chip's memory, "
    f"{used - memory:.2f}G too much; {fixes}"
  )


def _abstract_task(run: RunConfig, stage: StageConfig, mesh) -> tuple[Task, dict]:
  """Returns a stage's task, and the shapes of its frozen parameters."""
  if stage.kind == "tokenizer":
    family, resolution = run.tokenizer_family, stage.data.resolution
    frozen = family.frozen_shapes(stage.loss)
    return family.make_task(run.tokenizer, stage.loss, resolution, frozen), frozen
  stages = StageCheckpoints(run, pathlib.Path(), mesh)
  template = stages.tokenizer_template(is_trained=False)
  return run.family.make_task(run, stage, template, template.shapes), template.shapes


def _abstract_batch(run: RunConfig, stage: StageConfig, mesh: AnyMesh) -> dict:
  """Returns the shapes of a global batch."""
  b, data = stage.loop.batch_size, stage.data
  batch = _abstract_clips(run, stage, mesh, b)
  if stage.cache is None:
    return batch
  grid = run.tokenizer.latent_shape(data.num_frames, data.resolution)
  latents, dtype = (b, *grid, run.tokenizer.num_encoded), stage.cache.dtype(run.tokenizer)
  return {"text": batch["text"], "latents": _abstract_rows(latents, jnp.dtype(dtype), mesh)}


def _abstract_clips(run: RunConfig, stage: StageConfig, mesh: AnyMesh, num_clips: int) -> dict:
  """Returns the shapes of a stage's clips with their prompts."""
  text, data = run.text.encoder.null(), stage.data
  video = (num_clips, data.num_frames, *data.resolution, 3)
  return {
    "text": _abstract_rows((num_clips, *text.shape), text.dtype, mesh),
    "video": _abstract_rows(video, jnp.uint8, mesh),
  }


def _abstract_rows(shape: tuple[int, ...], dtype, mesh: AnyMesh) -> jax.ShapeDtypeStruct:
  """Returns the shape of an array that is split like a batch."""
  sharding = sharding_of(("batch",) + (None,) * (len(shape) - 1), shape, mesh)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def abstract_key(mesh: AnyMesh) -> jax.ShapeDtypeStruct:
  """Returns the shape of a random key, replicated."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
