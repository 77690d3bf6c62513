"""VideoAR as a family; see `models.base.Family`."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from videoar_jax.models.base import ClipShape, Curves, Run, SamplingProgram, Stage, StepWork
from videoar_jax.models.request import sample_keys
from videoar_jax.models.videoar import decode, work
from videoar_jax.models.videoar.config import GeneratorConfig, SamplingConfig, check_heads
from videoar_jax.models.videoar.flops import forward_flops, training_flops
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.models.videoar.sampler import Model
from videoar_jax.models.videoar.sequences import (
  all_layouts,
  guidance_of,
  guidance_shapes,
  layout_of,
  sampling_window,
  stage_layouts,
  trained_frames,
  widest_layout,
)
from videoar_jax.models.videoar.task import GeneratorLossConfig, GeneratorTask
from videoar_jax.tokenizers.bsq.tokenizer import Tokenizer
from videoar_jax.train.state import Template


def _size(num_layers, d_model, num_heads, num_kv_heads, head_dim, mlp_dim, dtype="float32"):
  return {
    "num_layers": num_layers,
    "d_model": d_model,
    "num_heads": num_heads,
    "num_kv_heads": num_kv_heads,
    "head_dim": head_dim,
    "mlp_dim": mlp_dim,
    "dtype": dtype,
  }


class VideoAR:
  """Next-frame, next-scale prediction of bits (arXiv 2601.05966)."""

  tokenizer = "bsq"
  tokenizers = ("bsq",)
  network = GeneratorConfig
  loss = GeneratorLossConfig
  sampling = SamplingConfig
  # `l`, `xl` and `4b` as in the paper, for accelerators.
  sizes: ClassVar[dict[str, dict[str, Any]]] = {
    "tiny": _size(4, 128, 2, 2, 64, 384),
    "small": _size(6, 256, 4, 4, 64, 768),
    "base": _size(12, 768, 12, 12, 64, 2048),
    "l": _size(24, 1536, 12, 12, 128, 4096, "bfloat16"),
    "xl": _size(32, 2048, 16, 16, 128, 5632, "bfloat16"),
    "4b": _size(36, 2560, 32, 8, 128, 9728, "bfloat16"),
  }
  derived = ("num_bits", "vocabulary_size", "text_dim")
  batch_fields = ()
  headline: ClassVar[dict[str, str]] = {"bit_accuracy": "bits {:.1%}"}

  def network_config(self, values: dict, tokenizer, text) -> dict:
    """See `Family`."""
    encoder = text.encoder
    return values | {
      "num_bits": tokenizer.num_bits,
      "vocabulary_size": encoder.vocabulary_size,
      "text_dim": encoder.text_dim,
    }

  def check(self, run: Run) -> None:
    """See `Family`."""
    layouts, network = all_layouts(run), run.generator
    for layout in layouts or [layout_of(run, run.data)]:
      guidance_of(run, layout)
    if network.positions == "learned" and len({layout.length for layout in layouts}) > 1:
      raise ValueError("generator.positions='learned' needs clips of one length; set 'rope'")
    if network.context == "full_frame" and len({layout.num_scales for layout in layouts}) > 1:
      raise ValueError(
        "generator.context='full_frame' needs one number of scales, but stages have several; set "
        "'scales'"
      )
    if network.has_place_embedding and len({layout.schedule for layout in layouts}) > 1:
      raise ValueError(
        "generator.has_place_embedding=True needs clips of one resolution; set it to False"
      )

  def check_mesh(self, run: Run, mesh) -> None:
    """See `Family`."""
    check_heads(run.generator, mesh)

  def num_tokens(self, run: Run, shape: ClipShape) -> int:
    """See `Family`."""
    return layout_of(run, shape).length

  def describe(self, run: Run) -> dict[str, Any]:
    """See `Family`."""
    layout = layout_of(run, run.data)
    return {"schedule": layout.schedule, "sequence_length": layout.length}

  def curves(self, run: Run) -> Curves:
    """See `Family`."""
    scales = layout_of(run, run.data).schedule
    labels = {f"bit_accuracy/scale_{s}": f"{h}x{w}" for s, (h, w) in enumerate(scales)}
    return Curves("bit accuracy, by scale", labels, chance=0.5)

  def make_module(self, run: Run):
    """See `Family`."""
    layout = widest_layout(run)
    return lambda key: Generator(nnx.Rngs(params=key), run.generator, layout)

  def make_task(
    self, run: Run, stage: Stage, tokenizer: Template | None, tokenizer_params: dict
  ) -> GeneratorTask:
    """See `Family`."""
    layout = layout_of(run, stage.data)
    table = guidance_of(run, layout)
    return GeneratorTask(
      run.generator,
      layout,
      stage.loss,
      tokenizer,
      tokenizer_params,
      run.text.encoder,
      {
        "guidance": table,
        "temperature": run.sampling.temperature,
        "top_p": run.sampling.top_p,
        "window": sampling_window(run, stage),
        "prefix_guidance": run.sampling.prefix_guidance.active(),
      },
      others=(*stage_layouts(run, stage), widest_layout(run)),
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
    dtype=jnp.float32,
    batch_size=None,
  ) -> Model:
    """See `Family`."""
    layout = _sampled_layout(run, stage, resolution)
    defaults = dataclasses.asdict(run.sampling)
    del defaults["window"]
    return Model(
      module,
      Tokenizer(tokenizer_module, layout.schedule),
      run.text.encoder,
      layout,
      defaults=defaults,
      window=stage.loss.window,
      sampling_window=sampling_window(run, stage),
      trained_frames=trained_frames(run, stage),
      guidance_shapes=guidance_shapes(run),
      mesh=mesh,
      dtype=dtype,
      batch_size=batch_size,
    )

  def flops(self, run: Run, stage: Stage) -> tuple[float, float]:
    """See `Family`."""
    clip = (run.generator, layout_of(run, stage.data), stage.loss.window)
    return forward_flops(*clip), training_flops(*clip)

  def step_work(self, run: Run, stage: Stage, mesh) -> StepWork:
    """See `Family`."""
    return work.step_work(run.generator, layout_of(run, stage.data), stage, mesh)

  def sample_latents(self, run: Run, stage: Stage, module: Generator, text, seed):
    """See `Family`."""
    layout, null = layout_of(run, stage.data), jnp.asarray(run.text.encoder.null())
    table = guidance_of(run, layout)
    keys = sample_keys(seed, jnp.arange(len(text)))
    table = None if (table == 1).all() else jnp.asarray(table)
    return decode.decode(
      module,
      layout,
      text,
      null,
      keys,
      table,
      temperature=run.sampling.temperature,
      top_p=run.sampling.top_p,
      window=sampling_window(run, stage),
      prefix_guidance=run.sampling.prefix_guidance.active(),
    ).quantized

  def sampling_work(self, run: Run, stage: Stage, batch_size: int) -> tuple[int, float]:
    """See `Family`."""
    layout = layout_of(run, stage.data)
    rows = 2 if work.is_guided(run, layout) else 1
    rows *= 2 if run.sampling.prefix_guidance.active() else 1
    return 1 + layout.num_steps, rows * batch_size * forward_flops(run.generator, layout)

  def sampling_program(self, run, stage, template, mesh, num_clips: int, dtype) -> SamplingProgram:
    """See `Family`."""
    return work.sampling_program(run, stage, template, mesh, num_clips, jnp.dtype(dtype))


def _sampled_layout(run: Run, stage: Stage, resolution: tuple[int, int] | None) -> Layout:
  """Returns the layout of a stage's clips at a resolution; None for the stage's own.

  Raises:
    ValueError: the tokenizer or the generator cannot make such clips.
  """
  own = layout_of(run, stage.data)
  if resolution is None:
    return own
  known = widest_layout(run)
  try:
    layout = layout_of(run, ClipShape(stage.data.num_frames, resolution))
  except ValueError as error:
    raise ValueError(str(error).removeprefix("data.")) from None
  where = "resolution={}x{}".format(*resolution)
  if run.generator.positions == "learned" and layout.schedule != own.schedule:
    raise ValueError(f"{where}: learned positions serve clips of one shape; leave it out")
  if run.generator.has_place_embedding and layout.schedule != own.schedule:
    raise ValueError(f"{where}: an embedding of places serves one resolution; leave it out")
  has_same_scales = layout.num_scales == known.num_scales
  if layout.num_scales > known.num_scales or (
    run.generator.context == "full_frame" and not has_same_scales
  ):
    raise ValueError(
      f"{where} has {layout.num_scales} scales, but the network was made for {known.num_scales}; "
      "take a resolution that it was trained on"
    )
  return layout
