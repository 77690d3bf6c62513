"""The table of logical axis names to mesh axes, and shardings derived from it."""

import math

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

# Of devices, or only of their number, for plans.
AnyMesh = Mesh | AbstractMesh

# Logical axis -> mesh axes. Each slice has all parameters.
LOGICAL_AXIS_RULES: dict[str, tuple[str, ...]] = {
  "batch": ("slice", "data", "fsdp"),
  "sequence": ("sequence",),
  "embed": ("fsdp",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  # Within attention, where the sequence is not sharded.
  "attended_heads": ("tensor", "sequence"),
  "mlp": ("tensor",),
  "vocabulary": (),
  # Convolution kernels are replicated: they are small, and some have only three channels.
  "conv_in": (),
  "conv_out": (),
}


class ShardingError(ValueError):
  """A mesh axis does not divide the array axis that it shards."""


def spec_of(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
  """Returns the partition spec of an array.

  Args:
    axes: logical names of the last axes; None for an axis that is not sharded. Axes before them
      (stacked layers) are not sharded.
    shape: the array's shape.
    mesh: the mesh.
  Raises:
    ShardingError: a mesh axis does not divide the array axis that it shards.
    ValueError: there is no rule for a name.
  """
  unknown = [name for name in axes if name is not None and name not in LOGICAL_AXIS_RULES]
  if unknown:
    raise ValueError(
      f"axis {unknown[0]!r} has no rule; names with one are {', '.join(LOGICAL_AXIS_RULES)}"
    )
  names = (None,) * (len(shape) - len(axes)) + tuple(axes)
  parts = []
  for name, size in zip(names, shape, strict=True):
    mesh_axes = tuple(axis for axis in LOGICAL_AXIS_RULES.get(name, ()) if mesh.shape[axis] > 1)
    num_parts = math.prod(mesh.shape[axis] for axis in mesh_axes)
    if size % num_parts:
      raise ShardingError(
        f"axis {name!r} of size {size} in shape {shape} does not divide over the mesh axes "
        f"{mesh_axes} of size {num_parts}; change mesh.{mesh_axes[0]} or the size"
      )
    parts.append(mesh_axes or None)
  return PartitionSpec(*parts)


def sharding_of(axes, shape, mesh: AnyMesh) -> NamedSharding:
  """Returns the sharding of an array on the mesh; see `spec_of`."""
  return NamedSharding(mesh, spec_of(axes, shape, mesh))


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
  """Constrains an activation's sharding inside jit; without a mesh, returns it unchanged."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec_of(axes, x.shape, mesh))


def num_shards(name: str) -> int:
  """Returns the number of shards of a logical axis on the current mesh, inside jit."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES[name])


def is_for_tpu() -> bool:
  """Returns whether the current trace is for TPU, by the current mesh or the default backend."""
  return _platform() == "tpu"


def is_for_cpu() -> bool:
  """Returns whether the current trace is for CPU, by the current mesh or the default backend."""
  return _platform() == "cpu"


def _platform() -> str:
  """Returns the platform of the current trace, by the current mesh or the default backend."""
  return platform_of(jax.sharding.get_abstract_mesh())


def platform_of(mesh: AnyMesh) -> str:
  """Returns a mesh's platform, or the default backend's: "cpu", "tpu", or a GPU's name."""
  device = mesh.abstract_device if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0]
  if device is None:
    return jax.default_backend()
  return "tpu" if "TPU" in device.device_kind else device.device_kind


def replicated(mesh: AnyMesh) -> NamedSharding:
  """Returns the sharding of an array that is replicated on every device."""
  return NamedSharding(mesh, PartitionSpec())


def place(x, sharding: NamedSharding) -> jax.Array:
  """Shards an array that every process has in full; each device gets only its own shard."""
  if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
    return x
  x = np.asarray(x)
  # JAX counts this as an implicit transfer, as in `shard_batch`.
  with jax.transfer_guard_host_to_device("allow"):
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
