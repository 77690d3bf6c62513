"""The transformer: LLaMA blocks over text, frames and scales, one logit per bit.

Source: VIDEOAR sections 3.1 to 3.4.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videoar_jax.models.prompts import Text, is_text
from videoar_jax.models.videoar import patches
from videoar_jax.models.videoar.config import GeneratorConfig
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.nn import layers
from videoar_jax.nn.mask import AttentionMask
from videoar_jax.nn.rope import rope_angles
from videoar_jax.nn.transformer import (
  block_of,
  make_blocks,
  run_blocks,
  step_blocks,
  steps_in_loop,
)
from videoar_jax.parallel.rules import constrain, is_for_tpu


class Generator(nnx.Module):
  """Next-frame, next-scale transformer over bits."""

  def __init__(self, rngs: nnx.Rngs, config: GeneratorConfig, layout: Layout):
    m = config.d_model
    self.config = config
    if config.text_dim:
      self.text_embedding = layers.Linear(rngs, config.text_dim, m, (None, "embed"))
    else:
      self.text_embedding = layers.Embedding(rngs, config.vocabulary_size, m)
    num_kinds = layout.num_scales + (layout.final_size > 0)
    self.scale_embedding = layers.Embedding(rngs, num_kinds, m)
    self.place_embedding = (
      layers.Embedding(rngs, layout.frame_stride, m) if config.has_place_embedding else None
    )
    self.start = layers.param(rngs, layers.normal(0.02), (m,), ("embed",))
    self.feature_in = layers.Linear(rngs, layout.feature_width(config.num_bits), m, (None, "embed"))
    self.position_embedding = (
      layers.Embedding(rngs, layout.length, m) if config.positions == "learned" else None
    )
    self.blocks = make_blocks(rngs, config)
    self.norm_out = layers.RMSNorm(rngs, m)
    self.head = layers.Linear(
      rngs, m, layout.logit_width(config.num_bits), ("embed", None), init=layers.zeros
    )

  def __call__(
    self,
    text: Text,
    features: Float[Array, "b t q c"],
    layout: Layout,
    *,
    quantized: Float[Array, "b t h w d"] | None = None,
    frame_keep: Bool[Array, "b t t"] | None = None,
    window: int | None = None,
  ) -> Float[Array, "b t q d"]:
    """Returns the logits of every bit, teacher-forced.

    Args:
      text: tokens, or features `[b, P, c]`; 0 is padding.
      features: input of each cell of a frame, from `corruption.corrupt`; the first token of the
        first frame is not read.
      layout: the sequence.
      quantized: the frames' complete latents, read with `context="full_frame"` only.
      frame_keep: whether frame i (axis 1) may see the earlier frame j (axis 2); None for all.
      window: earlier frames that a frame may see; None for all.
    Raises:
      ValueError: the layout has complete latents, but `quantized` is None.
    """
    b, t, *_ = features.shape
    n, d, width = layout.frame_size, self.config.num_bits, self.feature_in.kernel.shape[0]
    weights = self.feature_in.kernel.dtype
    dtype = self.config.dtype if weights == jnp.float32 else weights
    features = patches.frame_to_tokens(features.astype(dtype), layout, width)
    if layout.final_size:
      if quantized is None:
        raise ValueError(
          "quantized: generator.context='full_frame' needs the frames' complete latents"
        )
      final = self.final_features(quantized.reshape(b, t, -1, d).astype(dtype), layout)
      features = jnp.concatenate([features, final], axis=2)
    # Frames are merged while tokens are narrow, and split below after the head: a frame's tokens
    # are seldom a multiple of TPU's 8 rows, and its compiler takes minutes to reshape wide ones.
    stride = layout.frame_stride
    video = self._embed(
      features.reshape(b, t * stride, -1),
      np.tile(layout.frame_scale_ids, t),
      np.arange(t * stride) < stride,
      np.tile(np.arange(stride), t),
    )
    # Each device of a sequence has the whole text. Otherwise, with "tensor" also sharded, XLA adds
    # gradients of other tokens to the table's row 0, of padding.
    embedded = constrain(self.embed_text(text, dtype), ("batch", None, None))
    x = jnp.concatenate([embedded, video], 1)[:, : layout.length]
    if self.position_embedding is not None:
      x = x + self.position_embedding(jnp.arange(layout.length)).astype(x.dtype)
    mask = AttentionMask(layout.mask(window), is_text(text), frame_keep, self.attention_backend())
    x = self.run(x, self.angles(layout.positions), mask)
    logits = self.logits(x[:, layout.text_length :])
    logits = jnp.pad(logits, ((0, 0), (0, layout.final_size), (0, 0)))
    logits = logits.reshape(b, t, stride, -1)[:, :, :n]
    return patches.frame_to_cells(logits, layout, d)

  def embed_text(self, text: Text, dtype) -> Float[Array, "b P m"]:
    """Embeds text tokens, or projects text features to the model's width."""
    if self.config.text_dim:
      return self.text_embedding(text.astype(dtype))
    return self.text_embedding(text).astype(dtype)

  def final_features(
    self, latents: Float[Array, "*b q d"], layout: Layout
  ) -> Float[Array, "*b n c"]:
    """Returns the inputs of a frame's complete latent, with zeros for the previous frame."""
    width = self.feature_in.kernel.shape[0]
    return patches.to_tokens(latents, layout, layout.num_scales - 1, width)

  def embed_features(self, features, layout: Layout, is_first_frame, tokens: slice = slice(None)):
    """Embeds features of a frame's `tokens`; the first frame's first scale is the start token.

    Args:
      features: of tokens, `[b, ..., n, c]`.
      layout: the sequence.
      is_first_frame: bool, broadcast against `[..., n]`.
      tokens: which tokens of a frame they are; the complete latent follows the scales.
    """
    places = np.arange(layout.frame_stride)[tokens]
    return self._embed(features, layout.frame_scale_ids[tokens], is_first_frame, places)

  def _embed(self, features, scales, is_first_frame, places):
    is_start = is_first_frame & (scales == 0)
    x = self.feature_in(features)
    x = jnp.where(is_start[..., None], self.start[...].astype(x.dtype), x)
    # Replicated: otherwise each device would look up its part of all rows and exchange them.
    table = constrain(self.scale_embedding.table[...], (None, None))
    x = x + table[scales].astype(x.dtype)
    if self.place_embedding is not None:
      table = constrain(self.place_embedding.table[...], (None, None))
      x = x + table[places].astype(x.dtype)
    return x

  def angles(self, positions: Float[Array | np.ndarray, "l 3"]) -> Float[Array, "l p"] | None:
    """Returns rotary angles, or None with learned positions."""
    config = self.config
    if config.positions != "rope":
      return None
    return rope_angles(
      positions,
      config.head_dim,
      base=config.rope_base,
      fractions=config.rope_fractions,
      is_interleaved=config.rope_is_interleaved,
    )

  def attention_backend(self) -> str:
    """Returns the attention backend for sequences without a cache."""
    if self.config.attention != "auto":
      return self.config.attention
    return "splash" if is_for_tpu() else "blocked"

  def run(self, x: Float[Array, "b l m"], angles, mask: AttentionMask) -> Float[Array, "b l m"]:
    """Runs the blocks on a whole sequence."""
    return run_blocks(self.blocks, x, angles, mask, self.config)

  def unstacked(self) -> "Generator":
    """Returns the network with each block's weights in arrays of their own, if steps unroll layers.

    In a loop, XLA would copy each block out of the stacked ones in every iteration. The copies of
    before the loop take as much memory again.
    """
    if steps_in_loop(self.blocks, self.config):
      return self
    apart = jax.tree.map(lambda x: x, self)
    apart.blocks = nnx.List([block_of(self.blocks, i) for i in range(self.config.num_layers)])
    return apart

  def step(self, x: Float[Array, "b q m"], angles, seen: tuple, masks: tuple, own: Any = None):
    """Runs the blocks for the next tokens of a sequence.

    Args:
      x: the tokens.
      angles: their rotary angles.
      seen: keys and values from earlier steps to attend to.
      masks: `[#b, #q, l]` for each of `seen`, and for the tokens themselves; None for all true.
      own: keys and values to which those of the tokens are appended, see `step_blocks`.
    Returns:
      `[b, q, m]`, and the tokens' keys and values, after those of `own`: stacked, or a list if
      layers are unrolled.
    """
    return step_blocks(self.blocks, x, angles, seen, masks, self.config, own)

  def logits(self, x: Float[Array, "b n m"]) -> Float[Array, "b n i"]:
    """Returns float32 logits, one per bit of the tokens."""
    return self.head(self.norm_out(x), has_float32_result=True)
