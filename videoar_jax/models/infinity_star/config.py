"""Settings of InfinityStar: its network, and defaults of sampling."""

import dataclasses
import math

from videoar_jax.tokenizers.bsq.schedules import default_schedule, parse_schedule
from videoar_jax.tokenizers.star.schedules import (
  NUM_SCALES,
  Pyramid,
  nearest_grids,
  released_pyramid,
)

BACKENDS = ("auto", "dense", "blocked")
PRODUCTS = ("query", "key", "value", "out", "gate", "up", "down")
GUIDANCE_KINDS = ("apg", "cfg")
DURATION = "<<<t={seconds}s>>>"  # What captions and prompts of videos begin with.
RELEASED = ("0.40M", "0.90M")  # Sizes of the released models: 480p and 720p.

# Settings of sampling of the released script for the interactive model.
INTERACTIVE = {
  "guidance_kind": "cfg",
  "guidance": 3.0,
  "image_temperature": 0.5,
  "video_temperature": 0.5,
  "prompt_suffix": "",
}


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
    lora_rank: rank of the adapters (LoRA), which are then all that is trained; 0 for none.
    lora_targets: products with adapters: "query", "key", "value" and "out" of attention, "gate",
      "up" and "down" of the MLP.
    attention: "dense", or "blocked", which skips tiles that no token sees; "auto" is "blocked".
    schedule: grids of the scales, such as "1x1 2x3 4x6", ending with the latent grid of the run's
      clips. If it is "", and for clips of other sizes, they are those of the nearest public size,
      or for far smaller clips growing steps.
    image_repetitions: repetitions of each scale of the first frame; by default the released ones,
      or 3.
    clip_repetitions: the same of each later clip; by default the released ones, or 3 for all but
      the last scales, which have 2 and 1.
    min_detail_tokens: cells of a frame from which on a scale is a detail scale, which has a bit for
      each channel; by default the released number, 350 or 750 (720p).
    clip_length: latent frames of a clip.
    semantic_bits: bits of a cell of the other scales.
    num_channels: channels of the latents, and bits of a cell of a detail scale; from the tokenizer.
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
  lora_rank: int = 0
  lora_targets: tuple[str, ...] = ("query", "value")
  attention: str = "auto"
  schedule: str = ""
  image_repetitions: tuple[int, ...] = ()
  clip_repetitions: tuple[int, ...] = ()
  min_detail_tokens: int | None = None
  clip_length: int = 20
  semantic_bits: int = 16
  num_channels: int = 64
  vocabulary_size: int = 0
  text_dim: int = 0
  text_length: int = 512

  def __post_init__(self):
    parse_schedule(self.schedule)
    for name in ("image_repetitions", "clip_repetitions"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    for field in dataclasses.fields(self):
      least = 0 if field.name in ("vocabulary_size", "text_dim", "lora_rank") else 1
      if field.type is int and getattr(self, field.name) < least:
        raise ValueError(
          f"generator.{field.name}={getattr(self, field.name)} must be at least {least}"
        )
    object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
    unknown = [name for name in self.lora_targets if name not in PRODUCTS]
    if unknown:
      raise ValueError(
        f"generator.lora_targets: {unknown[0]!r} is unknown; known are {', '.join(PRODUCTS)}"
      )
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
  def lora_ranks(self) -> dict[str, int]:
    """Rank of the adapter of each product that has one."""
    return {name: self.lora_rank for name in self.lora_targets} if self.lora_rank else {}

  @property
  def attention_backend(self) -> str:
    """The backend of attention in training."""
    return "blocked" if self.attention == "auto" else self.attention

  def pyramid(self, grid: tuple[int, int]) -> Pyramid:
    """Returns the scales of clips whose latents have (h, w) cells.

    Raises:
      ValueError: numbers of repetitions do not fit the scales.
    """
    grid = tuple(grid)
    own, public = parse_schedule(self.schedule), nearest_grids(grid)
    is_own = bool(own) and own[-1] == grid
    name, grids = (None, own) if is_own else public or (None, default_schedule(grid))
    if name in RELEASED and len(grids) == NUM_SCALES[name]:
      default = dataclasses.replace(released_pyramid(name, grid[0] / grid[1]), grids=grids)
    else:
      ends = (2, 1)[-len(grids) :]
      default = Pyramid(
        grids=grids,
        image_repetitions=(3,) * len(grids),
        clip_repetitions=(3,) * (len(grids) - len(ends)) + ends,
        min_detail_tokens=350,
      )
    try:
      return dataclasses.replace(
        default,
        image_repetitions=self.image_repetitions or default.image_repetitions,
        clip_repetitions=self.clip_repetitions or default.clip_repetitions,
        min_detail_tokens=self.min_detail_tokens or default.min_detail_tokens,
        clip_length=self.clip_length,
        num_channels=self.num_channels,
        semantic_bits=self.semantic_bits,
      )
    except ValueError as error:
      raise ValueError(f"generator.{error}") from None


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
    negative_prompt: what guidance leads away from; by default the learned "no prompt".
    prompt_prefix: what prompts of videos begin with, as captions do in training; `{seconds}` stands
      for the duration.
    prompt_suffix: what all prompts end with.
  """

  guidance_kind: str = "apg"
  guidance: float = 34.0
  apg_threshold: float = 0.05
  image_temperature: float = 1.0
  video_temperature: float = 0.4
  negative_prompt: str = ""
  prompt_prefix: str = DURATION
  prompt_suffix: str = ", Close-up on big objects, emphasize scale and detail"

  def __post_init__(self):
    if self.guidance_kind not in GUIDANCE_KINDS:
      raise ValueError(f"guidance_kind={self.guidance_kind!r} must be in {GUIDANCE_KINDS}")
    for name in ("guidance", "apg_threshold"):
      value = getattr(self, name)
      if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value} must be a number, 0 or more")
    for name in ("image_temperature", "video_temperature"):
      value = getattr(self, name)
      if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value} must be a positive number")

  def prompt(self, text: str, seconds: float) -> str:
    """Returns a prompt as the network gets it.

    Args:
      text: of the user.
      seconds: duration of the clip; 0 for images, which have no prefix.
    """
    return f"{with_duration(self.prompt_prefix, text, seconds)}{self.prompt_suffix}"


def with_duration(prefix: str, text: str, seconds: float) -> str:
  """Returns a text with what those of videos begin with.

  Args:
    prefix: `{seconds}` stands for the duration.
    text: of the user or the data.
    seconds: duration of the clip; 0 for images, which have no prefix.
  """
  return f"{prefix.replace('{seconds}', str(round(seconds)))}{text}" if seconds else text
