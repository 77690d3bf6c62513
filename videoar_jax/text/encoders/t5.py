"""The encoder of T5 and umT5: bidirectional attention with a bias for each distance.

Matrices are multiplied in the dtype of the parameters. What layers add up, norms, and softmax are
float32: the largest numbers of wide encoders exceed what bfloat16 resolves.

Source: arXiv 1910.10683 section 2.1; T5 1.1 for the gated MLP; arXiv 2304.09151 for umT5.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videoar_jax.nn import layers
from videoar_jax.parallel.rules import constrain
from videoar_jax.text.encoders.config import T5Config


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "l l"]:
  """Returns the bucket of each key's position relative to each query's.

  Half of the buckets are for keys after the query. Half of each half are for single distances, the
  others for ranges that grow in proportion to the distance.

  Args:
    length: number of tokens.
    num_buckets: a multiple of 4.
    max_distance: from which on distances share the last bucket.
  """
  half, exact = num_buckets // 2, num_buckets // 4
  position = np.arange(length)
  offset = position[None, :] - position[:, None]
  distance = np.abs(offset)
  # In float32, as the public code, so that distances at a border are in the same bucket.
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
  ratio = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
  far = np.minimum(exact + ratio.astype(np.int32), half - 1)
  return half * (offset > 0) + np.where(distance < exact, distance, far)


class Block(nnx.Module):
  """Attention and a gated MLP, each of which reads normalised tokens."""

  def __init__(self, rngs: nnx.Rngs, config: T5Config):
    m, inner = config.d_model, config.num_heads * config.head_dim
    self.attention_norm = layers.RMSNorm(rngs, m, epsilon=config.epsilon)
    self.query, self.key, self.value = (
      layers.Linear(rngs, m, inner, ("embed", "heads")) for _ in range(3)
    )
    self.out = layers.Linear(rngs, inner, m, ("heads", "embed"))
    self.distances = _distances(rngs, config) if config.has_layer_distances else None
    self.mlp_norm = layers.RMSNorm(rngs, m, epsilon=config.epsilon)
    self.gate, self.up = (
      layers.Linear(rngs, m, config.mlp_dim, ("embed", "mlp")) for _ in range(2)
    )
    self.down = layers.Linear(rngs, config.mlp_dim, m, ("mlp", "embed"))
    self.num_heads = config.num_heads

  def __call__(
    self,
    x: Float[Array, "b l m"],
    distances: Float[Array, "u n"] | None,
    buckets: Int[np.ndarray, "l l"],
    is_token: Bool[Array, "b l"],
  ) -> Float[Array, "b l m"]:
    distances = distances if self.distances is None else self.distances[...]
    bias = jnp.moveaxis(distances[buckets].astype(jnp.float32), 2, 0)
    bias = bias + jnp.where(is_token, 0.0, -1e30)[:, None, None]
    dtype = self.query.kernel[...].dtype
    y = self._attend(self.attention_norm(x).astype(dtype), bias)
    x = x + self.out(y, has_float32_result=True)
    y = self.mlp_norm(x).astype(dtype)
    y = jax.nn.gelu(self.gate(y), approximate=True) * self.up(y)
    x = x + self.down(y, has_float32_result=True)
    return constrain(x, ("batch", None, None))

  def _attend(
    self, x: Float[Array, "b l m"], bias: Float[Array, "b n l l"]
  ) -> Float[Array, "b l _"]:
    b, l, _ = x.shape
    query, key, value = (
      constrain(project(x).reshape(b, l, self.num_heads, -1), ("batch", None, "heads", None))
      for project in (self.query, self.key, self.value)
    )
    # Scores are not scaled: the initialisation of T5's queries does it.
    scores = layers.product("bqnk,blnk->bnql", query, key) + bias
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    out = layers.product("bnql,blnk->bqnk", weights, value)
    return out.astype(x.dtype).reshape(b, l, -1)


class T5Encoder(nnx.Module):
  """From token ids to features."""

  def __init__(self, rngs: nnx.Rngs, config: T5Config):
    self.embedding = layers.Embedding(rngs, config.vocabulary_size, config.d_model)
    self.blocks = layers.stack_layers(lambda r: Block(r, config), rngs.params(), config.num_layers)
    self.distances = None if config.has_layer_distances else _distances(rngs, config)
    self.norm = layers.RMSNorm(rngs, config.d_model, epsilon=config.epsilon)
    self.num_buckets, self.max_distance = config.num_buckets, config.max_distance

  def __call__(self, ids: Int[Array, "b l"], is_token: Bool[Array, "b l"]) -> Float[Array, "b l m"]:
    """Returns features.

    Args:
      ids: of tokens.
      is_token: false for padding, which no token attends to; its own features are meaningless.
    """
    distances = None if self.distances is None else self.distances[...]
    buckets = relative_buckets(ids.shape[1], self.num_buckets, self.max_distance)
    x = self.embedding(ids).astype(jnp.float32)
    x, _ = jax.lax.scan(
      lambda x, block: (block(x, distances, buckets, is_token), None), x, self.blocks
    )
    return self.norm(x)


def _distances(rngs: nnx.Rngs, config: T5Config) -> nnx.Param:
  """Makes the bias of each bucket of distances in each head."""
  shape = (config.num_buckets, config.num_heads)
  return layers.param(rngs, layers.normal(0.02), shape, (None, "heads"))
