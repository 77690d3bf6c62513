"""Bytes of arrays on a device, and bytes that devices send each other for them."""

import math

import jax


def device_bytes(shapes, shardings) -> int:
  """Returns the bytes of a tree of arrays on one device."""
  sizes = jax.tree.map(
    lambda x, sharding: math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize,
    shapes,
    shardings,
  )
  return sum(jax.tree.leaves(sizes))


def gathered_bytes(shapes, shardings) -> tuple[float, float]:
  """Returns the bytes of parameters as a device uses them, and those of them that others send."""
  used = sent = 0.0
  for x, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
    own = math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
    axes = {axis for part in sharding.spec for axis in axes_of(part)}
    num_shards = sharding.mesh.shape["fsdp"] if "fsdp" in axes else 1
    used += own * num_shards
    sent += own * (num_shards - 1)
  return used, sent


def axes_of(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Returns the mesh axes that one entry of a partition names."""
  return (part,) if isinstance(part, str) else tuple(part or ())
