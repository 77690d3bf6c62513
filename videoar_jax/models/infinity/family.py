"""Infinity as a family; see `models.base.Family`."""

import logging
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from videoar_jax.models.base import ClipShape, Curves, Run, SamplingProgram, Stage, StepWork
from videoar_jax.models.infinity import flops, training_work, work
from videoar_jax.models.infinity.config import InfinityConfig, InfinitySampling, by_scale
from videoar_jax.models.infinity.layout import Layout, layout_of
from videoar_jax.models.infinity.network import Infinity as Network
from videoar_jax.models.infinity.sampler import Model
from videoar_jax.models.infinity.schedules import nearest_resolution, public_schedules
from videoar_jax.models.infinity.task import InfinityLossConfig, InfinityTask, sample
from videoar_jax.models.prompts import text_settings
from videoar_jax.parallel.rules import ShardingError
from videoar_jax.tokenizers.families import TOKENIZERS

log = logging.getLogger(__name__)


def _size(num_layers: int, d_model: int, num_heads: int, patch_size: int = 1) -> dict[str, Any]:
  return {
    "num_layers": num_layers,
    "d_model": d_model,
    "num_heads": num_heads,
    "mlp_dim": round(4 * d_model / 256) * 256,
    "patch_size": patch_size,
    "dtype": "bfloat16",
  }


class Infinity:
  """Next-scale prediction of an image's bits (arXiv 2412.04431)."""

  tokenizer = "bsq"
  tokenizers = ("bsq",)
  network = InfinityConfig
  loss = InfinityLossConfig
  sampling = InfinitySampling
  # All but `tiny` are the public ones; `125m` is called layer12 there.
  sizes: ClassVar[dict[str, dict[str, Any]]] = {
    "tiny": _size(4, 128, 2) | {"num_pool_heads": 2, "dtype": "float32"},
    "125m": _size(12, 768, 8),
    "layer16": _size(16, 1152, 12),
    "layer24": _size(24, 1536, 16),
    "layer32": _size(32, 2080, 20),
    "layer40": _size(40, 2688, 24),
    "layer48": _size(48, 3360, 28),
    "2b": _size(32, 2048, 16),
    "8b": _size(40, 3584, 28, 2),
  }
  derived = ("num_bits", "vocabulary_size", "text_dim", "text_length")
  batch_fields = ()
  headline: ClassVar[dict[str, str]] = {"bit_accuracy": "bits {:.1%}"}

  def network_config(self, values: dict, tokenizer, text) -> dict:
    """See `Family`."""
    return values | {"num_bits": tokenizer.num_bits} | text_settings(text)

  def check(self, run: Run) -> None:
    """See `Family`."""
    for clip in (run.data, *(stage.data for stage in run.generator_stages), *_shapes(run)):
      if clip.num_frames != 1:
        raise ValueError(
          f"data.num_frames={clip.num_frames}: this family makes images; set it to 1"
        )
      layout = _layout(run, clip)
      if layout.num_scales > run.generator.num_levels:
        raise ValueError(
          f"generator.num_levels={run.generator.num_levels} is less than the {layout.num_scales} "
          f"scales of {clip.resolution[0]}x{clip.resolution[1]} pixels; raise it"
        )
      by_scale("sampling.guidance", run.sampling.guidance, layout.num_scales)
    if -run.sampling.guidance_layer > run.generator.num_layers:
      raise ValueError(
        f"sampling.guidance_layer={run.sampling.guidance_layer}: the network has "
        f"{run.generator.num_layers} layers"
      )

  def check_mesh(self, run: Run, mesh) -> None:
    """See `Family`."""
    tensor, sequence = mesh.shape["tensor"], mesh.shape["sequence"]
    if run.generator.num_heads % (tensor * sequence):
      raise ShardingError(
        f"generator.num_heads={run.generator.num_heads} does not divide over mesh.tensor={tensor} "
        f"x mesh.sequence={sequence}; take fewer devices for them"
      )

  def num_tokens(self, run: Run, shape: ClipShape) -> int:
    """See `Family`."""
    return _layout(run, shape).length

  def describe(self, run: Run) -> dict[str, Any]:
    """See `Family`."""
    layout = _layout(run, run.data)
    return {"schedule": layout.cell_grids, "sequence_length": layout.length}

  def curves(self, run: Run) -> Curves:
    """See `Family`."""
    scales = _layout(run, run.data).grids
    labels = {f"bit_accuracy/scale_{s}": f"{h}x{w}" for s, (h, w) in enumerate(scales)}
    return Curves("bit accuracy, by scale", labels, chance=0.5)

  def make_module(self, run: Run):
    """See `Family`."""
    return lambda key: Network(nnx.Rngs(params=key), run.generator)

  def make_task(self, run: Run, stage: Stage, tokenizer, tokenizer_params: dict) -> InfinityTask:
    """See `Family`."""
    return InfinityTask(
      run.generator,
      tuple(_layout(run, clip) for clip in (stage.data, *stage.shapes)),
      stage.loss,
      tokenizer,
      tokenizer_params,
      run.text.encoder,
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
    size = sampled_resolution(run, stage, resolution)
    return Model(
      module,
      TOKENIZERS[self.tokenizer].make_tokenizer(tokenizer_module, size),
      run.text.encoder,
      size,
      run.sampling,
      mesh=mesh,
      dtype=jnp.float32 if dtype is None else dtype,
      batch_size=batch_size,
    )

  def flops(self, run: Run, stage: Stage) -> tuple[int, int]:
    """See `Family`."""
    layout = _layout(run, stage.data)
    return flops.forward_flops(run.generator, layout), flops.training_flops(run.generator, layout)

  def step_work(self, run: Run, stage: Stage, mesh) -> StepWork:
    """See `Family`."""
    return training_work.step_work(run.generator, _layout(run, stage.data), stage, mesh)

  def sample_latents(self, run: Run, stage: Stage, module: Network, text, seed):
    """See `Family`."""
    layout = _layout(run, stage.data)
    found = sample(module, layout, text, seed, run.text.encoder, run.sampling)
    return found.quantized[:, None]

  def sampling_work(self, run: Run, stage: Stage, batch_size: int) -> tuple[int, float]:
    """See `Family`."""
    layout = _layout(run, stage.data)
    passes = work.num_passes(run.sampling, layout)
    return layout.num_scales, batch_size * work.sampling_flops(run.generator, layout, passes)

  def sampling_program(self, run, stage, template, mesh, num_clips: int, dtype) -> SamplingProgram:
    """See `Family`."""
    layout, settings = _layout(run, stage.data), (run.generator, run.sampling, run.text.encoder)
    return work.sampling_program(*settings, layout, mesh, num_clips, jnp.dtype(dtype))


def sampled_resolution(
  run: Run, stage: Stage, resolution: tuple[int, int] | None
) -> tuple[int, int]:
  """Returns the (H, W) of the images that a network makes where a resolution is asked for.

  One that was trained on a public size makes the nearest public one, and says so in the log; others
  make any that the tokenizer can code.

  Args:
    run: the run that trained the network.
    stage: the stage that did.
    resolution: (H, W) in pixels; None for that of the stage.
  """
  if resolution is None:
    return tuple(stage.data.resolution)
  if _layout(run, stage.data).grids not in public_schedules().values():
    return tuple(resolution)
  size = nearest_resolution(tuple(resolution))
  if size != tuple(resolution):
    log.warning(
      "resolution=%dx%d: images have %dx%d pixels, the nearest public size", *resolution, *size
    )
  return size


def _shapes(run: Run) -> list[ClipShape]:
  return [shape for stage in run.generator_stages for shape in stage.shapes]


def _layout(run: Run, clip) -> Layout:
  config = run.generator
  return layout_of(run.tokenizer, clip.resolution, config.patch_size, config.rope_grid)
