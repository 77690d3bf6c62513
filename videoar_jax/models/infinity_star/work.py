"""Analytic costs of InfinityStar's sampling, and its largest program.

Resizing of codes is not counted.
"""

import dataclasses

import jax
import jax.numpy as jnp

from videoar_jax.models.base import SamplingProgram, SamplingWork
from videoar_jax.models.decoding_work import CachedLayers
from videoar_jax.models.infinity_star import generate, programs
from videoar_jax.models.infinity_star.config import InfinityStarConfig, InfinityStarSampling
from videoar_jax.models.infinity_star.layout import Layout
from videoar_jax.models.infinity_star.network import template_of
from videoar_jax.parallel.rules import replicated, sharding_of
from videoar_jax.parallel.traffic import gathered_bytes
from videoar_jax.train.state import with_shardings


def sampling_flops(config: InfinityStarConfig, layout: Layout, num_passes: int) -> int:
  """Returns the FLOPs of sampling a clip.

  Args:
    config: the network.
    layout: of a clip.
    num_passes: see `num_passes`.
  """
  k, m = config.head_dim, config.d_model
  heads, kv_heads = config.num_heads * k, config.num_kv_heads * k
  weights = m * (2 * heads + 2 * kv_heads) + 3 * m * config.mlp_dim

  def blocks(num: int, length: int) -> int:
    return config.num_layers * num * (weights + 2 * length * heads)

  text = layout.text_length
  total, inputs = blocks(text, text) + text * config.text_dim * m, 0
  for scale, seen in zip(layout.scales, _seen(layout), strict=True):
    n = scale.num_tokens
    total += scale.repetitions * (blocks(n, n + seen) + 2 * n * m * scale.num_bits)
    inputs += scale.repetitions * n * m * config.num_channels
  return 2 * (num_passes * total + inputs)


def _seen(layout: Layout) -> list[int]:
  """Returns how many earlier tokens each scale sees: of the prompt, and of its context."""
  contexts = [0 if s is None else layout.schedule[s].num_tokens for s in layout.contexts]
  return [layout.text_length + context for context in contexts]


def num_steps(layout: Layout) -> int:
  """Returns how often the network runs: for the prompt, and each repetition of a scale."""
  return 1 + sum(scale.repetitions for scale in layout.schedule)


def num_passes(sampling: InfinityStarSampling) -> int:
  """Returns how many rows of the network a clip has: two with guidance, which share inputs."""
  return 1 if sampling.guidance == 1 else 2


def sampling_program(
  config: InfinityStarConfig,
  sampling: InfinityStarSampling,
  layout: Layout,
  mesh,
  num_clips: int,
  dtype: jnp.dtype,
) -> SamplingProgram:
  """Returns the sampler's program for the scale that costs most.

  Args:
    config: the network.
    sampling: how clips are sampled.
    layout: of a clip.
    mesh: devices, or an abstract one.
    num_clips: that are sampled together.
    dtype: of the weights.
  Raises:
    ShardingError: the mesh does not divide the heads.
  """
  # Adapters are merged for sampling.
  config = dataclasses.replace(config, lora_rank=0)
  template = template_of(config)
  cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), template.shapes)
  params = with_shardings(cast, template.shardings(mesh))
  net, passes = template.module(params), num_passes(sampling)
  layers = CachedLayers(
    mesh,
    passes * num_clips,
    config.num_layers,
    config.d_model,
    config.num_heads,
    config.num_kv_heads,
    config.head_dim,
    jnp.dtype(net.activation_dtype),
  )
  seen = _seen(layout)
  sizes = [scale.num_tokens for scale in layout.scales]
  largest = max(range(len(seen)), key=lambda s: sizes[s] * (sizes[s] + seen[s]))
  scale, context = layout.scales[largest], layout.contexts[largest]
  whole = replicated(mesh)

  def everywhere(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

  total = (num_clips, scale.num_frames, *layout.grid, config.num_channels)
  split = sharding_of(("batch", None, None, None, None), total, mesh)
  documents = [layout.text_length]
  documents += [] if context is None else [sizes[context]]
  guidance = generate.Guidance.of(sampling)
  arguments = (
    net,
    dataclasses.replace(scale, start=0, pyramid=0),
    layout.grid,
    jax.ShapeDtypeStruct(total, jnp.float32, sharding=split),
    everywhere((scale.num_tokens, 4)),
    tuple(map(layers.cache, documents)),
    everywhere((passes, num_clips, layout.text_length), jnp.bool_),
    generate.Guidance(guidance.kind, everywhere(()), everywhere(())),
    everywhere(()),
    everywhere((num_clips, 2), jnp.uint32),
    everywhere((), jnp.int32),
  )
  return SamplingProgram(
    program=programs.scale_program(),
    arguments=arguments,
    settings={"is_kept": generate.is_kept(layout, largest)},
    params=params,
    work=_sampling_work(config, layout, layers, num_clips, params),
    description="guided" if passes > 1 else "not guided",
    num_parts=layout.schedule[-1].stop,
  )


def _sampling_work(
  config: InfinityStarConfig, layout: Layout, layers: CachedLayers, num_clips: int, params: dict
) -> SamplingWork:
  """Estimates the sampling of clips.

  Args:
    config: the network.
    layout: of a clip.
    layers: on the mesh.
    num_clips: that are sampled together.
    params: shapes of the parameters, with their shardings.
  """
  used, gathered = gathered_bytes(params, jax.tree.map(lambda x: x.sharding, params))
  tensor, k = layers.mesh.shape["tensor"], config.head_dim
  # Norms and sums, whole on every device; queries, keys, values, their mixture, and the MLP.
  split = 2 * (config.num_heads + config.num_kv_heads) * k + 3 * config.mlp_dim
  width = 4 * config.d_model + split / tensor
  calls = [(1, layout.text_length, layout.text_length)]
  calls += [
    (scale.repetitions, scale.num_tokens, scale.num_tokens + seen)
    for scale, seen in zip(layout.scales, _seen(layout), strict=True)
  ]
  memory = links = 0.0
  for count, num, length in calls:
    memory += count * (used + layers.attention_bytes(num, length) + layers.token_bytes(num, width))
    links += count * (gathered + layers.sum_bytes(num, 2))
  return SamplingWork(
    num_steps=num_steps(layout),
    flops=num_clips * sampling_flops(config, layout, layers.rows // num_clips),
    memory_traffic=memory,
    link_traffic=links,
    cache_bytes=layers.cache_bytes(max(_kept(layout))),
    activation_bytes=max(
      layers.held_bytes(num, length, config.mlp_dim) for _, num, length in calls
    ),
  )


def _kept(layout: Layout) -> list[int]:
  """Returns the tokens whose keys and values are kept while each scale runs, its own included."""
  return [
    seen + (scale.num_tokens if generate.is_kept(layout, s) else 0)
    for s, (scale, seen) in enumerate(zip(layout.scales, _seen(layout), strict=True))
  ]
