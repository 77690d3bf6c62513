"""LLaMA blocks: grouped-query attention, a gated MLP, and stacks of both, with or without cache."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videoar_jax.nn import layers
from videoar_jax.nn.attention import attend
from videoar_jax.nn.cache import Cache, PartialCache, attend_cached, join
from videoar_jax.nn.rope import rotate
from videoar_jax.nn.splash import filled_length
from videoar_jax.parallel.rules import constrain, is_for_cpu, num_shards


@runtime_checkable
class BlockConfig(Protocol):
  """The settings of a network that its blocks read.

  Attributes:
    num_layers: transformer blocks.
    d_model: width of the model.
    num_heads: attention heads.
    num_kv_heads: heads of keys and values; divides `num_heads`.
    head_dim: width of a head.
    mlp_dim: hidden width of the gated MLP.
    has_qk_norm: normalize queries and keys.
    scan_layers: scan over the stacked blocks, instead of compiling each.
    remat: which of a block's activations the backward pass recomputes: "none", "dots" or "full".
  """

  num_layers: int
  d_model: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  has_qk_norm: bool
  scan_layers: bool
  remat: str


@dataclasses.dataclass(frozen=True)
class Projections:
  """What the products with weights of a block have besides.

  Attributes:
    use_bias: whether those of attention have biases.
    init: initializes kernels; None for a variance by their inputs, and by depth at residuals.
    lora_ranks: rank of the adapter of a product, by its name, such as "query" or "down"; the others
      have none.
  """

  use_bias: bool = False
  init: Callable | None = None
  lora_ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def make(
    self, rngs: nnx.Rngs, name: str, num_in: int, num_out: int, axes: layers.Axes, num_layers=None
  ) -> layers.Linear:
    """Makes a product.

    Args:
      rngs: random keys.
      name: of the product.
      num_in, num_out, axes: see `layers.Linear`.
      num_layers: of the network, if the product ends a residual branch. These start small, scaled
        by depth: deep stacks start near identity.
    """
    gain = 1.0 if num_layers is None else 1.0 / (2 * num_layers)
    return layers.Linear(
      rngs,
      num_in,
      num_out,
      axes,
      use_bias=self.use_bias and name in ("query", "key", "value", "out"),
      init=self.init or layers.fan_in((num_in, num_out), gain),
      lora_rank=self.lora_ranks.get(name, 0),
    )


PLAIN = Projections()
# Weights of a layer up to which decoding on CPU runs layers as a loop.
_MAX_LOOPED = 2**20


def _sequence_axis(seen: tuple[Cache | PartialCache, ...] | None) -> str | None:
  """Returns the sequence's logical axis; None when decoding, where a step may be a single token."""
  return "sequence" if seen is None else None


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions and optional norms of queries and keys."""

  def __init__(self, rngs: nnx.Rngs, config: BlockConfig, projections: Projections = PLAIN):
    m, k = config.d_model, config.head_dim
    n, g = config.num_heads, config.num_kv_heads
    make = projections.make
    self.query = make(rngs, "query", m, n * k, ("embed", "heads"))
    self.key = make(rngs, "key", m, g * k, ("embed", "kv_heads"))
    self.value = make(rngs, "value", m, g * k, ("embed", "kv_heads"))
    self.out = make(rngs, "out", n * k, m, ("heads", "embed"), config.num_layers)
    self.query_norm = layers.RMSNorm(rngs, k) if config.has_qk_norm else None
    self.key_norm = layers.RMSNorm(rngs, k) if config.has_qk_norm else None
    self.config = config

  def __call__(
    self, x, angles, mask, seen: tuple[Cache | PartialCache, ...] | None, own: Cache | None = None
  ):
    b, l, _ = x.shape
    config = self.config
    sequence = _sequence_axis(seen)
    query = constrain(self.query(x), ("batch", sequence, "heads"))
    key = constrain(self.key(x), ("batch", sequence, "kv_heads"))
    value = constrain(self.value(x), ("batch", sequence, "kv_heads"))
    query = query.reshape(b, l, config.num_heads, config.head_dim)
    key = key.reshape(b, l, config.num_kv_heads, config.head_dim)
    value = value.reshape(b, l, config.num_kv_heads, config.head_dim)
    if self.query_norm is not None:
      query, key = self.query_norm(query), self.key_norm(key)
    if angles is not None:
      query, key = rotate(query, angles), rotate(key, angles)
    if seen is not None:
      new = Cache.of(key, value)
      new = new if own is None else join(own, new)
      y = attend_cached(query, (*seen, new), mask)
    else:
      new, y = None, self._attend(query, key, value, mask)
    return self.out(y.reshape(b, l, -1)), new

  def _attend(self, query, key, value, mask):
    """Attends within a whole sequence; if the sequence is sharded, heads are sharded instead.

    An all-to-all exchanges parts of the tokens for parts of the heads, and back. Each device then
    has all queries of its heads, and the same work as the others whatever the mask hides (DeepSpeed
    Ulysses, arXiv 2309.14509).
    """
    num_parts = num_shards("attended_heads")
    copies = num_parts // math.gcd(num_parts, key.shape[2])
    if copies > 1:
      # There are fewer key heads than devices: the devices of a sequence gather all its keys, and
      # heads are repeated so that several devices share one.
      heads = "kv_heads" if key.shape[2] % num_shards("kv_heads") == 0 else None
      key, value = (constrain(x, ("batch", None, heads, None)) for x in (key, value))
      key, value = (jnp.repeat(x, copies, axis=2) for x in (key, value))
    split = ("batch", None, "attended_heads", None)
    query, key, value = (constrain(x, split) for x in (query, key, value))
    y = constrain(attend(query, key, value, mask), split)
    return constrain(y, ("batch", "sequence", "heads", None))


class GatedMLP(nnx.Module):
  """SwiGLU."""

  def __init__(self, rngs: nnx.Rngs, config: BlockConfig, projections: Projections = PLAIN):
    m, hidden = config.d_model, config.mlp_dim
    make = projections.make
    self.gate = make(rngs, "gate", m, hidden, ("embed", "mlp"))
    self.up = make(rngs, "up", m, hidden, ("embed", "mlp"))
    self.down = make(rngs, "down", hidden, m, ("mlp", "embed"), config.num_layers)

  def __call__(self, x):
    return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
  """Attention and MLP, each with a pre-norm and a residual connection."""

  def __init__(self, rngs: nnx.Rngs, config: BlockConfig, projections: Projections = PLAIN):
    self.attention_norm = layers.RMSNorm(rngs, config.d_model)
    self.attention = Attention(rngs, config, projections)
    self.mlp_norm = layers.RMSNorm(rngs, config.d_model)
    self.mlp = GatedMLP(rngs, config, projections)

  def __call__(
    self,
    x,
    angles,
    mask,
    seen: tuple[Cache | PartialCache, ...] | None = None,
    own: Cache | None = None,
  ):
    y, new = self.attention(self.attention_norm(x), angles, mask, seen, own)
    x = x + y
    x = constrain(x + self.mlp(self.mlp_norm(x)), ("batch", _sequence_axis(seen), None))
    return x, new


def make_blocks(rngs: nnx.Rngs, config: BlockConfig, projections: Projections = PLAIN) -> Block:
  """Makes all blocks, with a leading layer axis."""
  return layers.stack_layers(
    lambda r: Block(r, config, projections), rngs.params(), config.num_layers
  )


def run_blocks(
  blocks: Block, x: Float[Array, "b l m"], angles, mask, config: BlockConfig
) -> Float[Array, "b l m"]:
  """Runs stacked blocks on a whole sequence.

  Args:
    blocks: with a leading layer axis.
    x: the tokens.
    angles: rotary angles `[*b, l, p]`, or None.
    mask: what tokens attend to, see `attention.attend`.
    config: how to run layers.
  """
  length, num_parts = x.shape[1], num_shards("sequence")
  # Padding gives devices equal parts; attention masks it out.
  added = -length % num_parts
  if mask.backend == "splash":
    added = filled_length(length, num_parts) - length
  x = jnp.pad(x, ((0, 0), (0, added), (0, 0)))
  if angles is not None:
    angles = jnp.pad(angles, (*((0, 0),) * (angles.ndim - 2), (0, added), (0, 0)))

  def body(x, block):
    return block(x, angles, mask)

  x, _ = layers.run_stacked(body, x, blocks, is_scanned=config.scan_layers, remat=config.remat)
  return x[:, :length]


def step_blocks(
  blocks: Block | nnx.List,
  x: Float[Array, "b q m"],
  angles,
  seen: tuple,
  masks: tuple,
  config: BlockConfig,
  own: Any = None,
):
  """Runs blocks for the next tokens of a sequence.

  Args:
    blocks: with a leading layer axis, or a list.
    x: the tokens.
    angles: their rotary angles.
    seen: keys and values from earlier steps to attend to; `PartialCache` ones only in a loop.
    masks: `[#b, #q, l]` for each of `seen`, and for the tokens themselves; None for all true.
    config: how to run layers, see `steps_in_loop`.
    own: keys and values, for all layers, of earlier tokens that the mask of the tokens themselves
      covers, too; None without any.
  Returns:
    `[b, q, m]`, and the tokens' keys and values, after those of `own`: stacked, or a list if layers
    are unrolled.
  """

  def body(x, layer):
    block, caches, own = layer
    return block(x, angles, masks, seen=caches, own=own)

  if steps_in_loop(blocks, config):

    def loop_body(x, layer):
      number, block, caches, own = layer
      caches = (
        dataclasses.replace(whole, layer=number) if isinstance(whole, PartialCache) else cache
        for whole, cache in zip(seen, caches, strict=True)
      )
      return body(x, (block, tuple(caches), own))

    # Partial caches are not cut into layers here, but where it is known how much of them is read.
    caches = tuple(None if isinstance(x, PartialCache) else x for x in seen)
    return jax.lax.scan(loop_body, x, (jnp.arange(config.num_layers), blocks, caches, own))
  news = []
  for i in range(config.num_layers):
    before = None if own is None else own[i]
    x, new = body(x, (block_of(blocks, i), tuple(caches[i] for caches in seen), before))
    news.append(new)
  return x, news


def steps_in_loop(blocks: Block | nnx.List, config: BlockConfig) -> bool:
  """Returns whether `step_blocks` runs layers as a loop, even if training unrolls them.

  On CPU, a loop copies each layer's weights in every step. While they stay in the processor's cache
  that takes less time than unrolled layers take to compile and to start.
  """
  if isinstance(blocks, nnx.List) or config.scan_layers:
    return config.scan_layers
  return has_small_layers(blocks, config)


def has_small_layers(blocks: Block, config: BlockConfig) -> bool:
  """Returns whether decoding is on CPU and stacked layers have few weights there."""
  return is_for_cpu() and layers.count_parameters(blocks) <= _MAX_LOOPED * config.num_layers


def block_of(blocks: Block | nnx.List, i: int) -> Block:
  """Returns one of stacked blocks, or of those that are apart already."""
  return blocks[i] if isinstance(blocks, nnx.List) else jax.tree.map(lambda x: x[i], blocks)
