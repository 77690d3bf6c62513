"""The transformer block of both encoders, and stacks of it. Source: NOVA section 4."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.nn import layers
from videoar_jax.nn.attention import attend as attend_masked
from videoar_jax.nn.mask import AttentionMask
from videoar_jax.nn.rope import rotate
from videoar_jax.nn.splash import filled_length
from videoar_jax.parallel.rules import constrain, num_shards

# From queries, keys and values [b, l, n, k] to the heads' outputs, and anything to keep of a layer.
Attend = Callable[..., tuple[Float[Array, "b l n k"], object]]


class Attention(nnx.Module):
  """Multi-head self-attention.

  If the sequence is sharded, heads are sharded within attention instead: an all-to-all exchanges
  parts of the tokens for parts of the heads, and back (DeepSpeed Ulysses, arXiv 2309.14509).
  """

  def __init__(self, rngs: nnx.Rngs, config: NovaConfig):
    m = config.d_model
    self.query, self.key, self.value = (
      layers.Linear(rngs, m, m, ("embed", "heads"), use_bias=True) for _ in range(3)
    )
    self.out = layers.Linear(rngs, m, m, ("heads", "embed"), use_bias=True)
    self.num_heads = config.num_heads

  def __call__(self, x: Float[Array, "b l m"], angles, attend: Attend, sequence: str | None):
    b, l, _ = x.shape
    query, key, value = (
      constrain(project(x), ("batch", sequence, "heads")).reshape(b, l, self.num_heads, -1)
      for project in (self.query, self.key, self.value)
    )
    if angles is not None:
      query, key = rotate(query, angles), rotate(key, angles)
    split = ("batch", None, "attended_heads", None)
    y, kept = attend(*(constrain(part, split) for part in (query, key, value)))
    y = constrain(constrain(y, split), ("batch", sequence, "heads", None))
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

  def __call__(self, x: Float[Array, "b l m"], angles, attend: Attend, sequence: str | None):
    y, kept = self.attention(x, angles, attend, sequence)
    x = x + self.attention_norm(y)
    y = self.down(jax.nn.gelu(self.up(x), approximate=False))
    return constrain(x + self.mlp_norm(y), ("batch", sequence, None)), kept


def run(
  blocks: Block, x: Float[Array, "b l m"], angles, mask: AttentionMask, config: NovaConfig
) -> Float[Array, "b l m"]:
  """Runs stacked blocks on whole sequences, which may be sharded.

  Args:
    blocks: with a leading layer axis.
    x: tokens.
    angles: rotary angles `[*b, l, p]`, or None.
    mask: of the sequence.
    config: how to run layers.
  """
  length, num_parts = x.shape[1], num_shards("sequence")
  # Filler gives devices equal parts; no other token attends to it.
  added = -length % num_parts
  if mask.backend == "splash":
    added = filled_length(length, num_parts) - length
  x = jnp.pad(x, ((0, 0), (0, added), (0, 0)))
  if angles is not None:
    angles = jnp.pad(angles, ((0, 0),) * (angles.ndim - 2) + ((0, added), (0, 0)))

  def body(x, block):
    attend = lambda q, k, v: (attend_masked(q, k, v, mask), None)  # noqa: E731
    return block(x, angles, attend, "sequence")

  return _run(body, x, blocks, config, config.remat)[0][:, :length]


def step(blocks: Block, x: Float[Array, "b l m"], angles, attend: Attend, config: NovaConfig, seen):
  """Runs stacked blocks on the next tokens of sequences, which are not sharded.

  Args:
    blocks: with a leading layer axis.
    x: tokens.
    angles: rotary angles `[l, p]`, or None.
    attend: see `Attend`; it takes the layer's part of `seen`, if there is any, as a last argument.
    config: how to run layers.
    seen: what each layer attends to besides, with a leading layer axis; None for nothing.
  Returns:
    The tokens, and what `attend` kept of each layer, with a leading layer axis.
  """

  def body(x, layer):
    block, caches = layer
    extra = () if seen is None else (caches,)
    return block(x, angles, lambda q, k, v: attend(q, k, v, *extra), None)

  return _run(body, x, (blocks, seen), config, "none")


def _run(body: Callable, x: Array, stacked, config: NovaConfig, remat: str):
  return layers.run_stacked(body, x, stacked, is_scanned=config.scan_layers, remat=remat)
