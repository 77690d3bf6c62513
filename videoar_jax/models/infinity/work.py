"""Analytic costs of Infinity's sampling, and its program, which makes whole images.

Norms, modulation and the resizing of codes are not counted.
"""

from typing import Any

import jax
import jax.numpy as jnp

from videoar_jax.models.base import SamplingProgram, SamplingWork
from videoar_jax.models.decoding_work import CachedLayers
from videoar_jax.models.infinity.config import InfinityConfig, InfinitySampling, by_scale
from videoar_jax.models.infinity.layout import Layout
from videoar_jax.models.infinity.network import template_of
from videoar_jax.models.infinity.task import sample
from videoar_jax.parallel.rules import replicated, sharding_of
from videoar_jax.parallel.traffic import gathered_bytes
from videoar_jax.train.state import with_shardings


def sampling_flops(config: InfinityConfig, layout: Layout, num_passes: int) -> int:
  """Returns the FLOPs of sampling an image.

  Args:
    config: the network.
    layout: of an image.
    num_passes: see `num_passes`.
  """
  m, text = config.d_model, config.text_length
  # Self-attention has four products with weights, attention to the prompt two, and its keys two.
  weights = 6 * m**2 + 2 * m * config.mlp_dim
  total = config.num_layers * text * 2 * m**2
  # Pooling of the prompt, and its projection.
  total += text * (3 * m * config.text_width + m**2)
  for num, length in zip(layout.sizes, _lengths(layout), strict=True):
    logits = 2 * m * config.token_width
    total += num * (config.num_layers * (weights + 2 * (length + text) * m) + logits)
  # The first token is made of the prompt.
  inputs = (layout.length - 1) * m * config.token_width
  return 2 * (num_passes * total + inputs)


def _lengths(layout: Layout) -> list[int]:
  """Returns how many tokens each scale sees, its own included."""
  return [layout.slice_of(s).stop for s in range(layout.num_scales)]


def num_passes(sampling: InfinitySampling, layout: Layout) -> int:
  """Returns how many rows of the network an image has: two with guidance, which share inputs."""
  table = by_scale("guidance", sampling.guidance, layout.num_scales)
  return 1 if (table == 1).all() else 2


def sampling_program(
  config: InfinityConfig,
  sampling: InfinitySampling,
  encoder: Any,
  layout: Layout,
  mesh,
  num_images: int,
  dtype: jnp.dtype,
) -> SamplingProgram:
  """Returns the sampler's program.

  Args:
    config: the network.
    sampling: how images are sampled.
    encoder: of prompts, with `encode` and `null`.
    layout: of an image.
    mesh: devices, or an abstract one.
    num_images: that are sampled together.
    dtype: of the weights.
  Raises:
    ShardingError: the mesh does not divide the heads.
  """
  template = template_of(config)
  cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), template.shapes)
  params = with_shardings(cast, template.shardings(mesh))
  net, passes, null = template.module(params), num_passes(sampling, layout), encoder.null()

  def sample_latents(net, text, seed):
    found = sample(net, layout, text, seed, encoder, sampling)
    return found.quantized

  split = sharding_of(("batch",) + (None,) * null.ndim, (num_images, *null.shape), mesh)
  layers = CachedLayers(
    mesh,
    passes * num_images,
    config.num_layers,
    config.d_model,
    config.num_heads,
    config.num_heads,
    config.head_dim,
    jnp.dtype(net.dtype),
  )
  return SamplingProgram(
    program=jax.jit(sample_latents),
    arguments=(
      net,
      jax.ShapeDtypeStruct((num_images, *null.shape), null.dtype, sharding=split),
      jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated(mesh)),
    ),
    settings={},
    params=params,
    work=_sampling_work(config, layout, layers, num_images, params),
    description="guided" if passes > 1 else "not guided",
    num_parts=1,
  )


def _sampling_work(
  config: InfinityConfig, layout: Layout, layers: CachedLayers, num_images: int, params: dict
) -> SamplingWork:
  """Estimates the sampling of images.

  Args:
    config: the network.
    layout: of an image.
    layers: on the mesh.
    num_images: that are sampled together.
    params: shapes of the parameters, with their shardings.
  """
  used, gathered = gathered_bytes(params, jax.tree.map(lambda x: x.sharding, params))
  tensor, text = layers.mesh.shape["tensor"], config.text_length
  # Norms and sums, whole on every device; products of both attentions, and the MLP.
  width = 6 * config.d_model + (6 * config.d_model + 2 * config.mlp_dim) / tensor
  memory = links = 0.0
  for num, length in zip(layout.sizes, _lengths(layout), strict=True):
    attention = layers.attention_bytes(num, length) + layers.attention_bytes(num, text)
    memory += used + attention + layers.token_bytes(num, width)
    links += gathered + layers.sum_bytes(num, 3)
  return SamplingWork(
    num_steps=layout.num_scales,
    flops=num_images * sampling_flops(config, layout, layers.rows // num_images),
    memory_traffic=memory,
    link_traffic=links,
    # The last scale's are seen by none after it.
    cache_bytes=layers.cache_bytes(text + layout.length - layout.sizes[-1]),
    activation_bytes=max(
      layers.held_bytes(num, length, config.mlp_dim)
      for num, length in zip(layout.sizes, _lengths(layout), strict=True)
    ),
  )
