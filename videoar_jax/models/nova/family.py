"""NOVA as a family; see `models.base.Family`."""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from videoar_jax.models.base import ClipShape, Curves, Run, Stage
from videoar_jax.models.nova import generate
from videoar_jax.models.nova.config import NovaConfig, NovaSampling
from videoar_jax.models.nova.network import Nova as Network
from videoar_jax.models.nova.sampler import Model
from videoar_jax.models.nova.task import NovaLossConfig, NovaTask, null_of, plan_of
from videoar_jax.parallel.rules import ShardingError


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
  tokenizers = ("kl",)
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
  batch_fields = ()
  headline: ClassVar[dict[str, str]] = {}

  def network_config(self, values: dict, tokenizer, text) -> dict:
    """See `Family`."""
    return values | {
      "num_channels": tokenizer.num_channels,
      "vocabulary_size": text.encoder.vocabulary_size,
      "text_dim": text.encoder.text_dim,
      "text_length": text.length,
    }

  def check(self, run: Run) -> None:
    """See `Family`."""
    if run.sampling.motion is not None and not run.generator.has_motion:
      raise ValueError("sampling.motion needs generator.has_motion=True; leave it unset")
    clips = (run.data, *(stage.data for stage in run.generator_stages))
    for clip in clips:
      _, h, w = run.tokenizer.latent_shape(clip.num_frames, clip.resolution)
      size = run.generator.video_patch_size
      if h % size or w % size:
        raise ValueError(
          f"generator.video_patch_size={size} does not divide latents of {h}x{w} cells, of "
          f"{clip.resolution[0]}x{clip.resolution[1]} pixels; take another resolution or patch"
        )

  def check_mesh(self, run: Run, mesh) -> None:
    """See `Family`."""
    if run.generator.num_heads % mesh.shape["tensor"]:
      raise ShardingError(
        f"generator.num_heads={run.generator.num_heads} does not divide over "
        f"mesh.tensor={mesh.shape['tensor']}; take fewer devices for it"
      )
    if mesh.shape["sequence"] > 1:
      raise ShardingError("mesh.sequence: this family does not split sequences; set it to 1")

  def num_tokens(self, run: Run, shape: ClipShape) -> int:
    """See `Family`."""
    t, h, w = run.tokenizer.latent_shape(shape.num_frames, shape.resolution)
    config = run.generator
    image, video = (h * w // size**2 for size in (config.patch_size, config.video_patch_size))
    return run.text.length + t * (image + video)

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
    shape = run.tokenizer.latent_shape(stage.data.num_frames, stage.data.resolution)
    plan = plan_of(run.generator, run.sampling, shape)
    draws = generate.key_draws(seed, jnp.arange(len(text)), plan, run.generator)
    null = jnp.asarray(null_of(run.text.encoder))
    return generate.generate(module, plan, text, null, None, draws)

  def sampling_work(self, run: Run, stage: Stage, batch_size: int) -> None:
    """See `Family`."""

  def sampling_program(self, run, stage, template, mesh, num_clips: int, dtype) -> None:
    """See `Family`."""
