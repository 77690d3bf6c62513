"""InfinityStar as a family; see `models.base.Family`."""

import logging
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from videoar_jax.models.base import ClipShape, Curves, Data, Run, SamplingProgram, Stage
from videoar_jax.models.infinity_star import generate, work
from videoar_jax.models.infinity_star.config import InfinityStarConfig, InfinityStarSampling
from videoar_jax.models.infinity_star.layout import Layout
from videoar_jax.models.infinity_star.network import InfinityStar as Network
from videoar_jax.models.infinity_star.sampler import Model
from videoar_jax.models.infinity_star.sequences import given_lengths, layout_of, released_parts
from videoar_jax.models.infinity_star.task import InfinityStarLossConfig, InfinityStarTask
from videoar_jax.models.prompts import text_settings
from videoar_jax.models.request import sample_keys
from videoar_jax.parallel.rules import ShardingError
from videoar_jax.tokenizers.star.schedules import nearest_grid, public_grids_of

log = logging.getLogger(__name__)


def _size(num_layers: int, num_heads: int, num_kv_heads: int, mlp_dim: int, **more) -> dict:
  return {
    "num_layers": num_layers,
    "d_model": 128 * num_heads,
    "num_heads": num_heads,
    "num_kv_heads": num_kv_heads,
    "head_dim": 128,
    "mlp_dim": mlp_dim,
    "dtype": "bfloat16",
  } | more


class InfinityStar:
  """Bits of an image, then of clips, scale by scale (arXiv 2511.04675)."""

  tokenizer = "star"
  tokenizers = ("star",)
  network = InfinityStarConfig
  loss = InfinityStarLossConfig
  sampling = InfinityStarSampling
  # All but `tiny` are of the public code; `qwen8b` was released.
  sizes: ClassVar[dict[str, dict[str, Any]]] = {
    "tiny": _size(4, 2, 1, 512, d_model=128, head_dim=64, dtype="float32"),
    "qwen0b": _size(4, 4, 4, 1792),
    "qwen2_2b": _size(28, 18, 18, 8192),
    "qwen7b": _size(36, 32, 8, 12288),
    "qwen8b": _size(36, 32, 8, 16384),
    "qwen13bMHA": _size(40, 40, 40, 17408, has_attention_bias=True),
    "qwen14b": _size(48, 36, 9, 18432),
    "qwen_wide14b": _size(36, 44, 11, 19200),
    "qwen2_30b": _size(54, 48, 12, 24576),
  }
  derived = ("num_channels", "vocabulary_size", "text_dim", "text_length")
  batch_fields = ()
  headline: ClassVar[dict[str, str]] = {"bit_accuracy": "bits {:.1%}"}

  def network_config(self, values: dict, tokenizer, text) -> dict:
    """See `Family`."""
    return values | {"num_channels": tokenizer.num_channels} | text_settings(text)

  def check(self, run: Run) -> None:
    """See `Family`."""
    _layout(run, run.data)
    for stage in run.generator_stages:
      for shape in (stage.data, *stage.shapes):
        schedule = _layout(run, shape).schedule
        if stage.loss.parts == "released" and schedule[-1].pyramid:
          try:
            released_parts(schedule)
          except ValueError as error:
            raise ValueError(f"stage.{stage.name}.{error}") from None

  def check_mesh(self, run: Run, mesh) -> None:
    """See `Family`."""
    num_parts = mesh.shape["tensor"] * mesh.shape["sequence"]
    if run.generator.num_heads % num_parts:
      raise ShardingError(
        f"generator.num_heads={run.generator.num_heads} does not divide over "
        f"mesh.tensor={mesh.shape['tensor']} x mesh.sequence={mesh.shape['sequence']}; take fewer "
        "devices for them"
      )

  def overlaps(self, run: Run, num_frames: int) -> tuple[int, ...]:
    """See `ClipwiseFamily`."""
    return given_lengths(_layout(run, ClipShape(num_frames, run.data.resolution)), run.tokenizer)

  def num_tokens(self, run: Run, shape: ClipShape) -> int:
    """See `Family`."""
    return _layout(run, shape).length

  def describe(self, run: Run) -> dict[str, Any]:
    """See `Family`."""
    layout = _layout(run, run.data)
    first = [scale for scale in layout.schedule if scale.pyramid == 0]
    return {"schedule": [scale.grid for scale in first], "sequence_length": layout.length}

  def curves(self, run: Run) -> Curves:
    """See `Family`."""
    return Curves("bit accuracy", {"bit_accuracy": ""}, chance=0.5)

  def make_module(self, run: Run):
    """See `Family`."""
    return lambda key: Network(nnx.Rngs(params=key), run.generator)

  def make_task(self, run: Run, stage: Stage, tokenizer, tokenizer_params: dict):
    """See `Family`."""
    for size in dict.fromkeys(shape.resolution for shape in stage.shapes):
      if not run.generator.schedule and not _is_public(run, size):
        log.warning(
          "stage %s: there is no public table of scales for clips of %dx%d pixels; the nearest is "
          "that of %dx%d, see generator.schedule",
          *(stage.name, *size, *_nearest(run, size)),
        )
    return InfinityStarTask(
      run.generator,
      _layout(run, stage.data),
      stage.loss,
      run.tokenizer_family,
      tokenizer,
      tokenizer_params,
      run.sampling,
    )

  def make_model(
    self,
    run,
    stage,
    module,
    tokenizer_module,
    *,
    resolution=None,
    mesh=None,
    dtype=None,
    batch_size=None,
  ) -> Model:
    """See `Family`."""
    shape = ClipShape(stage.data.num_frames, sampled_resolution(run, stage, resolution))
    return Model(
      module,
      run.tokenizer_family.make_tokenizer(tokenizer_module),
      run.text.encoder,
      shape,
      run.sampling,
      frame_rate=stage.data.frame_rate,
      mesh=mesh,
      dtype=jnp.float32 if dtype is None else dtype,
      batch_size=batch_size,
    )

  def flops(self, run: Run, stage: Stage) -> None:
    """See `Family`."""

  def step_work(self, run: Run, stage: Stage, mesh) -> None:
    """See `Family`."""

  def sample_latents(self, run: Run, stage: Stage, module: Network, text, seed):
    """See `Family`."""
    plan = generate.Plan.of(_layout(run, stage.data), run.sampling)
    prompts = generate.prompts_of(module, text, None, run.sampling.guidance != 1)
    keys = sample_keys(seed, jnp.arange(len(text)))
    return generate.generate(module, plan, prompts, jax.random.key_data(keys))

  def sampling_work(self, run: Run, stage: Stage, batch_size: int) -> tuple[int, float]:
    """See `Family`."""
    layout, passes = _layout(run, stage.data), work.num_passes(run.sampling)
    flops = work.sampling_flops(run.generator, layout, passes)
    return work.num_steps(layout), batch_size * flops

  def sampling_program(self, run, stage, template, mesh, num_clips: int, dtype) -> SamplingProgram:
    """See `Family`."""
    layout, settings = _layout(run, stage.data), (run.generator, run.sampling)
    return work.sampling_program(*settings, layout, mesh, num_clips, jnp.dtype(dtype))


def sampled_resolution(
  run: Run, stage: Stage, resolution: tuple[int, int] | None
) -> tuple[int, int]:
  """Returns the (H, W) of the clips that a network makes where a resolution is asked for.

  One that was trained on a public size makes the nearest public one, and says so in the log; others
  make any that the tokenizer can code.

  Args:
    run: the run that trained the network.
    stage: the stage that did.
    resolution: (H, W) in pixels; None for that of the stage.
  """
  trained = tuple(stage.data.resolution)
  if resolution is None or not _is_public(run, trained):
    return tuple(resolution or trained)
  size = _nearest(run, resolution)
  if size != tuple(resolution):
    log.warning(
      "resolution=%dx%d: clips have %dx%d pixels, the nearest public size", *resolution, *size
    )
  return size


def _is_public(run: Run, resolution: tuple[int, int]) -> bool:
  """Returns whether clips have the scales of a public table."""
  _, h, w = run.tokenizer.latent_shape(1, resolution)
  grids = run.generator.pyramid((h, w)).grids
  found = public_grids_of((h, w))
  return found is not None and found[1] == grids


def _nearest(run: Run, resolution: tuple[int, int]) -> tuple[int, int]:
  """Returns the public (H, W) in pixels nearest to a resolution."""
  stride = run.tokenizer.spatial_stride
  h, w = nearest_grid(resolution[0] / stride, resolution[1] / stride)
  return h * stride, w * stride


def _layout(run: Run, clip: ClipShape | Data) -> Layout:
  """Returns the sequence of a clip.

  Raises:
    ValueError: the tokenizer cannot code such clips, or the network's scales do not fit.
  """
  return layout_of(run.generator, run.tokenizer.latent_shape(clip.num_frames, clip.resolution))
