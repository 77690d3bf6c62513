"""Analytic costs of VideoAR's training step and sampling: FLOPs, memory and traffic."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from videoar_jax.models.base import Run, SamplingProgram, SamplingWork, Stage, StepWork
from videoar_jax.models.request import sample_keys
from videoar_jax.models.videoar import decode, decode_steps
from videoar_jax.models.videoar.config import GeneratorConfig
from videoar_jax.models.videoar.flops import forward_flops, training_flops, visible_pairs
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.prefix import PrefixGuidance
from videoar_jax.models.videoar.sequences import guidance_of, layout_of, sampling_window
from videoar_jax.nn.cache import cache_axes, length_of
from videoar_jax.parallel.mesh import num_batch_shards
from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES, replicated, sharding_of
from videoar_jax.parallel.traffic import device_bytes, gathered_bytes
from videoar_jax.train.state import Template, with_shardings

_BYTES = {"float32": 4, "bfloat16": 2}  # Of an activation.


def step_work(config: GeneratorConfig, layout: Layout, stage: Stage, mesh) -> StepWork:
  """Estimates the transformer's part of a training step.

  Args:
    config: the network's.
    layout: of a clip.
    stage: with the batch size.
    mesh: devices, or an abstract one.
  """
  clips = stage.loop.batch_size / num_batch_shards(mesh)
  window = stage.loss.window
  flops = training_flops(config, layout, window)
  pairs = visible_pairs(layout.mask(window))
  attention = 4 * pairs * config.num_heads * config.head_dim * config.num_layers
  recomputed = {"none": 0, "dots": attention, "full": flops / 3}[config.remat]
  passes = 4 if config.remat == "full" else 3
  kept, moved = _activations(config, layout, mesh, clips)
  return StepWork(
    flops=flops,
    executed_flops=flops + recomputed,
    passes=passes,
    activation_bytes=kept,
    moved_bytes=moved,
    sent_bytes=_activations_sent(config, layout, mesh, clips, passes),
    live_share=1 / config.num_layers,
  )


def _activations(config: GeneratorConfig, layout: Layout, mesh, clips: float):
  """Returns peak bytes kept for the backward pass, and bytes read and written in a step."""
  tokens = clips * layout.length / mesh.shape["sequence"]
  k = config.head_dim
  split = (2 * config.num_heads + 2 * config.num_kv_heads) * k + 3 * config.mlp_dim
  products = 2 * config.d_model + split / mesh.shape["tensor"]
  block = tokens * (4 * config.d_model + products) * _BYTES[config.dtype]
  residual = tokens * config.d_model * _BYTES[config.dtype]
  kept = {
    "none": config.num_layers * block,
    "dots": config.num_layers * (residual + tokens * products * _BYTES[config.dtype]),
    "full": config.num_layers * residual + block,
  }[config.remat]
  # The backward pass also holds gradients of a block's widest arrays.
  widest = tokens * 3 * config.mlp_dim / mesh.shape["tensor"] * _BYTES[config.dtype]
  # Written and read in the forward pass, and twice that in the backward pass.
  return kept + widest, 6 * config.num_layers * block


def _activations_sent(
  config: GeneratorConfig, layout: Layout, mesh, clips: float, passes: int
) -> float:
  """Returns bytes sent per device and step because heads, MLP and sequence are sharded."""
  sizes = mesh.shape
  tokens = clips * layout.length / sizes["sequence"]
  # Each block sums its two outputs over the devices that share it, forward and backward.
  sums = 2 * passes * tokens * config.d_model * _BYTES[config.dtype]
  sums *= 2 * (sizes["tensor"] - 1) / sizes["tensor"]
  # All-to-all of queries and results, without each device's own part, and of keys and values; where
  # these have too few heads, each device gathers all of a sequence's.
  tensor, sequence = sizes["tensor"], sizes["sequence"]
  queries, keys = (
    2 * heads * config.head_dim / tensor for heads in (config.num_heads, config.num_kv_heads)
  )
  parts = queries * (1 - 1 / sequence)
  if config.num_kv_heads % (tensor * sequence) == 0:
    parts += keys * (1 - 1 / sequence)
  elif config.num_kv_heads % tensor == 0:
    parts += keys * (sequence - 1)
  else:
    parts += keys * (tensor * sequence - 1)
  return config.num_layers * (sums + passes * tokens * parts * _BYTES[config.dtype])


def is_guided(run: Run, layout: Layout) -> bool:
  """Returns whether clips are decoded with classifier-free guidance."""
  table = guidance_of(run, layout)
  return bool((table != 1).any())


def sampling_program(
  run: Run, stage: Stage, template: Template, mesh, num_clips: int, dtype: jnp.dtype
) -> SamplingProgram:
  """Returns the sampler's program for one frame, its most expensive, with a full cache.

  Raises:
    ShardingError: the mesh does not divide the heads.
  """
  layout, text = layout_of(run, stage.data), run.text.encoder.null()
  guided, prefix = is_guided(run, layout), run.sampling.prefix_guidance.active()
  cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), template.shapes)
  params = with_shardings(cast, template.shardings(mesh))
  model = template.module(params)
  start = functools.partial(
    decode_steps.start,
    slots=decode_steps.num_slots(layout.num_frames, sampling_window(run, stage)),
    is_guided=guided,
    is_prefix_guided=prefix is not None,
  )
  state = jax.eval_shape(
    lambda model, texts: start(model, layout, texts, text, sample_keys(0, jnp.arange(num_clips))),
    model,
    jax.ShapeDtypeStruct((num_clips, *text.shape), text.dtype),
  )
  head_shards = math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES["attended_heads"])
  cached = cache_axes(run.generator.num_kv_heads, head_shards)
  axes = {
    "text": cached,
    "cache": cached,
    "text_mask": ("batch", None),
    "keys": ("batch",),
    "before": ("batch", None, None, None),
    "frame": (),
  }
  parts = {}
  for name, names in axes.items():
    part = getattr(state, name)
    split = jax.tree.map(lambda x, names=names: sharding_of(names, x.shape, mesh), part)
    parts[name] = with_shardings(part, split)
  state = dataclasses.replace(state, **parts)
  whole = replicated(mesh)
  row = jax.ShapeDtypeStruct((layout.num_scales,), jnp.float32, sharding=whole)
  number = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
  settings = {"temperature": number, "top_p": number}
  if prefix is not None:
    settings["prefix_guidance"] = PrefixGuidance(number, number)
  return SamplingProgram(
    # As in streams.
    program=jax.jit(decode.decode_frame, static_argnums=1, donate_argnums=2),
    arguments=(model, layout, state, row),
    settings=settings,
    params=params,
    work=_sampling_work(
      run.generator, layout, len(state.text_mask), params, (state.text, state.cache), mesh
    ),
    description=("guided" if guided else "not guided") + (", also by prefix" if prefix else ""),
    num_parts=layout.num_frames,
  )


def _sampling_work(
  config: GeneratorConfig, layout: Layout, num_rows: int, params: dict, cache, mesh
) -> SamplingWork:
  """Estimates the decoding of clips.

  Attention is to the whole cache, written or not, as on accelerators.

  Args:
    config: the network's.
    layout: a clip's sequence.
    num_rows: clips, counted twice if guided.
    params: shapes of the parameters, with their shardings.
    cache: shapes of the keys and values of the prompt and the frames, with their shardings.
    mesh: devices, or an abstract one.
  """
  split, cached = (jax.tree.map(lambda x: x.sharding, tree) for tree in (params, cache))
  cache_bytes = device_bytes(cache, cached)
  used, gathered = gathered_bytes(params, split)
  sizes, num_steps = layout.scale_sizes, layout.num_steps
  num_latents = num_steps - layout.num_frames * layout.num_scales  # Complete ones, after frames.
  num_tokens = layout.length - layout.text_length
  length = sum(map(length_of, cache))
  own_pairs = sum(size * sum(sizes[: s + 1]) for s, size in enumerate(sizes))
  pairs = num_tokens * length + layout.num_frames * own_pairs + num_latents * layout.final_size**2
  heads = config.num_heads * config.head_dim
  seen = visible_pairs(layout.mask())
  attention = 4 * config.num_layers * heads * (pairs - seen)
  rows = num_rows / num_batch_shards(mesh)
  item = jax.tree.leaves(params)[0].dtype.itemsize
  tensor = mesh.shape["tensor"]
  sums = 4 * config.num_layers * rows * num_tokens * config.d_model * item * (tensor - 1) / tensor
  return SamplingWork(
    num_steps=num_steps,
    flops=num_rows * (forward_flops(config, layout) + attention),
    memory_traffic=num_steps * (used + cache_bytes),
    link_traffic=num_steps * gathered + sums,
    cache_bytes=cache_bytes,
  )
