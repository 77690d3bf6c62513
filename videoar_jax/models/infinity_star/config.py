"""Settings of InfinityStar: its network, and defaults of sampling."""

import dataclasses
import math

BACKENDS = ("auto", "dense", "blocked")
GUIDANCE_KINDS = ("apg", "cfg")


@dataclasses.dataclass(frozen=True)
class InfinityStarConfig:
  """The network.

  Attributes:
    num_layers: transformer blocks.
    d_model: width of the model.
    num_heads: attention heads.
    num_kv_heads: heads of keys and values; divides `num_heads`.
    head_dim: width of a head, a multiple of 8.
    mlp_dim: hidden width of the gated MLP.
    has_attention_bias: the projections of attention have biases.
    scan_layers: run layers as a loop, which compiles faster, instead of unrolled.
    dtype: of activations in training, "float32" or "bfloat16".
    remat: what the backward pass recomputes: "none", "dots" (all but matrix products) or "full".
    attention: "dense", or "blocked", which skips tiles that no token sees; "auto" is "blocked".
    num_channels: channels of the latents, and bits of a cell of a detail scale; from the tokenizer.
    semantic_bits: bits of a cell of a semantic scale; from the tokenizer.
    vocabulary_size: of the prompts' tokens; from the text encoder, 0 for features.
    text_dim: width of text features; from the text encoder, 0 for tokens.
    text_length: `P`, tokens of a prompt, after which the rotary ids of scales begin.
  """

  num_layers: int = 36
  d_model: int = 4096
  num_heads: int = 32
  num_kv_heads: int = 8
  head_dim: int = 128
  mlp_dim: int = 16384
  has_attention_bias: bool = False
  scan_layers: bool = True
  dtype: str = "float32"
  remat: str = "full"
  attention: str = "auto"
  num_channels: int = 64
  semantic_bits: int = 16
  vocabulary_size: int = 0
  text_dim: int = 0
  text_length: int = 512

  def __post_init__(self):
    for field in dataclasses.fields(self):
      is_text_field = field.name in ("vocabulary_size", "text_dim")
      if field.type is int and not is_text_field and getattr(self, field.name) < 1:
        raise ValueError(f"generator.{field.name}={getattr(self, field.name)} must be at least 1")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"generator.num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}"
      )
    if self.head_dim % 8:
      raise ValueError(
        f"generator.head_dim={self.head_dim} must be a multiple of 8: pairs for four rotary axes"
      )
    choices = {
      "dtype": ("float32", "bfloat16"),
      "remat": ("none", "dots", "full"),
      "attention": BACKENDS,
    }
    for name, known in choices.items():
      if getattr(self, name) not in known:
        raise ValueError(f"generator.{name}={getattr(self, name)!r} must be in {known}")

  @property
  def has_qk_norm(self) -> bool:
    """Queries and keys are normalized."""
    return True

  @property
  def attention_backend(self) -> str:
    """The backend of attention in training."""
    return "blocked" if self.attention == "auto" else self.attention


@dataclasses.dataclass(frozen=True)
class InfinityStarSampling:
  """Defaults of sampling, those of the released scripts for video.

  Attributes:
    guidance_kind: "cfg" mixes the logits of the prompt and of no prompt; "apg", adaptive projected
      guidance (arXiv 2410.02416), drops the part of their difference along the former.
    guidance: scale of guidance; 1 for none. The released one of "cfg" is 3.
    apg_threshold: of "apg": root mean square of the difference above which it is scaled down to it;
      0 for no limit.
    image_temperature: of bits of the first frame.
    video_temperature: of bits of later frames.
    is_greedy: take the likelier value of each bit, instead of drawing it.
    negative_prompt: what guidance leads away from; by default the learned "no prompt".
    has_duration: prompts of videos begin with their duration, `<<<t=5s>>>`, as captions do in
      training.
    frame_rate: frames per second, for the duration.
    prompt_suffix: added to every prompt.
  """

  guidance_kind: str = "apg"
  guidance: float = 34.0
  apg_threshold: float = 0.05
  image_temperature: float = 1.0
  video_temperature: float = 0.4
  is_greedy: bool = False
  negative_prompt: str = ""
  has_duration: bool = True
  frame_rate: float = 16.0
  prompt_suffix: str = ", Close-up on big objects, emphasize scale and detail"

  def __post_init__(self):
    if self.guidance_kind not in GUIDANCE_KINDS:
      raise ValueError(f"guidance_kind={self.guidance_kind!r} must be in {GUIDANCE_KINDS}")
    for name in ("guidance", "apg_threshold"):
      value = getattr(self, name)
      if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value} must be a number, 0 or more")
    for name in ("image_temperature", "video_temperature", "frame_rate"):
      value = getattr(self, name)
      if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value} must be a positive number")

  def prompt(self, text: str, num_frames: int) -> str:
    """Returns a prompt as the network gets it: duration, text, suffix.

    Args:
      text: of the user.
      num_frames: of the clip; images have no duration.
    """
    duration = ""
    if self.has_duration and num_frames > 1:
      duration = f"<<<t={round((num_frames - 1) / self.frame_rate)}s>>>"
    return f"{duration}{text}{self.prompt_suffix}"
