"""Phi-2 as a text encoder: a causal transformer, whose last hidden states are the features.

Matrices are multiplied in the dtype of the parameters; what layers add up, norms, and softmax are
float32.

Source: NOVA section 6.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videoar_jax.nn import layers
from videoar_jax.nn.attention import attention
from videoar_jax.nn.rope import rope_angles, rotate
from videoar_jax.parallel.rules import constrain
from videoar_jax.text.encoders.config import PhiConfig


class Block(nnx.Module):
  """Attention and MLP side by side, on the same normalised tokens."""

  def __init__(self, rngs: nnx.Rngs, config: PhiConfig):
    m, hidden = config.d_model, config.mlp_dim
    self.norm = layers.LayerNorm(rngs, m, epsilon=config.epsilon)
    self.query, self.key, self.value = (
      layers.Linear(rngs, m, m, ("embed", "heads"), use_bias=True) for _ in range(3)
    )
    self.out = layers.Linear(rngs, m, m, ("heads", "embed"), use_bias=True)
    self.up = layers.Linear(rngs, m, hidden, ("embed", "mlp"), use_bias=True)
    self.down = layers.Linear(rngs, hidden, m, ("mlp", "embed"), use_bias=True)
    self.num_heads, self.rotary_dim = config.num_heads, config.rotary_dim

  def __call__(
    self,
    x: Float[Array, "b l m"],
    angles: Float[Array, "l p"],
    mask: Bool[Array, "b l l"],
  ) -> Float[Array, "b l m"]:
    y = self.norm(x).astype(self.query.kernel[...].dtype)
    attended = self.out(self._attend(y, angles, mask), has_float32_result=True)
    hidden = jax.nn.gelu(self.up(y), approximate=True)
    x = x + attended + self.down(hidden, has_float32_result=True)
    return constrain(x, ("batch", None, None))

  def _attend(self, x: Float[Array, "b l m"], angles, mask) -> Float[Array, "b l m"]:
    b, l, m = x.shape
    query, key, value = (
      constrain(project(x).reshape(b, l, self.num_heads, -1), ("batch", None, "heads", None))
      for project in (self.query, self.key, self.value)
    )
    query, key = (self._rotate(heads, angles) for heads in (query, key))
    return attention(query, key, value, mask).reshape(b, l, m)

  def _rotate(self, heads: Float[Array, "b l n k"], angles) -> Float[Array, "b l n k"]:
    """Rotates the first part of each head; the rest does not know its position."""
    first, rest = jnp.split(heads, [self.rotary_dim], axis=-1)
    return jnp.concatenate([rotate(first, angles), rest], axis=-1)


class Phi(nnx.Module):
  """From token ids to features."""

  def __init__(self, rngs: nnx.Rngs, config: PhiConfig):
    self.embedding = layers.Embedding(rngs, config.vocabulary_size, config.d_model)
    self.blocks = layers.stack_layers(lambda r: Block(r, config), rngs.params(), config.num_layers)
    self.norm = layers.LayerNorm(rngs, config.d_model, epsilon=config.epsilon)
    self.rotary_dim, self.rope_base = config.rotary_dim, config.rope_base

  def __call__(self, ids: Int[Array, "b l"], is_token: Bool[Array, "b l"]) -> Float[Array, "b l m"]:
    """Returns features.

    Args:
      ids: of tokens, from position 0.
      is_token: false for padding, which follows the tokens; its own features are meaningless.
    """
    position = jnp.arange(ids.shape[1])
    angles = rope_angles(position[:, None], self.rotary_dim, base=self.rope_base, fractions=(1.0,))
    mask = (position[:, None] >= position) & is_token[:, None, :]
    x = self.embedding(ids).astype(jnp.float32)
    x, _ = jax.lax.scan(lambda x, block: (block(x, angles, mask), None), x, self.blocks)
    return self.norm(x)
