"""Settings of NOVA's network."""

import dataclasses

POSITIONS = ("absolute", "rope")


@dataclasses.dataclass(frozen=True)
class NovaConfig:
  """The network.

  Attributes:
    d_model: `m`, width of the temporal and the spatial transformer.
    num_heads: attention heads of both.
    num_video_layers: layers of the temporal encoder.
    num_image_layers: layers of the spatial transformer; the first half sees visible tokens only.
    mlp_ratio: hidden width of an MLP, in multiples of `d_model`.
    head_width: width of the diffusion head.
    num_head_layers: its residual blocks.
    patch_size: side of a spatial token, in latent cells.
    video_patch_size: side of a token of the temporal encoder, in latent cells.
    time_base: latent frames to which a clip's times are scaled; 1 for images, which have no motion.
    mixer_rank: rank of the scaling and shift of the first frame's condition; 0 for full rank, None
      for none, so that each frame has its own condition.
    positions: "absolute" (sums of sines, added to tokens) or "rope" (rotary).
    has_motion: two tokens after the text say how much moves, and the frame rate.
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
  head_width: int = 1280
  num_head_layers: int = 3
  patch_size: int = 2
  video_patch_size: int = 4
  time_base: int = 16
  mixer_rank: int | None = 24
  positions: str = "absolute"
  has_motion: bool = True
  scan_layers: bool = True
  remat: str = "none"
  dtype: str = "float32"
  num_channels: int = 4
  vocabulary_size: int = 0
  text_dim: int = 0
  text_length: int = 256

  def __post_init__(self):
    if self.positions not in POSITIONS:
      raise ValueError(
        f"generator.positions={self.positions!r} is unknown; set one of {', '.join(POSITIONS)}"
      )
    if self.d_model % (4 * self.num_heads):
      raise ValueError(
        f"generator.d_model={self.d_model} must be a multiple of 4 num_heads={4 * self.num_heads}"
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
