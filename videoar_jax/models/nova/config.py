"""Settings of NOVA: its network, and defaults of sampling."""

import dataclasses
import math
from typing import Any

from videoar_jax.models.nova.noise import DDPM, SPACINGS, Flow, NoiseProcess

POSITIONS = ("absolute", "rope")
PROCESSES = ("ddpm", "flow")


@dataclasses.dataclass(frozen=True)
class NovaConfig:
  """The network.

  Attributes:
    d_model: `m`, width of the temporal and the spatial transformer.
    num_heads: attention heads of both.
    num_video_layers: layers of the temporal encoder.
    num_image_layers: layers of the spatial transformer; the first half sees visible tokens only.
    mlp_ratio: hidden width of an MLP, in multiples of `d_model`.
    head_mlp_dim: width of the diffusion head.
    num_head_layers: its residual blocks.
    patch_size: side of a spatial token, in latent cells.
    video_patch_size: side of a token of the temporal encoder, in latent cells.
    time_base: latent frames to which a clip's times are scaled; 1 for images, which have no motion.
    mixer_rank: rank of the scaling and shift of the first frame's condition; 0 for full rank, None
      for none, so that each frame has its own condition.
    positions: "absolute" (sums of sines, added to tokens) or "rope" (rotary).
    position_base: lowest frequency of positions, about 1 radian in so many tokens; small grids
      learn from a small one, in which most frequencies tell places apart.
    has_motion: two tokens after the text say how much moves, and the frame rate.
    noise: process of the diffusion head: "ddpm", which predicts noise, or "flow", velocity.
    noise_shift: of "flow": above 1, more of the noise levels are high.
    noise_spacing: of the noise levels that "ddpm" samples at: "leading", "trailing" or "linspace".
    noise_offset: added to the levels of "leading".
    has_noise_skip: of "flow": the head adds to its output what noisy tokens say of the velocity by
      themselves, so that it need not learn to pass on the noise. Not in the paper.
    scan_layers: run layers as a loop, which compiles faster, instead of unrolled.
    remat: what the backward pass recomputes: "none", "dots" (all but matrix products) or "full".
    dtype: of activations.
    num_channels: `c`, of a latent cell; from the tokenizer.
    vocabulary_size: of the prompts' tokens; from the text encoder, 0 for features.
    text_dim: width of text features; from the text encoder, 0 for tokens.
    text_length: `P`, tokens of a prompt.
  """

  d_model: int = 1024
  num_heads: int = 16
  num_video_layers: int = 16
  num_image_layers: int = 32
  mlp_ratio: int = 4
  head_mlp_dim: int = 1280
  num_head_layers: int = 3
  patch_size: int = 2
  video_patch_size: int = 4
  time_base: int = 16
  mixer_rank: int | None = 24
  positions: str = "absolute"
  position_base: float = 10_000.0
  has_motion: bool = True
  noise: str = "ddpm"
  noise_shift: float = 1.0
  noise_spacing: str = "leading"
  noise_offset: int = 0
  has_noise_skip: bool = False
  scan_layers: bool = True
  remat: str = "none"
  dtype: str = "float32"
  num_channels: int = 4
  vocabulary_size: int = 0
  text_dim: int = 0
  text_length: int = 256

  def __post_init__(self):
    for name, known in (
      ("positions", POSITIONS),
      ("noise", PROCESSES),
      ("noise_spacing", SPACINGS),
      ("remat", ("none", "dots", "full")),
      ("dtype", ("float32", "bfloat16")),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"generator.{name}={getattr(self, name)!r} is unknown; set one of {', '.join(known)}"
        )
    at_least = dict.fromkeys(("num_video_layers", "num_image_layers", "num_head_layers"), 0)
    at_least |= dict.fromkeys(("d_model", "num_heads", "mlp_ratio", "head_mlp_dim"), 1)
    at_least |= dict.fromkeys(("patch_size", "video_patch_size", "time_base"), 1)
    for name, least in at_least.items():
      if getattr(self, name) < least:
        raise ValueError(f"generator.{name}={getattr(self, name)} must be at least {least}")
    if self.noise_offset < 0:
      raise ValueError(f"generator.noise_offset={self.noise_offset} must be 0 or more")
    if self.has_noise_skip and self.noise != "flow":
      raise ValueError(f"generator.has_noise_skip is of noise='flow'; noise is {self.noise!r}")
    if not self.noise_shift > 0:
      raise ValueError(f"generator.noise_shift={self.noise_shift} must be positive")
    if not self.position_base >= 1:
      raise ValueError(f"generator.position_base={self.position_base} must be at least 1")
    if self.d_model % (4 * self.num_heads):
      raise ValueError(
        f"generator.d_model={self.d_model} must be a multiple of 4 num_heads={4 * self.num_heads}"
      )
    k = self.d_model // self.num_heads
    if self.positions == "rope" and (k // 8 % 2 or (k - k // 8) % 4):
      raise ValueError(
        f"generator.positions='rope' splits heads of {k} into an eighth for time and halves of the "
        "rest, in pairs; take heads of 32, 64 or 96"
      )
    if self.num_image_layers % 2:
      raise ValueError(f"generator.num_image_layers={self.num_image_layers} must be even")
    if self.video_patch_size % self.patch_size:
      raise ValueError(
        f"generator.video_patch_size={self.video_patch_size} must be a multiple of "
        f"patch_size={self.patch_size}"
      )
    if self.mixer_rank is not None and self.mixer_rank < 0:
      raise ValueError(f"generator.mixer_rank={self.mixer_rank} must be 0 or more, or None")

  @property
  def head_dim(self) -> int:
    """`k`, width of an attention head."""
    return self.d_model // self.num_heads

  @property
  def token_width(self) -> int:
    """Channels of a spatial token: those of its cells."""
    return self.patch_size**2 * self.num_channels

  def process(self, sampling_shift: float | None = None) -> NoiseProcess:
    """Returns the noise process; a flow may be sampled with another shift."""
    if self.noise == "flow":
      return Flow(self.noise_shift, sampling_shift)
    return DDPM(self.noise_spacing, self.noise_offset)


@dataclasses.dataclass(frozen=True)
class NovaSampling:
  """Defaults of sampling.

  Attributes:
    num_ar_steps: steps of the schedule that fills in a frame's tokens, set by set.
    num_diffusion_steps: steps of the diffusion head for each set.
    guidance: scale of classifier-free guidance; 1 for none.
    min_guidance: scale at the first set of a frame, from which it rises; by default constant.
    guidance_trunc: noise level, of 1000, below which there is no guidance.
    guidance_renorm: least factor by which a guided prediction is scaled back to the norm of the
      unguided one; 1 for none.
    image_guidance: scale of the difference that earlier frames make; 0 for none.
    motion: how much moves, in pixels a frame; by default 5. For networks with `has_motion`.
    flow_shift: shift of a flow's noise levels; by default that of training.
  """

  num_ar_steps: int = 64
  num_diffusion_steps: int = 25
  guidance: float = 5.0
  min_guidance: float | None = None
  guidance_trunc: float = 0.0
  guidance_renorm: float = 1.0
  image_guidance: float = 0.0
  motion: float | None = None
  flow_shift: float | None = None

  def __post_init__(self):
    for name in ("num_ar_steps", "num_diffusion_steps"):
      if not 1 <= getattr(self, name) <= 1000:
        raise ValueError(f"{name}={getattr(self, name)} must be between 1 and 1000")
    for name in ("guidance", "min_guidance", "guidance_trunc", "image_guidance", "motion"):
      value: Any = getattr(self, name)
      if value is not None and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value} must be a number, 0 or more")
    if not 0 < self.guidance_renorm <= 1:
      raise ValueError(f"guidance_renorm={self.guidance_renorm} must be in (0, 1]")
    if self.flow_shift is not None and not self.flow_shift > 0:
      raise ValueError(f"flow_shift={self.flow_shift} must be positive")
