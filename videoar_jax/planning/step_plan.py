"""A stage's training step on a pod, before anything is compiled; and what the compiler says of it.

Of a stage with batches of several shapes, the largest is planned: it has to fit, too.
"""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.experiment.stages import Stages
from videoar_jax.models.videoar.network import check_heads
from videoar_jax.parallel.mesh import (
  AnyMesh,
  MeshConfig,
  ShardingError,
  num_batch_shards,
  replicated,
  sharding_of,
)
from videoar_jax.planning.estimate import Cost, estimate
from videoar_jax.planning.pod import Pod
from videoar_jax.tokenizers import lpips
from videoar_jax.tokenizers.bsq.task import TokenizerTask
from videoar_jax.train.loop import Trainer
from videoar_jax.train.state import with_shardings
from videoar_jax.train.task import Task


class DoesNotFit(ValueError):
  """A program needs more memory than a chip has."""


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes that a device needs for a program, by the compiler."""

  arguments: int
  temporaries: int
  peak: int


@dataclasses.dataclass(frozen=True)
class StepPlan:
  """A stage's step on a mesh.

  Attributes:
    run: the run.
    stage: of it, with the data and the batch of its largest shape, and no other.
    pod: where.
    mesh: its devices.
    trainer: whose step it is.
    frozen: shapes of what the step reads and does not train.
  """

  run: RunConfig
  stage: StageConfig
  pod: Pod
  mesh: AnyMesh
  trainer: Trainer
  frozen: dict

  @classmethod
  def of(cls, run: RunConfig, stage: StageConfig, pod: Pod, mesh_config: MeshConfig) -> "StepPlan":
    """Makes the abstract step.

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

  def estimate(self) -> Cost:
    """Counts the step."""
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
    return compile_program(self.trainer.step, arguments, self.mesh, _MENDS)


_MENDS = (
  "split parameters further (--mesh=fsdp:N), take a smaller batch_size, or set "
  "generator.remat='full'; --search=3 tries"
)


def check_divides(run: RunConfig, stage: StageConfig, pod: Pod, mesh) -> None:
  """Checks that a stage's batches and heads divide over a mesh.

  Raises:
    ShardingError: one does not.
  """
  ways = num_batch_shards(mesh)
  if not stage.mixture and stage.loop.batch_size % ways:
    raise ShardingError(
      f"stage.{stage.name}.loop.batch_size={stage.loop.batch_size} does not divide over the "
      f"{ways} ways of mesh.slice x mesh.data x mesh.fsdp; take a multiple"
    )
  if stage.kind != "generator":
    return
  check_heads(run.generator, mesh)


def with_largest_shape(run: RunConfig, stage: StageConfig, ways: int) -> StageConfig:
  """Returns a stage with the data and the batch of its largest shape.

  Args:
    run: the run.
    stage: of it.
    ways: parts that batches are split into.
  """
  found = [(stage.data.num_frames, stage.data.resolution, stage.loop.batch_size)]
  if stage.mixture:
    shapes = dict.fromkeys(shape for part in stage.mixture for shape in part.shapes)
    found = [(*shape, run.batch_size_of(stage, shape, ways)) for shape in shapes]
  elif stage.images.share > 0:
    found.append((1, stage.data.resolution, stage.images.batch_size))

  def size(shape) -> tuple[int, int]:
    num_frames, resolution, num_clips = shape
    tokens = 0
    if stage.kind == "generator":
      tokens = num_clips * run.layout(num_frames, resolution).length
    return tokens, num_clips * num_frames * resolution[0] * resolution[1]

  num_frames, resolution, num_clips = max(found, key=size)
  return dataclasses.replace(
    stage,
    data=dataclasses.replace(stage.data, num_frames=num_frames, resolution=resolution),
    loop=dataclasses.replace(stage.loop, batch_size=num_clips),
  )


# How near to its best the compiler wants to come with a convolution before it stops looking for a
# faster way. By default that takes twice as long; what the program holds is the same.
_OPTIONS = {"xla_jf_convolution_performance_target": 0.1}


def compile_program(program, arguments: tuple, mesh: AnyMesh, mends: str, **settings) -> Memory:
  """Compiles a jitted function for a mesh of devices that are not there.

  Args:
    program: the function.
    arguments: shapes with their shardings.
    mesh: the devices.
    mends: what would make it fit, for the error.
    **settings: of the function, by name.
  Raises:
    DoesNotFit: it does not fit into the chip's memory; says by how much.
    ValueError: it does not compile.
  """
  try:
    with jax.set_mesh(mesh):
      compiled = program.lower(*arguments, **settings).compile(_OPTIONS)
  except jax.errors.JaxRuntimeError as error:
    raise _describe(error, mends) from error
  found = compiled.memory_analysis()
  peak = found.argument_size_in_bytes + found.temp_size_in_bytes
  peak += found.output_size_in_bytes - found.alias_size_in_bytes
  return Memory(found.argument_size_in_bytes, found.temp_size_in_bytes, peak)


_TOO_LARGE = (
  r"Used ([\d.]+)G of ([\d.]+)G hbm",
  # Found before memory is given out: of arguments or temporaries alone.
  r"required for HLO \w+ \(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)",
)


def _describe(error: Exception, mends: str) -> ValueError:
  text = str(error)
  match = next(filter(None, (re.search(pattern, text) for pattern in _TOO_LARGE)), None)
  if not match:
    return ValueError(f"the step does not compile: {text[:600]}")
  used, memory = map(float, match.groups())
  return DoesNotFit(
    f"the step does not fit: it needs {used:.2f}G of {memory:.2f}G of a chip's memory, "
    f"{used - memory:.2f}G too much; {mends}"
  )


def _abstract_task(run: RunConfig, stage: StageConfig, mesh) -> tuple[Task, dict]:
  """Returns a stage's task, and the shapes of what it needs and does not train."""
  if stage.kind == "tokenizer":
    frozen = {}
    if stage.loss.lpips > 0:
      shapes = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in lpips.shapes().items()}
      frozen = {"lpips": shapes}
    schedule = run.schedule_of(stage.data.resolution)
    return TokenizerTask(run.tokenizer, schedule, stage.loss, frozen), frozen
  stages = Stages(run, pathlib.Path(), mesh)
  template = stages.module_template(stages.stage_before(stage, "tokenizer"))
  return stages.make_generator_task(stage, template, template.shapes), template.shapes


def _abstract_batch(run: RunConfig, stage: StageConfig, mesh: AnyMesh) -> dict:
  """Returns the shapes of a global batch."""
  b, data = stage.loop.batch_size, stage.data
  text = run.text.encoder.null()
  shapes = {"text": ((b, *text.shape), text.dtype), "class_id": ((b,), jnp.int32)}
  if stage.cache is None:
    shapes["video"] = ((b, data.num_frames, *data.resolution, 3), jnp.uint8)
  else:
    grid = run.tokenizer.latent_shape(data.num_frames, data.resolution)
    shapes["latents"] = ((b, *grid, run.tokenizer.num_bits), jnp.bfloat16)
  return {
    name: jax.ShapeDtypeStruct(
      shape, kind, sharding=sharding_of(("batch",) + (None,) * (len(shape) - 1), shape, mesh)
    )
    for name, (shape, kind) in shapes.items()
  }


def abstract_key(mesh: AnyMesh) -> jax.ShapeDtypeStruct:
  """Returns the shape of a key, which every device has."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
