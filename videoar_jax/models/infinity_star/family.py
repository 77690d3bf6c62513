"""InfinityStar as a family; see `models.base.Family`."""

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
from videoar_jax.models.infinity_star.sequences import layout_of, released_parts
from videoar_jax.models.infinity_star.task import InfinityStarLossConfig, InfinityStarTask
from videoar_jax.models.prompts import text_settings
from videoar_jax.models.request import sample_keys
from videoar_jax.parallel.rules import ShardingError


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
          released_parts(schedule)

  def check_mesh(self, run: Run, mesh) -> None:
    """See `Family`."""
    num_parts = mesh.shape["tensor"] * mesh.shape["sequence"]
    if run.generator.num_heads % num_parts:
      raise ShardingError(
        f"generator.num_heads={run.generator.num_heads} does not divide over "
        f"mesh.tensor={mesh.shape['tensor']} x mesh.sequence={mesh.shape['sequence']}; take fewer "
        "devices for them"
      )

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
    shape = ClipShape(stage.data.num_frames, tuple(resolution or stage.data.resolution))
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


def _layout(run: Run, clip: ClipShape | Data) -> Layout:
  """Returns the sequence of a clip.

  Raises:
    ValueError: the tokenizer cannot code such clips, or the network's scales do not fit.
  """
  return layout_of(run.generator, run.tokenizer.latent_shape(clip.num_frames, clip.resolution))
