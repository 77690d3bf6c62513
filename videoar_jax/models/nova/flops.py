"""Counts the FLOPs of NOVA, two per multiply-add.

Counted are products with weights, and attention over the pairs of tokens that see each other, as
they are run: the encoder's known tokens are padded to the most that may be known, and the head
leaves out only those that are known for certain. Norms, softmax, lookups, rematerialization, and
embeddings of what all tokens share, such as a frame's time, are not counted.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from videoar_jax.models.nova import orders
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.generate import Plan, set_groups
from videoar_jax.models.nova.orders import UnknownShare
from videoar_jax.models.nova.tokens import NUM_FREQUENCIES

_NUM_MOTION = 2  # Motion tokens.


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How many tokens a clip has.

  Attributes:
    prefix: of text and motion.
    num_frames: latent frames.
    slot: of a frame in the temporal encoder.
    frame: of a frame in the spatial transformer.
    known: places for known tokens of a frame in training.
    noised: tokens of a frame that the head is trained on.
  """

  prefix: int
  num_frames: int
  slot: int
  frame: int
  known: int
  noised: int

  @classmethod
  def of(
    cls,
    config: NovaConfig,
    latent_shape: tuple[int, int, int],
    unknown: UnknownShare = UnknownShare(),  # noqa: B008, it is frozen.
  ) -> "Sizes":
    """Returns those of a clip with latents of (t, h, w), the most that a step may have."""
    t, *cells = latent_shape
    slot, frame = (
      math.prod(side // size for side in cells)
      for size in (config.video_patch_size, config.patch_size)
    )
    prefix = config.text_length + _NUM_MOTION * config.has_motion
    return cls(prefix, t, slot, frame, max(unknown.most_known(frame), 1), frame)

  def ranges(self, unknown: UnknownShare) -> list[tuple["Sizes", float]]:
    """Returns those of each range of known tokens, and how likely it is."""
    return [
      (
        dataclasses.replace(self, known=max(known.most, 1), noised=self.frame - known.least),
        known.chance,
      )
      for known in unknown.ranges(self.frame)
    ]

  @property
  def total(self) -> int:
    """Tokens of a clip: those of the prefix, of slots, and of frames."""
    return self.temporal + self.num_frames * self.frame

  @property
  def temporal(self) -> int:
    """Tokens of the temporal encoder's sequence."""
    return self.prefix + self.num_frames * self.slot

  @property
  def temporal_pairs(self) -> int:
    """Pairs (query, key) of it: the prefix and slot 0 see each other, later slots all before."""
    seen = self.prefix + self.slot * np.arange(1, self.num_frames + 1)
    return int(seen[0] ** 2 + self.slot * seen[1:].sum())


def attention_flops(config: NovaConfig, sizes: Sizes) -> int:
  """Returns the FLOPs of attention's products of tokens with tokens, of a clip's forward pass."""
  half = config.num_image_layers // 2
  spatial = (sizes.slot + sizes.known) ** 2 + (sizes.slot + sizes.frame) ** 2
  pairs = config.num_video_layers * sizes.temporal_pairs + half * sizes.num_frames * spatial
  return 4 * pairs * config.d_model


def forward_flops(config: NovaConfig, sizes: Sizes, repeats: int) -> int:
  """Returns the FLOPs of a clip's loss.

  Args:
    config: the network.
    sizes: of the clip.
    repeats: how often each token is noised.
  """
  temporal = config.num_video_layers * sizes.temporal
  half = config.num_image_layers // 2
  spatial = half * sizes.num_frames * (2 * sizes.slot + sizes.known + sizes.frame)
  weights = (temporal + spatial) * _block_weights(config)
  weights += sum(_inputs(config, sizes, repeats)) + _prefix_weights(config)
  weights += (sizes.num_frames - 1) * sizes.slot * _mixer_weights(config)
  tokens = sizes.num_frames * sizes.noised
  noisy = _head_weights(config) + config.head_mlp_dim**2  # The latter for its noise level.
  weights += tokens * (_condition_weights(config) + repeats * noisy)
  return 2 * weights + attention_flops(config, sizes)


def training_flops(config: NovaConfig, sizes: Sizes, repeats: int) -> int:
  """Returns the FLOPs of a clip in a training step with nothing frozen.

  Every product takes two more in the backward pass; gradients of the network's inputs, and of sines
  and cosines, are not needed.
  """
  return 3 * forward_flops(config, sizes, repeats) - 2 * sum(_inputs(config, sizes, repeats))


def mean_flops(count: Callable, config: NovaConfig, sizes: Sizes, unknown: UnknownShare, *rest):
  """Returns the mean FLOPs over the ranges of known tokens.

  Args:
    count: such as `training_flops`.
    config: the network.
    sizes: the most of a clip.
    unknown: with the ranges.
    *rest: further arguments of `count`.
  """
  return sum(chance * count(config, each, *rest) for each, chance in sizes.ranges(unknown))


def layer_flops(config: NovaConfig, sizes: Sizes, repeats: int) -> int:
  """Returns the share of `forward_flops` in layers, which are recomputed with `remat="full"`."""
  none = dataclasses.replace(config, num_video_layers=0, num_image_layers=0, num_head_layers=0)
  return forward_flops(config, sizes, repeats) - forward_flops(none, sizes, repeats)


def sampling_flops(config: NovaConfig, sizes: Sizes, plan: Plan) -> int:
  """Returns the FLOPs of generating a clip's latents; the cache counts in full, written or not.

  Args:
    config: the network.
    sizes: of the clip.
    plan: how it is sampled.
  """
  passes, t = plan.guidance.num_passes, sizes.num_frames
  blocks, heads = _block_weights(config), _head_weights(config)
  first = sizes.prefix + sizes.slot
  tokens = sizes.temporal
  # A slot after the last frame is computed, too, but for images.
  later = t if t > 1 else 0
  tokens += sizes.slot * (later > 0)
  pairs = first**2 + later * sizes.slot * (sizes.temporal + sizes.slot)
  patch = config.video_patch_size**2 * config.num_channels * config.d_model
  temporal = config.num_video_layers * (tokens * blocks + 2 * pairs * config.d_model)
  temporal += (1 + later) * sizes.slot * patch + later * sizes.slot * _mixer_weights(config)
  temporal += _prefix_weights(config) + _prefix_inputs(config)

  half, spatial = config.num_image_layers // 2, 0
  groups = set_groups(orders.set_sizes(plan.num_ar_steps, sizes.frame))
  for group in groups:
    for length in (sizes.slot + group.capacity, sizes.slot + sizes.frame):
      spatial += half * len(group.sizes) * length * (blocks + 2 * length * config.d_model)
  num_sets = sum(len(group.sizes) for group in groups)
  spatial += num_sets * sizes.frame * config.token_width * config.d_model
  num_places = sum(len(group.sizes) * group.largest for group in groups)
  times = plan.noise.steps(plan.num_diffusion_steps).times
  num_guided = int((times >= plan.guidance.trunc).sum()) if passes > 1 else 0
  num_calls = passes * num_guided + len(times) - num_guided
  own = num_calls * (heads + config.token_width * config.head_mlp_dim)
  head = num_places * (passes * _condition_weights(config) + own)
  return 2 * (passes * (temporal + t * spatial) + t * head)


def _block_weights(config: NovaConfig) -> int:
  """Returns the weights that a token meets in a transformer block."""
  return (4 + 2 * config.mlp_ratio) * config.d_model**2


def _mixer_weights(config: NovaConfig) -> int:
  if config.mixer_rank is None:
    return 0
  m, rank = config.d_model, config.mixer_rank
  return 3 * m * rank if rank else 2 * m**2


def _prefix_weights(config: NovaConfig) -> int:
  """Returns the multiply-adds of motion tokens, but for their inputs."""
  return _NUM_MOTION * config.has_motion * config.d_model**2


def _prefix_inputs(config: NovaConfig) -> int:
  """Returns the multiply-adds of the inputs of text and motion tokens."""
  waves = _NUM_MOTION * config.has_motion * 2 * NUM_FREQUENCIES
  return (config.text_length * config.text_dim + waves) * config.d_model


def _condition_weights(config: NovaConfig) -> int:
  return (config.d_model + config.head_mlp_dim) * config.head_mlp_dim


def _head_weights(config: NovaConfig) -> int:
  """Returns the weights that a noisy token meets in the head, but for its own embedding."""
  width = config.head_mlp_dim
  # Scale, shift and gate, and two products, in each block; scale and shift before the last product.
  return (5 * config.num_head_layers + 2) * width**2 + width * config.token_width


def _inputs(config: NovaConfig, sizes: Sizes, repeats: int) -> tuple[int, ...]:
  """Returns the multiply-adds of products with inputs of the network, in training."""
  m, width, frames = config.d_model, config.head_mlp_dim, sizes.num_frames
  patch = config.video_patch_size**2 * config.num_channels
  noisy = repeats * frames * sizes.noised
  level = 2 * NUM_FREQUENCIES * width
  return (
    _prefix_inputs(config),
    frames * sizes.slot * patch * m,
    frames * sizes.frame * config.token_width * m,
    noisy * (config.token_width * width + level),
  )
