"""A clip's decoding on a pod: the sampler's program for one frame, and what it costs."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx

from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.experiment.stages import Stages
from videoar_jax.models.videoar import decode
from videoar_jax.models.videoar.guidance import guidance_table
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.parallel.mesh import (
  AnyMesh,
  MeshConfig,
  ShardingError,
  num_batch_shards,
  replicated,
  sharding_of,
)
from videoar_jax.planning.estimate import DecodeCost, estimate_decoding
from videoar_jax.planning.pod import Pod
from videoar_jax.planning.step_plan import Memory, compile_program
from videoar_jax.train.state import Template, with_shardings

_MENDS = (
  "decode fewer clips together (--decode=N), split heads (--mesh=tensor:N), or take "
  "--dtype=bfloat16"
)


@dataclasses.dataclass(frozen=True)
class DecodePlan:
  """The decoding of some clips together, of the length that a stage trains.

  Attributes:
    run: the run.
    stage: the generator's.
    pod: where.
    mesh: its devices.
    num_clips: that are decoded together.
    dtype: of the weights and the cache.
    template: of the generator.
  """

  run: RunConfig
  stage: StageConfig
  pod: Pod
  mesh: AnyMesh
  num_clips: int
  dtype: jnp.dtype
  template: Template

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
    """Makes it.

    Raises:
      ValueError: the stage trains no generator, or the mesh does not fit the clips or the heads.
    """
    if stage.kind != "generator":
      raise ValueError(f"--decode: stage {stage.name} trains a {stage.kind}; name a generator's")
    mesh = pod.mesh(mesh_config)
    if num_clips < 1 or num_clips % num_batch_shards(mesh):
      raise ShardingError(
        f"--decode={num_clips} clips do not divide over the {num_batch_shards(mesh)} ways of "
        "mesh.slice x mesh.data x mesh.fsdp; take a multiple"
      )
    template = Stages(run, pathlib.Path(), mesh).module_template(stage)
    draft = cls(run, stage, pod, mesh, num_clips, jnp.dtype(dtype), template)
    draft.abstract_state  # noqa: B018  Raises where heads do not divide.
    return draft

  @property
  def layout(self) -> Layout:
    """The sequence of a clip."""
    return self.run.layout_of(self.stage.data)

  @property
  def is_guided(self) -> bool:
    """Whether each clip is decoded with its prompt and without."""
    layout = self.layout
    table = guidance_table(self.run.sampling.guidance, layout.num_frames, layout.num_scales)
    return bool((table != 1).any())

  @functools.cached_property
  def abstract_params(self) -> dict:
    """Shapes of the generator's parameters, split as in training."""
    cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, self.dtype), self.template.shapes)
    return with_shardings(cast, self.template.shardings(self.mesh))

  @functools.cached_property
  def abstract_state(self) -> decode.State:
    """Shapes of the cache and what else goes from frame to frame."""
    layout, text = self.layout, self.run.text.encoder.null()
    start = functools.partial(
      decode.start,
      slots=decode.num_slots(layout.num_frames, self.stage.loss.window),
      is_guided=self.is_guided,
    )
    state = jax.eval_shape(
      lambda model, texts: start(
        model, layout, texts, text, decode.sample_keys(0, jnp.arange(self.num_clips))
      ),
      self.template.module(self.abstract_params),
      jax.ShapeDtypeStruct((self.num_clips, *text.shape), text.dtype),
    )
    axes = {
      "cache": ("batch", "kv_heads", None, None),
      "text_mask": ("batch", None),
      "keys": ("batch",),
      "before": ("batch", None, None, None),
      "frame": (),
    }
    parts = {}
    for name, names in axes.items():
      part = getattr(state, name)
      split = jax.tree.map(lambda x, names=names: sharding_of(names, x.shape, self.mesh), part)
      parts[name] = with_shardings(part, split)
    return dataclasses.replace(state, **parts)

  def compile(self) -> Memory:
    """Compiles the program of one frame, the longest part of a clip's.

    Raises:
      DoesNotFit: it does not fit into the chip's memory; says by how much.
      ValueError: it does not compile.
    """
    whole = replicated(self.mesh)
    row = jax.ShapeDtypeStruct((self.layout.num_scales,), jnp.float32, sharding=whole)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    # As `sampler.Model` does.
    program = jax.jit(decode.decode_frame, static_argnums=1, donate_argnums=2)
    model: nnx.Module = self.template.module(self.abstract_params)
    arguments = (model, self.layout, self.abstract_state, row)
    draws = {"temperature": number, "top_p": number}
    return compile_program(program, arguments, self.mesh, _MENDS, **draws)

  def estimate(self) -> DecodeCost:
    """Counts what the whole clips cost."""
    return estimate_decoding(
      self.run.generator,
      self.layout,
      self.abstract_state.text_mask.shape[0],
      self.abstract_params,
      self.abstract_state.cache,
      self.mesh,
    )
