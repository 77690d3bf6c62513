"""Costs of attention with a cache of keys and values, on a mesh, for estimates of sampling."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from videoar_jax.nn.cache import Cache, cache_axes, num_query_blocks
from videoar_jax.parallel.mesh import num_batch_shards
from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES, AnyMesh, sharding_of
from videoar_jax.parallel.traffic import device_bytes


@dataclasses.dataclass(frozen=True)
class CachedLayers:
  """Transformer layers that attend to a cache; bytes are per device, over all layers.

  Attributes:
    mesh: devices, or an abstract one.
    rows: clips, counted twice with guidance.
    num_layers: of the network.
    d_model: width of a token.
    num_heads: of queries.
    num_kv_heads: of keys and values.
    head_dim: width of a head.
    dtype: of activations and of the cache.
  """

  mesh: AnyMesh
  rows: int
  num_layers: int
  d_model: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  dtype: jnp.dtype

  @property
  def cache_axes(self) -> tuple[str | None, ...]:
    """Logical axes of keys `[b, g, k, l]`, and of values `[b, g, l, k]`."""
    axes = LOGICAL_AXIS_RULES["attended_heads"]
    return cache_axes(self.num_kv_heads, math.prod(self.mesh.shape[axis] for axis in axes))

  @property
  def device_rows(self) -> float:
    """Rows of a device."""
    return self.rows / num_batch_shards(self.mesh)

  def cache(self, length: int) -> Cache:
    """Returns the shapes of the keys and values of `length` positions, with their shardings.

    Raises:
      ShardingError: the mesh does not divide the heads.
    """

    def part(*rest: int) -> jax.ShapeDtypeStruct:
      shape = (self.num_layers, self.rows, self.num_kv_heads, *rest)
      split = sharding_of(self.cache_axes, shape, self.mesh)
      return jax.ShapeDtypeStruct(shape, self.dtype, sharding=split)

    return Cache(part(self.head_dim, length), part(length, self.head_dim))

  def cache_bytes(self, length: int) -> int:
    """Returns the bytes of the keys and values of `length` positions."""
    cache = self.cache(length)
    return device_bytes(cache, jax.tree.map(lambda x: x.sharding, cache))

  def attention_bytes(self, num_queries: int, length: int) -> float:
    """Returns the bytes that attention reads and writes.

    Each block of queries reads all keys and values. Its scores are too many for a chip's fast
    memory: in float32, the product writes them, their maximum and their exponential read them; the
    exponentials are written and read in the type of activations.

    Args:
      num_queries: tokens of a call.
      length: positions that they attend to.
    """
    scores = self.num_layers * self._device_heads * num_queries * length
    scores *= 3 * 4 + 2 * self.dtype.itemsize
    return num_query_blocks(num_queries) * self.cache_bytes(length) + scores

  @property
  def _device_heads(self) -> float:
    """Heads of queries of a device, over its rows."""
    keys = self.cache(1).keys
    shards = self.num_kv_heads // keys.sharding.shard_shape(keys.shape)[2]
    return self.device_rows * self.num_heads / shards

  def held_bytes(self, num_tokens: int, length: int, mlp_dim: int) -> float:
    """Returns the most bytes of activations that a device holds at once.

    In attention these are the residual, queries, keys with values, and the result, beside the
    scores of a block of queries; in the MLP the residual, the normalized one, and two of the width
    of the MLP. TPU's compiler needs as much (docs/plans.md).

    Args:
      num_tokens: of a call.
      length: positions that they attend to.
      mlp_dim: width of the MLP.
    """
    block = -(-num_tokens // num_query_blocks(num_tokens))
    # In float32, and their exponentials in the type of activations.
    scores = self._device_heads * block * length * (4 + self.dtype.itemsize)
    number = self.device_rows * num_tokens * self.dtype.itemsize
    wide = 2 * mlp_dim / self.mesh.shape["tensor"]
    return max(4 * self.d_model * number + scores, (2 * self.d_model + wide) * number)

  def token_bytes(self, num_tokens: int, width: float) -> float:
    """Returns the bytes of writing and reading activations.

    Args:
      num_tokens: of a call.
      width: of all arrays of a layer together, on a device.
    """
    tokens = self.device_rows * num_tokens * self.num_layers
    return 2 * tokens * width * self.dtype.itemsize

  def sum_bytes(self, num_tokens: int, num_sums: int) -> float:
    """Returns the bytes that a device sends because heads and MLP are split.

    Args:
      num_tokens: of a call.
      num_sums: results of a layer that are summed over devices.
    """
    tensor = self.mesh.shape["tensor"]
    results = num_sums * self.num_layers * self.device_rows * num_tokens * self.d_model
    # An all-reduce sends its part in two rounds.
    return 2 * results * self.dtype.itemsize * (tensor - 1) / tensor
