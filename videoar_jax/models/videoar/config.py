"""Settings of the transformer and of sampling."""

import dataclasses
import math

from videoar_jax.models.videoar.guidance import check_guidance
from videoar_jax.models.videoar.prefix import PrefixGuidanceConfig
from videoar_jax.nn.attention import BACKENDS
from videoar_jax.parallel.rules import AnyMesh, ShardingError


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
  """The network.

  Attributes:
    num_layers: transformer blocks.
    d_model: width of the model.
    num_heads: attention heads.
    num_kv_heads: heads of keys and values; divides `num_heads`.
    head_dim: width of a head.
    mlp_dim: hidden width of the gated MLP.
    num_bits: bits per token.
    vocabulary_size: rows of the text embedding; 0 with features.
    text_dim: width of a text feature; 0 with tokens.
    has_qk_norm: normalize queries and keys.
    positions: "rope" for rotary positions, or "learned" for absolute ones, as in the ablation.
    has_place_embedding: also add a learned embedding of each token's place in its frame to rotary
      positions, which needs clips of one resolution.
    rope_base: base of the rotary wavelengths.
    rope_fractions: shares of the rotary frequencies for time, height and width.
    rope_is_interleaved: give each axis frequencies from the whole range; otherwise each axis has
      one contiguous section of it. The width axis then has only the lowest frequencies, which on
      small grids is worse than learned positions, see docs/ablation.md.
    context: which tokens of earlier frames a frame attends to: "scales", all their scales, or
      "full_frame", their complete latent.
    prev_frame_input: which inputs include the previous frame: "first_scale" or "all_scales".
    rope_grid: grid in which a scale's positions are counted: "scale", its own, or "latent", that of
      the last scale.
    patch_sizes: side of a token in latent cells: one for all scales, 2 in Infinity's 8B model, or
      one for each scale. A token of 2x2 cells has all their bits.
    scan_layers: scan over the stacked blocks, so that compile time does not grow with depth;
      without it each block is compiled separately, which runs a quarter faster on CPU with
      `remat="none"`; there, other settings of `remat` always scan in training, and small blocks
      are always scanned in decoding.
    dtype: of activations in training, "float32" or "bfloat16"; parameters, gradients and logits are
      float32. `load_model` sets the type for sampling.
    remat: which of a block's activations the backward pass recomputes: "none"; "dots", all but
      products with weights (`dots_with_no_batch_dims_saveable`); or "full", all but its input.
    attention: "dense", "blocked" or "splash"; "auto" is "splash" on TPU and "blocked" elsewhere.
  """

  num_layers: int
  d_model: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  num_bits: int
  vocabulary_size: int
  text_dim: int = 0
  has_qk_norm: bool = True
  positions: str = "rope"
  has_place_embedding: bool = False
  rope_base: float = 10000.0
  rope_fractions: tuple[float, ...] = (0.25, 0.375, 0.375)
  rope_is_interleaved: bool = True
  context: str = "scales"
  prev_frame_input: str = "first_scale"
  rope_grid: str = "scale"
  patch_sizes: tuple[int, ...] = (1,)
  scan_layers: bool = True
  dtype: str = "float32"
  remat: str = "full"
  attention: str = "auto"

  def __post_init__(self):
    object.__setattr__(self, "rope_fractions", tuple(self.rope_fractions))
    for field in dataclasses.fields(self):
      is_text_field = field.name in ("vocabulary_size", "text_dim")
      if field.type is int and not is_text_field and getattr(self, field.name) < 1:
        raise ValueError(f"generator.{field.name}={getattr(self, field.name)} must be at least 1")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"generator.num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"generator.head_dim={self.head_dim} must be even")
    shares = self.rope_fractions
    if len(shares) != 3 or min(shares) < 0 or sum(shares) <= 0:
      raise ValueError(
        f"generator.rope_fractions={shares}: needs 3 shares, of time, height and width"
      )
    object.__setattr__(self, "patch_sizes", tuple(self.patch_sizes))
    if not self.patch_sizes or min(self.patch_sizes) < 1:
      raise ValueError(f"generator.patch_sizes={self.patch_sizes}: needs numbers of at least 1")
    if self.rope_base <= 0:
      raise ValueError(f"generator.rope_base={self.rope_base} must be positive")
    choices = {
      "positions": ("rope", "learned"),
      "dtype": ("float32", "bfloat16"),
      "remat": ("none", "dots", "full"),
      "attention": ("auto", *BACKENDS),
    }
    for name, known in choices.items():
      if getattr(self, name) not in known:
        raise ValueError(f"generator.{name}={getattr(self, name)!r} must be in {known}")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Defaults of sampling.

  Attributes:
    guidance: scale of classifier-free guidance: a number, constant:NUMBER, ucf101 or t2v for the
      paper's schedules, or a .json file with a table [latent frame, scale].
    temperature: of each bit's distribution; 0 takes the likelier value.
    top_p: a bit's value is never drawn if its probability is 1 - top_p or less.
    window: earlier latent frames that a frame attends to, also in longer clips than those of
      training; by default, as many as in training.
    prefix_guidance: guidance away from what a corrupted prefix would lead to, as WEIGHT or
      WEIGHT,SHARE on the command line of `sample`; off by default.
  """

  guidance: str = "constant:1"
  temperature: float = 1.0
  top_p: float = 1.0
  window: int | None = None
  prefix_guidance: PrefixGuidanceConfig = dataclasses.field(default_factory=PrefixGuidanceConfig)

  def __post_init__(self):
    if not (math.isfinite(self.temperature) and self.temperature >= 0):
      raise ValueError(f"temperature={self.temperature} must be a number, 0 or more")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p} must be in (0, 1]")
    if self.window is not None and self.window < 1:
      raise ValueError(f"window={self.window} must be at least 1")
    check_guidance(self.guidance)


def check_heads(config: GeneratorConfig, mesh: AnyMesh) -> None:
  """Checks that a mesh divides the heads: attention shards them over `tensor` and `sequence`.

  Raises:
    ShardingError: they do not.
  """
  tensor, sequence = mesh.shape["tensor"], mesh.shape["sequence"]
  if config.num_heads % (tensor * sequence):
    raise ShardingError(
      f"generator.num_heads={config.num_heads} does not divide over mesh.tensor={tensor} x "
      f"mesh.sequence={sequence}; take fewer devices for them"
    )
