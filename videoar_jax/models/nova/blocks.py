"""The transformer block of both encoders, and stacks of it. Source: NOVA section 4."""

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float

from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.nn import layers
from videoar_jax.nn.rope import rotate
from videoar_jax.parallel.rules import constrain

# From queries, keys and values [b, l, n, k] to the heads' outputs, and anything to keep of a layer.
Attend = Callable[..., tuple[Float[Array, "b l n k"], object]]


class Attention(nnx.Module):
  """Multi-head self-attention."""

  def __init__(self, rngs: nnx.Rngs, config: NovaConfig):
    m = config.d_model
    self.query, self.key, self.value = (
      layers.Linear(rngs, m, m, ("embed", "heads"), use_bias=True) for _ in range(3)
    )
    self.out = layers.Linear(rngs, m, m, ("heads", "embed"), use_bias=True)
    self.num_heads = config.num_heads

  def __call__(self, x: Float[Array, "b l m"], angles, attend: Attend):
    b, l, _ = x.shape
    split = ("batch", None, "heads", None)
    query, key, value = (
      constrain(project(x).reshape(b, l, self.num_heads, -1), split)
      for project in (self.query, self.key, self.value)
    )
    if angles is not None:
      query, key = rotate(query, angles), rotate(key, angles)
    y, kept = attend(query, key, value)
    return self.out(y.reshape(b, l, -1)), kept


class Block(nnx.Module):
  """Attention and MLP; the output of each is normalised before it is added."""

  def __init__(self, rngs: nnx.Rngs, config: NovaConfig):
    m, hidden = config.d_model, config.mlp_ratio * config.d_model
    self.attention = Attention(rngs, config)
    self.attention_norm = layers.LayerNorm(rngs, m)
    self.up = layers.Linear(rngs, m, hidden, ("embed", "mlp"), use_bias=True)
    self.down = layers.Linear(rngs, hidden, m, ("mlp", "embed"), use_bias=True)
    self.mlp_norm = layers.LayerNorm(rngs, m)

  def __call__(self, x: Float[Array, "b l m"], angles, attend: Attend):
    y, kept = self.attention(x, angles, attend)
    x = x + self.attention_norm(y)
    y = self.down(jax.nn.gelu(self.up(x), approximate=False))
    return constrain(x + self.mlp_norm(y), ("batch", "sequence", None)), kept


def run(blocks: Block, x: Float[Array, "b l m"], angles, attend, config: NovaConfig, seen=None):
  """Runs stacked blocks.

  Args:
    blocks: with a leading layer axis.
    x: tokens.
    angles: rotary angles `[*b, l, p]`, or None.
    attend: see `Attend`; with `seen`, it takes the layer's part of it as another argument.
    config: how to run layers.
    seen: what each layer attends to besides, with a leading layer axis.
  Returns:
    The tokens, and what `attend` kept of each layer, with a leading layer axis.
  """

  def body(x, layer):
    block, caches = layer
    extra = () if seen is None else (caches,)
    return block(x, angles, lambda q, k, v: attend(q, k, v, *extra))

  return layers.run_stacked(
    body, x, (blocks, seen), is_scanned=config.scan_layers, remat=config.remat
  )
