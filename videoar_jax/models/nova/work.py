"""Analytic costs of NOVA's training step and sampling: FLOPs, memory and traffic."""

import math

import jax
import jax.numpy as jnp

from videoar_jax.models.base import Run, SamplingProgram, SamplingWork, Stage, StepWork
from videoar_jax.models.nova import flops, generate, orders
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.network import template_of
from videoar_jax.models.nova.task import null_of, plan_of
from videoar_jax.nn.cache import cache_axes
from videoar_jax.nn.layers import count_parameters
from videoar_jax.parallel.mesh import num_batch_shards
from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES, replicated, sharding_of
from videoar_jax.parallel.traffic import device_bytes, gathered_bytes
from videoar_jax.train.state import Template, with_shardings

_BYTES = {"float32": 4, "bfloat16": 2}  # Of an activation.
_NORMED = 6  # Arrays of a block's width besides its products: norms, sums.


def sizes_of(run: Run, stage: Stage) -> flops.Sizes:
  """Returns the tokens of a stage's clips."""
  return flops.Sizes.of(run.generator, _latent_shape(run, stage), stage.loss.unknown)


def _latent_shape(run: Run, stage: Stage) -> tuple[int, int, int]:
  return run.tokenizer.latent_shape(stage.data.num_frames, stage.data.resolution)


def step_work(run: Run, stage: Stage, mesh) -> StepWork:
  """Estimates the network's part of a training step.

  Args:
    run: with the network.
    stage: with the clips and the batch size.
    mesh: devices, or an abstract one.
  """
  config, sizes, repeats = run.generator, sizes_of(run, stage), stage.loss.repeats
  clips = stage.loop.batch_size / num_batch_shards(mesh)
  clip = config, sizes, stage.loss.unknown
  total = flops.mean_flops(flops.training_flops, *clip, repeats)
  recomputed = {
    "none": 0,
    "dots": flops.mean_flops(flops.attention_flops, *clip),
    "full": flops.mean_flops(flops.layer_flops, *clip, repeats),
  }[config.remat]
  passes = 4 if config.remat == "full" else 3
  kept, moved = _activations(config, sizes, repeats, mesh, clips)
  return StepWork(
    flops=total,
    executed_flops=total + recomputed,
    passes=passes,
    activation_bytes=kept,
    moved_bytes=moved,
    sent_bytes=_activations_sent(config, sizes, mesh, clips, passes),
    live_share=1 / (config.num_video_layers + config.num_image_layers),
  )


def _activations(config: NovaConfig, sizes: flops.Sizes, repeats: int, mesh, clips: float):
  """Returns peak bytes kept for the backward pass, and bytes read and written in a step."""
  tensor, item = mesh.shape["tensor"], _BYTES[config.dtype]
  clips = clips / mesh.shape["sequence"]
  m, half, t = config.d_model, config.num_image_layers // 2, sizes.num_frames
  # Tokens of each layer, and the widths of what it keeps.
  temporal, spatial = sizes.temporal, t * (2 * sizes.slot + sizes.known + sizes.frame)
  tokens = clips * (config.num_video_layers * temporal + half * spatial)
  # Queries, keys, values and their mixture, and both sides of GELU; outputs of both branches.
  products = 2 * m + (4 + config.mlp_ratio) * m / tensor
  everything = _NORMED * m + products + (1 + config.mlp_ratio) * m / tensor
  noisy = clips * repeats * t * sizes.frame * config.num_head_layers
  head = config.head_mlp_dim
  head_products, head_all = 5 * head / tensor, (5 + 8) * head / tensor
  none = tokens * everything + noisy * head_all
  # One layer's, while it is computed again in the backward pass.
  widest = clips * max(temporal, t * (sizes.slot + sizes.frame)) * everything
  kept = {
    "none": none,
    "dots": tokens * (m + products) + noisy * (head + head_products) + widest,
    "full": tokens * m + noisy * head + widest,
  }[config.remat]
  # The head's condition and outer layers, and attention's scores where they are not tiled.
  outside = clips * t * sizes.frame * (2 * m + 2 * head + repeats * 4 * head)
  # Written and read in the forward pass, and twice that in the backward pass.
  return (kept + outside) * item, 6 * (none + outside) * item


def _activations_sent(config: NovaConfig, sizes: flops.Sizes, mesh, clips: float, passes: int):
  """Returns bytes sent per device and step because heads, MLP and sequence are sharded."""
  tensor, sequence = mesh.shape["tensor"], mesh.shape["sequence"]
  half = config.num_image_layers // 2
  spatial = sizes.num_frames * (2 * sizes.slot + sizes.known + sizes.frame)
  tokens = clips / sequence * (config.num_video_layers * sizes.temporal + half * spatial)
  # Each block sums its two outputs over the devices that share it, forward and backward.
  sums = 2 * 2 * (tensor - 1) / tensor * config.d_model
  # All-to-all of queries, keys, values and results, without each device's own part.
  parts = 4 * config.d_model / tensor * (1 - 1 / sequence)
  return passes * tokens * (sums + parts) * _BYTES[config.dtype]


def sampling_work(run: Run, stage: Stage, batch_size: int) -> tuple[int, float]:
  """Returns how often all weights are read to generate clips, and the FLOPs.

  The parts of the network run unequally often: weights are read as often as they would be if each
  step read all of them.
  """
  plan = plan_of(run.generator, run.sampling, _latent_shape(run, stage))
  total = flops.sampling_flops(run.generator, sizes_of(run, stage), plan)
  shapes = template_of(run.generator).shapes
  parts, reads = _parts(shapes), _reads(run.generator, plan)
  read = sum(count * count_parameters(parts[name]) for name, count in reads.items())
  return read // count_parameters(shapes), batch_size * total


def _num_sets(config: NovaConfig, plan: generate.Plan) -> int:
  num_tokens = math.prod(side // config.patch_size for side in plan.size)
  return len(orders.set_sizes(plan.num_ar_steps, num_tokens))


def _parts(params: dict) -> dict[str, dict]:
  """Returns the parts of the network that run equally often."""
  head, in_steps = params["head"], ("embed", "out")
  steps = {name: head[name] for name in in_steps}
  sets = {name: x for name, x in head.items() if name not in (*in_steps, "blocks")}
  # What tokens are scaled and shifted by is computed for all steps at once.
  blocks = {name: x for name, x in head["blocks"].items() if name != "modulated"}
  return {
    "temporal": params["temporal"],
    "spatial": params["spatial"],
    "sets": sets | {"blocks": head["blocks"]["modulated"]},
    "steps": steps | {"blocks": blocks},
  }


def _reads(config: NovaConfig, plan: generate.Plan) -> dict[str, int]:
  """Returns how often each of `_parts` runs for a clip."""
  sets = plan.num_frames * _num_sets(config, plan)
  return {
    "temporal": plan.num_frames,
    "spatial": sets,
    "sets": sets,
    "steps": sets * plan.num_diffusion_steps,
  }


def sampling_program(
  run: Run, stage: Stage, template: Template, mesh, num_clips: int, dtype: jnp.dtype
) -> SamplingProgram:
  """Returns the sampler's program, which makes whole clips.

  Raises:
    ShardingError: the mesh does not divide the heads.
  """
  config, latent_shape = run.generator, _latent_shape(run, stage)
  plan = plan_of(config, run.sampling, latent_shape)
  text, null = run.text.encoder.null(), null_of(run.text.encoder)
  cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), template.shapes)
  params = with_shardings(cast, template.shardings(mesh))

  def sample(net, text, seed, sample_ids):
    draws = generate.key_draws(seed, sample_ids, plan, config)
    return generate.generate(net, plan, text, jnp.asarray(null), None, draws)

  def rows(shape, dtype):
    split = sharding_of(("batch",) + (None,) * (len(shape) - 1), shape, mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

  seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated(mesh))
  texts = rows((num_clips, *text.shape), text.dtype)
  passes = plan.guidance.num_passes
  return SamplingProgram(
    program=jax.jit(sample),
    arguments=(template.module(params), texts, seed, rows((num_clips,), jnp.int32)),
    settings={},
    params=params,
    work=_sampling_work(config, plan, sizes_of(run, stage), num_clips, params, mesh),
    description="guided" if passes > 1 else "not guided",
    num_parts=plan.num_frames,
  )


def _sampling_work(
  config: NovaConfig, plan: generate.Plan, sizes: flops.Sizes, num_clips: int, params: dict, mesh
) -> SamplingWork:
  """Estimates the generation of clips.

  Args:
    config: the network.
    plan: how clips are sampled.
    sizes: of a clip.
    num_clips: how many are made together.
    params: shapes of the parameters, with their shardings.
    mesh: devices, or an abstract one.
  """
  parts = _parts(params)
  split = jax.tree.map(lambda x: x.sharding, parts)
  dtype, passes = jax.tree.leaves(params)[0].dtype, plan.guidance.num_passes
  cache_bytes = 0
  if sizes.num_frames > 1:
    rows = passes * num_clips, config.num_heads, sizes.temporal, config.head_dim
    keys = jax.ShapeDtypeStruct((2 * config.num_video_layers, *rows), dtype)
    shards = math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES["attended_heads"])
    axes = cache_axes(config.num_heads, shards)
    cache_bytes = device_bytes(keys, sharding_of(axes, keys.shape, mesh))
  reads, sets = _reads(config, plan), _num_sets(config, plan)
  used, gathered = 0.0, 0.0
  for name, count in reads.items():
    read, sent = gathered_bytes(parts[name], split[name])
    used, gathered = used + count * read, gathered + count * sent
  tokens = sizes.temporal * config.num_video_layers
  groups = generate.set_groups(orders.set_sizes(plan.num_ar_steps, sizes.frame))
  lengths = sum(len(g.sizes) * (2 * sizes.slot + g.capacity + sizes.frame) for g in groups)
  tokens += sizes.num_frames * lengths * config.num_image_layers // 2
  tensor = mesh.shape["tensor"]
  on_device = passes * num_clips / num_batch_shards(mesh)
  sums = 4 * on_device * tokens * config.d_model * dtype.itemsize * (tensor - 1) / tensor
  return SamplingWork(
    num_steps=sizes.num_frames * (1 + sets),
    flops=num_clips * flops.sampling_flops(config, sizes, plan),
    memory_traffic=used + sizes.num_frames * cache_bytes,
    link_traffic=gathered + sums,
    cache_bytes=cache_bytes,
  )
