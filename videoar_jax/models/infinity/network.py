"""Infinity's transformer: from a prompt and coarser scales to the bits of each scale.

Source: Infinity, arXiv 2412.04431; INFINITY sections 5.1 to 5.5.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videoar_jax.models.infinity.blocks import Block, modulated
from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity.layout import Layout
from videoar_jax.models.infinity.text import Prompt, TextEncoder, base_scale
from videoar_jax.models.prompts import Text
from videoar_jax.nn import layers
from videoar_jax.nn.attention import attend, attention
from videoar_jax.nn.cache import Cache, attend_cached
from videoar_jax.nn.mask import AttentionMask
from videoar_jax.nn.splash import filled_length
from videoar_jax.parallel.rules import constrain, is_for_tpu, num_shards
from videoar_jax.train.state import Template


class Infinity(nnx.Module):
  """The whole network."""

  def __init__(self, rngs: nnx.Rngs, config: InfinityConfig):
    m, scale = config.d_model, base_scale(config)
    init = layers.normal(scale)
    self.config = config
    self.text = TextEncoder(rngs, config)
    self.start = layers.param(rngs, init, (m,), ("embed",))
    self.level_embedding = layers.Embedding(rngs, config.num_levels, m, scale=scale)
    self.bits_in = layers.Linear(
      rngs, config.token_width, m, (None, "embed"), use_bias=True, init=init
    )
    self.modulation = layers.Linear(rngs, m, 6 * m, ("embed", None), use_bias=True, init=init)
    self.blocks = layers.stack_layers(lambda r: Block(r, config), rngs.params(), config.num_layers)
    self.head_modulation = layers.Linear(
      rngs, m, 2 * m, ("embed", None), use_bias=True, init=layers.normal(1e-3 * scale)
    )
    self.head = layers.Linear(
      *(rngs, m, 2 * config.token_width, ("embed", None)),
      use_bias=True,
      init=layers.normal(0.02 * scale),
    )

  @property
  def dtype(self):
    """Type of activations: that of the settings for float32 weights, else that of the weights."""
    weights = self.bits_in.kernel.dtype
    return jnp.dtype(self.config.dtype) if weights == jnp.float32 else weights

  def encode_text(
    self, text: Text, is_dropped: Bool[Array | np.ndarray, "b"] | None = None
  ) -> Prompt:
    """Encodes prompts; see `TextEncoder`."""
    return self.text(text, is_dropped, self.dtype)

  def modulations(self, prompt: Prompt) -> Float[Array, "b 6 m"]:
    """Returns what a prompt adds to the modulation of every layer."""
    return self.modulation(jax.nn.silu(prompt.pooled)).reshape(-1, 6, self.config.d_model)

  def first_token(self, prompt: Prompt) -> Float[Array, "b 1 m"]:
    """Returns the token of the first scale."""
    return (prompt.pooled + self.start[...].astype(prompt.pooled.dtype))[:, None]

  def __call__(
    self,
    prompt: Prompt,
    features: Float[Array, "b n i"],
    layout: Layout,
    branch_scale: Float[Array, "n_layers 2 b"] | None = None,
  ) -> Float[Array, "b l i 2"]:
    """Returns the logits of both values of every bit, teacher-forced.

    Args:
      prompt: from `encode_text`.
      features: input of every token but the first one: the sum of coarser scales.
      layout: the sequence.
      branch_scale: see `Block`, for each layer.
    """
    x = jnp.concatenate([self.first_token(prompt), self.bits_in(features.astype(self.dtype))], 1)
    return self.logits(self.run(x, prompt, layout, branch_scale), prompt)

  def run(
    self, x: Float[Array, "b l m"], prompt: Prompt, layout: Layout, branch_scale=None
  ) -> Float[Array, "b l m"]:
    """Runs the layers on a whole sequence."""
    length, rule = layout.length, layout.mask()
    mask = AttentionMask(rule, jnp.ones((len(x), rule.prefix), bool), None, self._backend())
    # The kernel takes whole tiles, and devices equal parts; attention ignores the filler.
    num_parts = num_shards("sequence")
    added = -length % num_parts
    if mask.backend == "splash":
      added = filled_length(length, num_parts) - length
    x = jnp.pad(x, ((0, 0), (0, added), (0, 0)))
    ids = np.pad(layout.scale_ids, (0, added))
    angles = jnp.asarray(np.pad(layout.angles(self.config.head_dim), ((0, added), (0, 0))))

    def attend_prompt(cross, query):
      return attention(query, *cross.keys_of(prompt.rows), prompt.mask[:, None])

    def attend_self(query, key, value):
      # Each device of a sequence gets all tokens of a part of the heads; see `nn.transformer`.
      heads = ("batch", None, "attended_heads", None)
      query, key, value = (constrain(part, heads) for part in (query, key, value))
      y = constrain(attend(query, key, value, mask), heads)
      return constrain(y, ("batch", "sequence", "heads", None)), None

    modulation = self.modulations(prompt)

    def body(x, layer):
      block, is_period, scale = layer
      x = self._with_levels(x, ids, is_period)
      return block(x, modulation, angles, attend_self, attend_prompt, scale, "sequence")

    x = constrain(self._with_levels(x, ids), ("batch", "sequence", None))
    x, _ = self._run_layers(body, x, branch_scale, self.config.remat)
    return x[:, :length]

  def prompt_keys(self, prompt: Prompt) -> Cache:
    """Returns the keys and values of a prompt for all layers."""
    return jax.vmap(lambda block: Cache.of(*block.cross.keys_of(prompt.rows)))(self.blocks)

  def step(
    self,
    x: Float[Array, "b n m"],
    prompt: Prompt,
    keys: Cache,
    layout: Layout,
    scale: int,
    seen: Cache | None,
    mix=None,
  ) -> tuple[Float[Array, "b n m"], Cache]:
    """Runs the layers on the tokens of one scale.

    Args:
      x: the tokens.
      prompt: from `encode_text`.
      keys: from `prompt_keys`.
      layout: the sequence.
      scale: number of the scale.
      seen: keys and values of coarser scales, for all layers; None for the first one.
      mix: function of a layer's number and output that returns the output to hand on; None to hand
        on the layer's own.
    Returns:
      The tokens, and their keys and values for all layers.
    """
    tokens = layout.slice_of(scale)
    ids, modulation = layout.scale_ids[tokens], self.modulations(prompt)
    angles = jnp.asarray(layout.angles(self.config.head_dim)[tokens])
    mask = prompt.mask[:, None]

    def body(x, layer):
      block, is_period, (number, prompt_keys, earlier) = layer

      def attend_self(query, key, value):
        new = Cache.of(key, value)
        caches = (new,) if earlier is None else (earlier, new)
        return attend_cached(query, caches, (None,) * len(caches)), new

      def attend_prompt(_, query):
        return attend_cached(query, (prompt_keys,), (mask,))

      x = self._with_levels(x, ids, is_period)
      x, new = block(x, modulation, angles, attend_self, attend_prompt)
      return (x if mix is None else mix(number, x)), new

    number = jnp.arange(self.config.num_layers)
    return self._run_layers(body, self._with_levels(x, ids), (number, keys, seen))

  def logits(self, x: Float[Array, "b n m"], prompt: Prompt) -> Float[Array, "b n i 2"]:
    """Returns float32 logits of both values of each bit."""
    modulation = self.head_modulation(jax.nn.silu(prompt.pooled))[:, None]
    x = modulated(x, *jnp.split(modulation, 2, axis=-1))
    return self.head(x, has_float32_result=True).reshape(*x.shape[:2], -1, 2)

  def _backend(self) -> str:
    if self.config.attention != "auto":
      return self.config.attention
    return "splash" if is_for_tpu() else "blocked"

  def _with_levels(self, x, ids, is_period=True):
    """Adds the embeddings of scales: before the first layer, and before later ones of a period."""
    if is_period is None:
      return x
    levels = self.level_embedding.table[...][ids].astype(x.dtype)
    return x + levels if is_period is True else x + jnp.where(is_period, levels, 0)

  def _run_layers(self, body, x, extra, remat: str = "none"):
    period, number = self.config.level_embedding_period, np.arange(self.config.num_layers)
    # The first layer's are added before.
    is_period = jnp.asarray((number % period == 0) & (number > 0)) if period else None
    stacked = (self.blocks, is_period, extra)
    return layers.run_stacked(body, x, stacked, is_scanned=self.config.scan_layers, remat=remat)


def template_of(config: InfinityConfig) -> Template:
  """Returns the network's structure, without computing its parameters."""
  return Template.of(lambda key: Infinity(nnx.Rngs(params=key), config))


def network_of(config: InfinityConfig, params: dict) -> Infinity:
  """Returns the network with given parameters."""
  return template_of(config).module(params)
