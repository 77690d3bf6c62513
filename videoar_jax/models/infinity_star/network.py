"""The transformer: from a prompt and the codes so far to the bits of each scale.

Source: INFINITY sections 6.1, S3 and S4.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videoar_jax.models.infinity_star.config import InfinityStarConfig
from videoar_jax.models.infinity_star.layout import Layout
from videoar_jax.models.prompts import Text, is_text
from videoar_jax.nn import layers
from videoar_jax.nn.documents import DocumentMask
from videoar_jax.nn.transformer import Projections, make_blocks, run_blocks, step_blocks
from videoar_jax.parallel.rules import constrain
from videoar_jax.train.state import Template, flatten, unflatten

_INIT = layers.normal(0.02)
_BASE = 10000.0  # Of the rotary wavelengths.


class Logits(NamedTuple):
  """What a network predicts; the last axis is the value of a bit.

  Attributes:
    semantic: of the tokens of semantic scales, in the order of the sequence.
    detail: of those of detail scales.
  """

  semantic: Float[Array, "b s d 2"]
  detail: Float[Array, "b r c 2"]


class InfinityStar(nnx.Module):
  """The network."""

  def __init__(self, rngs: nnx.Rngs, config: InfinityStarConfig):
    m = config.d_model
    self.config = config
    if config.text_dim:
      self.text_in = layers.Linear(
        rngs, config.text_dim, m, (None, "embed"), use_bias=True, init=_INIT
      )
    else:
      self.text_in = layers.Embedding(rngs, config.vocabulary_size, m)
    # What stands for "no prompt": a row for each token of the prompt that it replaces.
    width, axis = (config.text_dim, None) if config.text_dim else (m, "embed")
    self.null_text = layers.param(rngs, _INIT, (config.text_length, width), ("vocabulary", axis))
    self.codes_in = layers.Linear(
      rngs, config.num_channels, m, (None, "embed"), use_bias=True, init=_INIT
    )
    projections = Projections(config.has_attention_bias, _INIT, config.lora_ranks)
    self.blocks = make_blocks(rngs, config, projections)
    self.norm_out = layers.RMSNorm(rngs, m)
    self.detail_head, self.semantic_head = (
      layers.Linear(rngs, m, 2 * num_bits, ("embed", None), use_bias=True, init=_INIT)
      for num_bits in (config.num_channels, config.semantic_bits)
    )

  def __call__(
    self,
    text: Text,
    inputs: Float[Array, "b n c"],
    layout: Layout,
    *,
    repetitions: Int[Array, "b s"] | None = None,
    is_dropped: Bool[Array, "b"] | None = None,
  ) -> Logits:
    """Returns the logits of every bit, teacher-forced.

    Args:
      text: tokens, or features `[b, P, e]`; 0 is padding.
      inputs: of each token of the scales, the codes so far.
      layout: the sequence.
      repetitions: number of the repetition of each scale; None for the first ones.
      is_dropped: whether "no prompt" replaces the prompt.
    """
    dtype = self.activation_dtype
    is_present = is_text(text)
    prompt = self.embed_text(text)
    if is_dropped is not None:
      nothing = self.embed_nothing(is_present)
      prompt = jnp.where(is_dropped[:, None, None], nothing, prompt)
    # Each device of a sequence has the whole prompt.
    prompt = constrain(prompt, ("batch", None, None))
    x = jnp.concatenate([self.codes_in(inputs.astype(dtype)), prompt], axis=1)
    present = jnp.pad(is_present, ((0, 0), (layout.num_tokens, 0)), constant_values=True)
    mask = DocumentMask(layout.rule, present, self.config.attention_backend)
    x = run_blocks(self.blocks, x, self._angles(layout, repetitions), mask, self.config)
    return self.logits(x[:, : layout.num_tokens], layout)

  @property
  def activation_dtype(self) -> jnp.dtype:
    """Type of activations: that of the config in training, that of the weights in sampling."""
    weights = self.codes_in.kernel.dtype
    return jnp.dtype(self.config.dtype) if weights == jnp.float32 else weights

  def embed_text(self, text: Text) -> Float[Array, "b P m"]:
    """Embeds prompts; padding is 0."""
    if self.config.text_dim:
      rows = self.text_in(text.astype(self.activation_dtype))
    else:
      rows = self.text_in(text).astype(self.activation_dtype)
    return jnp.where(is_text(text)[..., None], rows, 0)

  def embed_nothing(self, is_present: Bool[Array, "b P"]) -> Float[Array, "b P m"]:
    """Embeds "no prompt", as long as each prompt."""
    rows = self.null_text[...].astype(self.activation_dtype)
    rows = self.text_in(rows) if self.config.text_dim else rows
    return jnp.where(is_present[..., None], rows, 0)

  def _angles(self, layout: Layout, repetitions) -> Float[Array, "*b l p"]:
    positions = jnp.asarray(layout.positions)
    if repetitions is not None:
      later = jnp.take(repetitions, layout.scale_of_token, axis=1).astype(jnp.float32)
      later = jnp.pad(later, ((0, 0), (0, layout.text_length)))
      positions = positions + later[..., None] * np.float32([1, 0, 0, 0])
    return rotary_angles(positions, self.config.head_dim)

  def step(self, x: Float[Array, "b q m"], positions, seen: tuple, masks: tuple):
    """Runs the blocks for a document.

    Args:
      x: its tokens.
      positions: their rotary positions, `[q, 4]`.
      seen: keys and values of the documents that it sees besides itself.
      masks: see `transformer.step_blocks`.
    Returns:
      `[b, q, m]`, and the tokens' keys and values.
    """
    angles = rotary_angles(positions, self.config.head_dim)
    return step_blocks(self.blocks, x, angles, seen, masks, self.config)

  def logits(self, x: Float[Array, "b n m"], layout: Layout) -> Logits:
    """Returns float32 logits of all scales."""
    parts = []
    for is_detail in (False, True):
      tokens = [x[:, run] for run in layout.runs(is_detail)]
      parts.append(self.head(jnp.concatenate([x[:, :0], *tokens], axis=1), is_detail))
    return Logits(*parts)

  def head(self, x: Float[Array, "b n m"], is_detail: bool) -> Float[Array, "b n d 2"]:
    """Returns float32 logits of tokens of one kind."""
    linear = self.detail_head if is_detail else self.semantic_head
    logits = linear(self.norm_out(x), has_float32_result=True)
    return logits.reshape(*x.shape[:2], -1, 2)


def rotary_angles(
  positions: Float[Array | np.ndarray, "*b l 4"], head_dim: int
) -> Float[Array, "*b l p"]:
  """Returns the angle of each pair of a head: a quarter of the pairs for each axis.

  Args:
    positions: (scale id, frame, row, column).
    head_dim: `k`, a multiple of 8.
  """
  num = head_dim // 8
  frequencies = _BASE ** (-np.arange(num, dtype=np.float32) / num)
  angles = jnp.asarray(positions)[..., None] * frequencies
  return angles.reshape(*positions.shape[:-1], 4 * num)


def template_of(config: InfinityStarConfig) -> Template:
  """Returns the network's structure, without computing its parameters."""
  return Template.of(lambda key: InfinityStar(nnx.Rngs(params=key), config))


def with_merged_adapters(net: InfinityStar) -> InfinityStar:
  """Returns a network without adapters, whose kernels contain them."""
  if not net.config.lora_rank:
    return net
  merged = layers.merge_adapters(flatten(nnx.to_pure_dict(nnx.split(net)[1])))
  return network_of(dataclasses.replace(net.config, lora_rank=0), unflatten(merged))


def network_of(config: InfinityStarConfig, params: dict) -> InfinityStar:
  """Returns the network with given parameters."""
  return template_of(config).module(params)
