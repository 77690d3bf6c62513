"""Plans the sampling of clips on a pod: its largest programs and its estimated cost.

The generator and the tokenizer are on the devices together. A pretrained text encoder is on the
first device of a process besides, see `text.pretrained`.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videoar_jax.experiment.checkpoints import StageCheckpoints
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.models.base import SamplingProgram
from videoar_jax.parallel.mesh import MeshConfig, num_batch_shards
from videoar_jax.parallel.rules import AnyMesh, ShardingError, replicated, sharding_of
from videoar_jax.parallel.traffic import device_bytes
from videoar_jax.planning.estimate import SHARE_OF_FLOPS
from videoar_jax.planning.pod import Pod
from videoar_jax.planning.step_plan import Memory, compile_program
from videoar_jax.tokenizers.decoding import decode
from videoar_jax.train.state import Template, with_shardings

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
    tokenizer: shapes of the tokenizer's parameters, whole on every device, in a module.
    sampling: the generator's largest program and its cost.
  """

  run: RunConfig
  stage: StageConfig
  pod: Pod
  mesh: AnyMesh
  num_clips: int
  dtype: jnp.dtype
  template: Template
  tokenizer: Any
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
    stages = StageCheckpoints(run, pathlib.Path(), mesh)
    template, frozen = stages.module_template(stage), stages.tokenizer_template(is_trained=False)
    whole = jax.tree.map(lambda _: replicated(mesh), frozen.shapes)
    tokenizer = frozen.module(with_shardings(frozen.shapes, whole))
    dtype = jnp.dtype(dtype)
    sampling = run.family.sampling_program(run, stage, template, mesh, num_clips, dtype)
    if sampling is None:
      raise ValueError("--decode: this family cannot plan its sampling; leave it out")
    return cls(run, stage, pod, mesh, num_clips, dtype, template, tokenizer, sampling)

  @property
  def parameter_bytes(self) -> int:
    """Bytes of the generator's parameters on a device."""
    params = self.sampling.params
    return device_bytes(params, jax.tree.map(lambda x: x.sharding, params))

  @property
  def tokenizer_bytes(self) -> int:
    """Bytes of the tokenizer's parameters on a device."""
    params = self.tokenizer
    return device_bytes(params, jax.tree.map(lambda x: x.sharding, params))

  @property
  def encoder_bytes(self) -> int:
    """Bytes of the text encoder's parameters on the first device; 0 without a pretrained one."""
    return getattr(self.run.text.encoder, "num_bytes", 0)

  @property
  def pixel_seconds(self) -> float:
    """Estimated seconds of decoding pixels: products alone, each device those of its own clips."""
    data = self.stage.data
    clip = (self.run.tokenizer, data.num_frames, data.resolution)
    flops = self.num_clips / num_batch_shards(self.mesh) * self.run.tokenizer_family.flops(*clip)[1]
    return flops / (self.pod.chip.device_flops * SHARE_OF_FLOPS)

  def compile(self) -> Memory:
    """Compiles the generator's largest program; the tokenizer's parameters count as held.

    Raises:
      DoesNotFit: it does not fit into the chip's memory; says by how much.
      ValueError: it does not compile.
    """
    sampling = self.sampling
    memory = compile_program(
      sampling.program, sampling.arguments, self.mesh, _FIXES, **sampling.settings
    )
    return dataclasses.replace(memory, peak=memory.peak + self.tokenizer_bytes)

  def compile_pixels(self) -> Memory:
    """Compiles the decoding of pixels; the generator's parameters count as held.

    Raises:
      DoesNotFit: it does not fit into the chip's memory; says by how much.
      ValueError: it does not compile.
    """
    data, config = self.stage.data, self.run.tokenizer
    shape = config.latent_shape(data.num_frames, data.resolution)
    shape = (self.num_clips, *shape, config.num_channels)
    split = sharding_of(("batch", None, None, None, None), shape, self.mesh)
    latents = jax.ShapeDtypeStruct(shape, np.float32, sharding=split)
    program = jax.jit(lambda module, latents: decode(module.decoder, latents))
    memory = compile_program(program, (self.tokenizer, latents), self.mesh, _FIXES)
    return dataclasses.replace(memory, peak=memory.peak + self.parameter_bytes)
