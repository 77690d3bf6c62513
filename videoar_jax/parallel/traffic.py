"""Memory of sharded arrays on a device, and the traffic to gather them."""

import math

import jax


def device_bytes(shapes, shardings) -> int:
  """Returns the bytes that a tree of sharded arrays takes on one device."""
  sizes = jax.tree.map(
    lambda x, sharding: math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize,
    shapes,
    shardings,
  )
  return sum(jax.tree.leaves(sizes))


def gathered_bytes(shapes, shardings) -> tuple[float, float]:
  """Returns the bytes of parameters after the FSDP all-gather, and the bytes that it receives."""
  used = sent = 0.0
  for x, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
    own = math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
    axes = {axis for part in sharding.spec for axis in axes_of(part)}
    num_shards = sharding.mesh.shape["fsdp"] if "fsdp" in axes else 1
    used += own * num_shards
    sent += own * (num_shards - 1)
  return used, sent


def axes_of(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Returns the mesh axes of one entry of a partition spec."""
  return (part,) if isinstance(part, str) else tuple(part or ())
