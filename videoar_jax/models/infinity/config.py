"""Settings of Infinity: its network, and defaults of sampling."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from videoar_jax.nn.attention import BACKENDS


@dataclasses.dataclass(frozen=True)
class InfinityConfig:
  """The network.

  Attributes:
    num_layers: transformer blocks.
    d_model: `m`, width of the model.
    num_heads: attention heads.
    mlp_dim: hidden width of the MLP; in the public networks 4 `d_model`, in whole multiples of 256.
    num_pool_heads: heads that pool a prompt to the first token.
    patch_size: side of a token in latent cells; 2 in the public 8B model.
    num_levels: most scales of an image, with an embedding each.
    level_embedding_period: layers after which the embedding of scales is added again; 0 for once,
      as in the public models.
    rope_grid: grid in which a token's position is counted: "largest", that of the largest public
      image of the same aspect ratio, or "scale", its own scale's.
    scan_layers: run layers as a loop, which compiles faster, instead of unrolled.
    remat: what the backward pass recomputes: "none", "dots" (all but matrix products) or "full".
    dtype: of activations.
    attention: "dense", "blocked" or "splash"; "auto" is "splash" on TPU and "blocked" elsewhere.
    num_bits: `d`, bits of a latent cell; from the tokenizer.
    vocabulary_size: of the prompts' tokens; from the text encoder, 0 for features.
    text_dim: width of text features; from the text encoder, 0 for tokens.
    text_length: `P`, most rows of a prompt.
  """

  num_layers: int
  d_model: int
  num_heads: int
  mlp_dim: int
  num_pool_heads: int = 16
  patch_size: int = 1
  num_levels: int = 15
  level_embedding_period: int = 0
  rope_grid: str = "largest"
  scan_layers: bool = True
  remat: str = "full"
  dtype: str = "float32"
  attention: str = "auto"
  num_bits: int = 32
  vocabulary_size: int = 0
  text_dim: int = 0
  text_length: int = 512

  def __post_init__(self):
    for name in ("num_layers", "d_model", "num_heads", "mlp_dim", "num_pool_heads", "patch_size"):
      if getattr(self, name) < 1:
        raise ValueError(f"generator.{name}={getattr(self, name)} must be at least 1")
    for name, known in (
      ("rope_grid", ("largest", "scale")),
      ("remat", ("none", "dots", "full")),
      ("dtype", ("float32", "bfloat16")),
      ("attention", ("auto", *BACKENDS)),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"generator.{name}={getattr(self, name)!r} is unknown; set one of {', '.join(known)}"
        )
    if self.d_model % (4 * self.num_heads):
      raise ValueError(
        f"generator.d_model={self.d_model} must be a multiple of 4 num_heads={4 * self.num_heads}"
      )
    if self.d_model % self.num_pool_heads:
      raise ValueError(
        f"generator.num_pool_heads={self.num_pool_heads} must divide d_model={self.d_model}"
      )
    if self.level_embedding_period < 0:
      raise ValueError(
        f"generator.level_embedding_period={self.level_embedding_period} must be 0 or more"
      )

  @property
  def head_dim(self) -> int:
    """`k`, width of an attention head."""
    return self.d_model // self.num_heads

  @property
  def token_width(self) -> int:
    """`i`, bits of a token: those of its cells."""
    return self.patch_size**2 * self.num_bits

  @property
  def text_width(self) -> int:
    """Width of a prompt's rows: that of the features, or of embedded tokens."""
    return self.text_dim or self.d_model


@dataclasses.dataclass(frozen=True)
class InfinitySampling:
  """Defaults of sampling; those of the public command.

  Attributes:
    guidance: scale of classifier-free guidance: a number, or one for each scale of the image,
      separated by commas, of which the last one also serves all further scales; 1 for none.
    temperature: of the bits, likewise; 0 takes the likelier values.
    top_k: values of a bit to draw from: 1 takes the likelier one. There are two, so that more, as
      the public 900, change nothing.
    top_p: a bit's value is never drawn if its probability is 1 - top_p or less.
    guidance_layer: where guidance mixes both predictions: 0 for the logits, -1 for the output of
      the last layer, -2 for that of the one before, and so on.
    negative_prompt: what images should not show; by default, a learned "no prompt".
  """

  guidance: str = "3"
  temperature: str = "1"
  top_k: int = 900
  top_p: float = 0.97
  guidance_layer: int = 0
  negative_prompt: str | None = None

  def __post_init__(self):
    by_scale("guidance", self.guidance, 1)
    by_scale("temperature", self.temperature, 1)
    if self.top_k < 1:
      raise ValueError(f"top_k={self.top_k} must be at least 1")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p} must be in (0, 1]")
    if self.guidance_layer > 0:
      raise ValueError(f"guidance_layer={self.guidance_layer} must be 0, or negative for a layer")


# Settings of the public scripts and notebooks, by size; others have the defaults.
RELEASED: dict[str, dict[str, Any]] = {
  "2b": {"guidance": "4", "temperature": "0.5"},
  "8b": {"guidance": "3", "temperature": "1"},
}


def by_scale(name: str, text: str, num_scales: int) -> Float[np.ndarray, "s"]:
  """Returns the value of a setting at each scale; the last one given is repeated.

  Args:
    name: of the setting.
    text: one or more numbers, separated by commas.
    num_scales: `s`.
  Raises:
    ValueError: these are not numbers, or one is negative.
  """
  try:
    values = [float(word) for word in text.split(",")]
  except ValueError:
    raise ValueError(
      f"{name}={text} is not a number, or numbers by scale, separated by commas"
    ) from None
  if not all(math.isfinite(value) and value >= 0 for value in values):
    raise ValueError(f"{name}={text}: values must be numbers, 0 or more")
  return np.array([values[min(s, len(values) - 1)] for s in range(num_scales)], np.float32)


def as_text(value: str | float | Sequence[float]) -> str:
  """Returns a setting by scale as text: a caller may give a number, or several."""
  if isinstance(value, str):
    return value
  return ",".join(str(x) for x in (value if isinstance(value, Sequence) else [value]))
