"""Counts the FLOPs of the transformer, two per multiply-add.

Counted are products with weights, and attention over the pairs of tokens that the mask allows;
norms, rotations, softmax, lookups and rematerialization are not counted.
"""

from videoar_jax.models.videoar.config import GeneratorConfig
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.nn.mask import BlockCausalMask


def forward_flops(config: GeneratorConfig, layout: Layout, window: int | None = None) -> int:
  """Returns the FLOPs of one clip's teacher-forced logits."""
  m, k = config.d_model, config.head_dim
  n, g = config.num_heads, config.num_kv_heads
  weights = m * k * (2 * n + 2 * g) + 3 * m * config.mlp_dim
  pairs = visible_pairs(layout.mask(window))
  # Each pair of tokens costs a product of query and key, and one of weight and value.
  blocks = config.num_layers * (layout.length * weights + 2 * pairs * n * k)
  num_video = layout.length - layout.text_length
  text = layout.text_length * config.text_dim * m
  ends = num_video * layout.feature_width(config.num_bits) * m
  ends += layout.num_frames * layout.frame_size * m * layout.logit_width(config.num_bits)
  return 2 * (blocks + text + ends)


def training_flops(config: GeneratorConfig, layout: Layout, window: int | None = None) -> int:
  """Returns the FLOPs of one clip in a training step.

  Every product takes two more in the backward pass; gradients of input features are not needed.
  """
  num_video = layout.length - layout.text_length
  unneeded = (
    num_video * layout.feature_width(config.num_bits) + layout.text_length * config.text_dim
  )
  return 3 * forward_flops(config, layout, window) - 2 * unneeded * config.d_model


def visible_pairs(mask: BlockCausalMask) -> int:
  """Returns how many pairs (query, key) a mask allows, padding and dropped frames included."""
  first, end = mask.own
  pairs = int((end - first).sum())
  for group in range(mask.num_groups):
    own = mask.slice_of(group)
    seen = (group - mask.first_seen(group)) * mask.shown_size
    pairs += (own.stop - own.start) * (mask.prefix + seen)
  return pairs
