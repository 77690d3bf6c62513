"""Plans the sampling of clips on a pod: its largest program and its estimated cost."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from videoar_jax.experiment.checkpoints import StageCheckpoints
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.models.base import SamplingProgram
from videoar_jax.parallel.mesh import MeshConfig, num_batch_shards
from videoar_jax.parallel.rules import AnyMesh, ShardingError
from videoar_jax.parallel.traffic import device_bytes
from videoar_jax.planning.pod import Pod
from videoar_jax.planning.step_plan import Memory, compile_program
from videoar_jax.train.state import Template

_FIXES = (
  "decode fewer clips together (--decode=N), split heads (--mesh=tensor:N), or take "
  "--dtype=bfloat16"
)


@dataclasses.dataclass(frozen=True)
class DecodePlan:
  """Decoding of several clips together, with the length of a stage's clips.

  Attributes:
    run: the run.
    stage: a generator stage.
    pod: the pod.
    mesh: its devices.
    num_clips: clips that are decoded together.
    dtype: of the weights and the cache.
    template: structure of the generator.
    sampling: the program and its cost.
  """

  run: RunConfig
  stage: StageConfig
  pod: Pod
  mesh: AnyMesh
  num_clips: int
  dtype: jnp.dtype
  template: Template
  sampling: SamplingProgram

  @classmethod
  def of(
    cls,
    run: RunConfig,
    stage: StageConfig,
    pod: Pod,
    mesh_config: MeshConfig,
    num_clips: int,
    dtype: str,
  ) -> "DecodePlan":
    """Makes the plan.

    Raises:
      ValueError: the stage trains no generator, or the mesh does not divide the clips or the heads.
    """
    if stage.kind != "generator":
      raise ValueError(f"--decode: stage {stage.name} trains a {stage.kind}; name a generator's")
    mesh = pod.mesh(mesh_config)
    if num_clips < 1 or num_clips % num_batch_shards(mesh):
      raise ShardingError(
        f"--decode={num_clips} clips do not divide over the {num_batch_shards(mesh)} shards of "
        "mesh.slice x mesh.data x mesh.fsdp; take a multiple"
      )
    template = StageCheckpoints(run, pathlib.Path(), mesh).module_template(stage)
    dtype = jnp.dtype(dtype)
    sampling = run.family.sampling_program(run, stage, template, mesh, num_clips, dtype)
    if sampling is None:
      raise ValueError("--decode: this family cannot plan its sampling; leave it out")
    return cls(run, stage, pod, mesh, num_clips, dtype, template, sampling)

  @property
  def parameter_bytes(self) -> int:
    """Bytes of the generator's parameters on a device."""
    params = self.sampling.params
    return device_bytes(params, jax.tree.map(lambda x: x.sharding, params))

  def compile(self) -> Memory:
    """Compiles the largest program of sampling.

    Raises:
      DoesNotFit: it does not fit into the chip's memory; says by how much.
      ValueError: it does not compile.
    """
    sampling = self.sampling
    return compile_program(
      sampling.program, sampling.arguments, self.mesh, _FIXES, **sampling.settings
    )
