"""NOVA as a family; see `models.base.Family`."""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from videoar_jax.models.base import ClipShape, Curves, Run, SamplingProgram, Stage, StepWork
from videoar_jax.models.nova import flops, generate, work
from videoar_jax.models.nova.config import NovaConfig, NovaSampling
from videoar_jax.models.nova.network import Nova as Network
from videoar_jax.models.nova.network import template_of
from videoar_jax.models.nova.sampler import Model
from videoar_jax.models.nova.task import NovaLossConfig, NovaTask, is_part, null_of, plan_of
from videoar_jax.models.prompts import text_settings
from videoar_jax.parallel.rules import ShardingError
from videoar_jax.train.state import flatten


def _size(d_model: int, num_heads: int, head_mlp_dim: int, num_head_layers: int) -> dict[str, Any]:
  return {
    "d_model": d_model,
    "num_heads": num_heads,
    "num_video_layers": 16,
    "num_image_layers": 32,
    "head_mlp_dim": head_mlp_dim,
    "num_head_layers": num_head_layers,
    "dtype": "bfloat16",
    "remat": "dots",
  }


class Nova:
  """Continuous tokens, set by set within frames, with a diffusion head (arXiv 2412.14169)."""

  tokenizer = "kl"
  tokenizers = ("kl", "kl_image", "kl_opensora")
  network = NovaConfig
  loss = NovaLossConfig
  sampling = NovaSampling
  # All but `tiny` are the public ones: T2I at 1024 pixels, and T2V.
  sizes: ClassVar[dict[str, dict[str, Any]]] = {
    "tiny": {
      "d_model": 128,
      "num_heads": 4,
      "num_video_layers": 4,
      "num_image_layers": 6,
      "head_mlp_dim": 256,
      "num_head_layers": 3,
    },
    "d48w768": _size(768, 12, 768, 6),
    "d48w1024": _size(1024, 16, 1024, 6),
    "d48w1536": _size(1536, 16, 1536, 6),
    "d48w1024-t2v": _size(1024, 16, 1280, 3),
  }
  derived = ("num_channels", "vocabulary_size", "text_dim", "text_length")
  batch_fields = ("flow",)
  headline: ClassVar[dict[str, str]] = {}

  def network_config(self, values: dict, tokenizer, text) -> dict:
    """See `Family`."""
    return values | {"num_channels": tokenizer.num_channels} | text_settings(text)

  def check(self, run: Run) -> None:
    """See `Family`."""
    if run.sampling.motion is not None and not run.generator.has_motion:
      raise ValueError("sampling.motion needs generator.has_motion=True; leave it unset")
    for clip in (run.data, *(shape for stage in run.generator_stages for shape in stage.shapes)):
      _check_shape(run, clip.num_frames, clip.resolution)
    for stage in run.generator_stages:
      _check_frozen(run.generator, stage)

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
    latent_shape = run.tokenizer.latent_shape(shape.num_frames, shape.resolution)
    return flops.Sizes.of(run.generator, latent_shape).total

  def describe(self, run: Run) -> dict[str, Any]:
    """See `Family`."""
    return {"tokens": self.num_tokens(run, ClipShape(run.data.num_frames, run.data.resolution))}

  def curves(self, run: Run) -> Curves:
    """See `Family`."""
    labels = {"loss_first": "first frames", "loss_later": "later frames"}
    return Curves("loss, by frame", labels)

  def make_module(self, run: Run):
    """See `Family`."""
    return lambda key: Network(nnx.Rngs(params=key), run.generator)

  def make_task(self, run: Run, stage: Stage, tokenizer, tokenizer_params: dict) -> NovaTask:
    """See `Family`."""
    return NovaTask(
      run.generator,
      run.tokenizer.latent_shape(stage.data.num_frames, stage.data.resolution),
      stage.loss,
      run.tokenizer_family,
      tokenizer,
      tokenizer_params,
      run.text.encoder,
      run.sampling,
      run.tokenizer,
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
    _check_shape(run, *shape)
    return Model(
      module,
      run.tokenizer_family.make_tokenizer(tokenizer_module),
      run.text.encoder,
      shape,
      run.sampling,
      mesh=mesh,
      dtype=jnp.float32 if dtype is None else dtype,
      batch_size=batch_size,
    )

  def flops(self, run: Run, stage: Stage) -> tuple[int, int]:
    """See `Family`."""
    clip = run.generator, work.sizes_of(run, stage), stage.loss.unknown, stage.loss.repeats
    return tuple(
      round(flops.mean_flops(count, *clip)) for count in (flops.forward_flops, flops.training_flops)
    )

  def step_work(self, run: Run, stage: Stage, mesh) -> StepWork:
    """See `Family`."""
    return work.step_work(run, stage, mesh)

  def sample_latents(self, run: Run, stage: Stage, module: Network, text, seed):
    """See `Family`."""
    shape = run.tokenizer.latent_shape(stage.data.num_frames, stage.data.resolution)
    plan = plan_of(run.generator, run.sampling, shape)
    draws = generate.key_draws(seed, jnp.arange(len(text)), plan, run.generator)
    null = jnp.asarray(null_of(run.text.encoder))
    return generate.generate(module, plan, text, null, None, draws)

  def sampling_work(self, run: Run, stage: Stage, batch_size: int) -> tuple[int, float]:
    """See `Family`."""
    return work.sampling_work(run, stage, batch_size)

  def sampling_program(self, run, stage, template, mesh, num_clips: int, dtype) -> SamplingProgram:
    """See `Family`."""
    return work.sampling_program(run, stage, template, mesh, num_clips, jnp.dtype(dtype))


def _check_shape(run: Run, num_frames: int, resolution: tuple[int, int]) -> None:
  """Raises ValueError if frames of a resolution do not divide into tokens."""
  _, h, w = run.tokenizer.latent_shape(num_frames, resolution)
  size = run.generator.video_patch_size
  if h % size or w % size:
    raise ValueError(
      f"generator.video_patch_size={size} does not divide latents of {h}x{w} cells, of "
      f"{resolution[0]}x{resolution[1]} pixels; take another resolution or patch"
    )


def _check_frozen(config: NovaConfig, stage: Stage) -> None:
  """Raises ValueError if a stage freezes what the network does not have, or all of it."""
  if not stage.loss.frozen:
    return
  field, names = f"stage.{stage.name}.loss.frozen", list(flatten(template_of(config).shapes))
  for part in stage.loss.frozen:
    if not any(is_part(name, part) for name in names):
      above = part.rpartition(".")[0]
      depth = above.count(".") + 1 if above else 0
      near = {".".join(name.split(".")[: depth + 1]) for name in names if is_part(name, above)}
      near = near or {name.split(".")[0] for name in names}
      raise ValueError(
        f"{field} names {part!r}, which this network does not have; it has "
        f"{', '.join(sorted(near))}"
      )
  if all(any(is_part(name, part) for part in stage.loss.frozen) for name in names):
    raise ValueError(f"{field} leaves nothing to train; name fewer parts")
