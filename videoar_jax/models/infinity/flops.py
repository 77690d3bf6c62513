"""Counts the FLOPs of Infinity, two per multiply-add.

Counted are products with weights, and attention over the pairs of tokens that see each other and
over all rows of a prompt, padding included; norms, rotations, softmax, lookups, interpolation and
rematerialization are not counted.
"""

import itertools

from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity.layout import Layout


def attention_flops(config: InfinityConfig, layout: Layout) -> int:
  """Returns the FLOPs of attention's products of tokens with tokens and rows, in all layers."""
  pairs = visible_pairs(layout) + layout.length * config.text_length
  # Each pair costs a product of query and key, and one of weight and value.
  return 4 * pairs * config.d_model * config.num_layers


def layer_flops(config: InfinityConfig, layout: Layout) -> int:
  """Returns the share of `forward_flops` in layers, which are recomputed with `remat="full"`."""
  m = config.d_model
  tokens = layout.length * (6 * m**2 + 2 * m * config.mlp_dim)
  rows = config.text_length * 2 * m**2
  return 2 * config.num_layers * (tokens + rows) + attention_flops(config, layout)


def forward_flops(config: InfinityConfig, layout: Layout) -> int:
  """Returns the FLOPs of one image's teacher-forced logits."""
  m, width, rows = config.d_model, config.text_width, config.text_length
  # What tokens attend to; keys, values and the one query of the pool.
  text = rows * (width * m + m**2) + rows * 2 * m * width + 2 * rows * m + m**2
  modulations = 8 * m**2
  head = layout.length * 2 * config.token_width * m
  outside = text + modulations + _inputs(config, layout) + head
  return layer_flops(config, layout) + 2 * outside


def training_flops(config: InfinityConfig, layout: Layout) -> int:
  """Returns the FLOPs of one image in a training step.

  Every product takes two more in the backward pass; gradients of input bits are not needed.
  """
  return 3 * forward_flops(config, layout) - 2 * _inputs(config, layout)


def visible_pairs(layout: Layout) -> int:
  """Returns how many pairs (query, key) of tokens see each other."""
  seen = itertools.accumulate(layout.sizes)
  return sum(size * num for size, num in zip(layout.sizes, seen, strict=True))


def _inputs(config: InfinityConfig, layout: Layout) -> int:
  """Returns the multiply-adds of the products with input bits; the first token has none."""
  return (layout.length - 1) * config.token_width * config.d_model
