"""The transformer block: self-attention, attention to the prompt, MLP, modulated by the prompt.

Source: INFINITY section 5.4.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity.text import base_scale
from videoar_jax.nn import layers
from videoar_jax.nn.rope import rotate
from videoar_jax.parallel.rules import constrain
from videoar_jax.tokenizers.bsq.quantizer import unit_sphere

# From queries, keys and values [b, l, n, k] to the heads' outputs, and anything to keep of a layer.
Attend = Callable[..., tuple[Float[Array, "b l n k"], object]]
_MAX_LOG_SCALE = math.log(100.0)


def modulated(x: Float[Array, "b l m"], scale, shift) -> Float[Array, "b l m"]:
  """Normalizes to mean 0 and variance 1, then scales by `1 + scale` and shifts, in float32."""
  x32 = x.astype(jnp.float32)
  centred = x32 - jnp.mean(x32, -1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
  y = centred * jax.lax.rsqrt(variance + 1e-6)
  return (y * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)).astype(x.dtype)


def _split(x: Float[Array, "b l m"], num_heads: int, sequence: str | None = None):
  """Returns heads `[b, l, n, k]`, with a logical axis of the sequence."""
  x = x.reshape(*x.shape[:2], num_heads, -1)
  return constrain(x, ("batch", sequence, "heads", None))


class SelfAttention(nnx.Module):
  """Attention by cosines, with a learned scale for each head and rotary positions."""

  def __init__(self, rngs: nnx.Rngs, config: InfinityConfig):
    m, init = config.d_model, layers.normal(base_scale(config))
    into = ("embed", "heads")
    self.query = layers.Linear(rngs, m, m, into, use_bias=True, init=init)
    self.key = layers.Linear(rngs, m, m, into, init=init)
    self.value = layers.Linear(rngs, m, m, into, use_bias=True, init=init)
    self.log_scale = layers.param(
      rngs, lambda key, shape: jnp.full(shape, math.log(4.0)), (config.num_heads,), ("heads",)
    )
    self.out = layers.Linear(
      rngs, m, m, ("heads", "embed"), use_bias=True, init=layers.normal(_last_scale(config))
    )
    self.num_heads = config.num_heads

  def __call__(
    self, x: Float[Array, "b l m"], angles: Float[Array, "l p"], attend: Attend, sequence=None
  ):
    query, key, value = (
      _split(project(x), self.num_heads, sequence) for project in (self.query, self.key, self.value)
    )
    query, key = (unit_sphere(part.astype(jnp.float32)) for part in (query, key))
    scale = jnp.exp(jnp.minimum(self.log_scale[...].astype(jnp.float32), _MAX_LOG_SCALE))
    # Attention divides by the root of the width, which cosines do not need.
    query = query * (scale[:, None] * math.sqrt(query.shape[-1]))
    query, key = (rotate(part, angles).astype(x.dtype) for part in (query, key))
    y, kept = attend(query, key, value)
    return self.out(y.reshape(*x.shape[:2], -1)), kept


class CrossAttention(nnx.Module):
  """Attention to the rows of the prompt."""

  def __init__(self, rngs: nnx.Rngs, config: InfinityConfig):
    m, init = config.d_model, layers.normal(base_scale(config))
    into = ("embed", "heads")
    self.query = layers.Linear(rngs, m, m, into, use_bias=True, init=init)
    self.key = layers.Linear(rngs, m, m, into, init=init)
    self.value = layers.Linear(rngs, m, m, into, use_bias=True, init=init)
    self.out = layers.Linear(
      rngs, m, m, ("heads", "embed"), use_bias=True, init=layers.normal(_last_scale(config))
    )
    self.num_heads = config.num_heads

  def keys_of(self, rows: Float[Array, "b P m"]):
    """Returns the keys and values `[b, P, n, k]` of a prompt."""
    return _split(self.key(rows), self.num_heads), _split(self.value(rows), self.num_heads)

  def __call__(
    self, x: Float[Array, "b l m"], attend_prompt: Callable, sequence=None
  ) -> Float[Array, "b l m"]:
    y = attend_prompt(self, _split(self.query(x), self.num_heads, sequence))
    return self.out(y.reshape(x.shape))


class Block(nnx.Module):
  """A layer; its modulation is a learned one, plus one that all layers get from the prompt."""

  def __init__(self, rngs: nnx.Rngs, config: InfinityConfig):
    m, init = config.d_model, layers.normal(base_scale(config))
    self.modulation = layers.param(rngs, _fresh_modulation, (6, m), (None, None))
    self.attention = SelfAttention(rngs, config)
    self.cross_norm = layers.LayerNorm(rngs, m, epsilon=1e-6)
    self.cross = CrossAttention(rngs, config)
    self.up = layers.Linear(rngs, m, config.mlp_dim, ("embed", "mlp"), use_bias=True, init=init)
    self.down = layers.Linear(
      rngs,
      config.mlp_dim,
      m,
      ("mlp", "embed"),
      use_bias=True,
      init=layers.normal(_last_scale(config)),
    )

  def __call__(
    self,
    x: Float[Array, "b l m"],
    modulation: Float[Array, "b 6 m"],
    angles: Float[Array, "l p"],
    attend: Attend,
    attend_prompt: Callable,
    branch_scale: Float[Array, "2 b"] | None = None,
    sequence: str | None = None,
  ):
    """Returns the tokens, and what `attend` kept.

    Args:
      x: tokens.
      modulation: from the prompt, for all layers: gains, scales and shifts of both branches.
      angles: rotary.
      attend: self-attention.
      attend_prompt: attention to the prompt, from the cross-attention and queries `[b, l, n, k]`.
      branch_scale: factor of the outputs of self-attention and of the MLP for each sample, 0 where
        it is dropped; None for 1.
      sequence: logical axis of the tokens; None when sampling, where a scale may have one token.
    """
    parts = modulation.astype(jnp.float32) + self.modulation[...].astype(jnp.float32)
    gain1, gain2, scale1, scale2, shift1, shift2 = (parts[:, i, None] for i in range(6))

    def branch(y, gain, number):
      y = y * gain.astype(y.dtype)
      if branch_scale is None:
        return y
      return y * branch_scale[number][:, None, None].astype(y.dtype)

    y, kept = self.attention(modulated(x, scale1, shift1), angles, attend, sequence)
    x = x + branch(y, gain1, 0)
    x = x + self.cross(self.cross_norm(x), attend_prompt, sequence)
    y = self.down(jax.nn.gelu(self.up(modulated(x, scale2, shift2)), approximate=True))
    return constrain(x + branch(y, gain2, 1), ("batch", sequence, None)), kept


def _last_scale(config: InfinityConfig) -> float:
  """Returns the standard deviation of the weights that end a branch: less in deep networks."""
  return base_scale(config) / math.sqrt(2 * config.num_layers)


def _fresh_modulation(key: Array, shape: tuple[int, ...]) -> Array:
  """Initializes so that both branches start near zero."""
  factors = jnp.array([5e-6, 5e-6, 1e-3, 1e-3, 1e-3, 1e-3])[:, None]
  return factors * jax.random.normal(key, shape) / math.sqrt(shape[-1])
