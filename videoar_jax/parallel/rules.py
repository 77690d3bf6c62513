"""One table from logical axis names to mesh axes, and what follows from it."""

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Logical axis -> mesh axes. Of slices, each has all parameters.
LOGICAL_AXIS_RULES: dict[str, tuple[str, ...]] = {
  "batch": ("slice", "data", "fsdp"),
  "sequence": ("sequence",),
  "embed": ("fsdp",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  # Within attention, where the sequence is whole.
  "attended_heads": ("tensor", "sequence"),
  "mlp": ("tensor",),
  "vocabulary": (),
  # Kernels of convolutions are small, and some have three channels: each device has them whole.
  "conv_in": (),
  "conv_out": (),
}


class ShardingError(ValueError):
  """A mesh axis does not divide what is to be split over it."""


def spec_of(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """Returns how an array is split.

  Args:
    axes: logical names of the last axes, None for one that is not split; neither are axes in front
      of them (stacked layers).
    shape: the array's shape.
    mesh: the mesh.
  Raises:
    ShardingError: a mesh axis does not divide an axis that should be split over it.
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
    ways = math.prod(mesh.shape[axis] for axis in mesh_axes)
    if size % ways:
      raise ShardingError(
        f"axis {name!r} of size {size} in shape {shape} does not divide over the mesh axes "
        f"{mesh_axes} of size {ways}; change mesh.{mesh_axes[0]} or the size"
      )
    parts.append(mesh_axes or None)
  return PartitionSpec(*parts)


def sharding_of(axes, shape, mesh: Mesh) -> NamedSharding:
  """Returns `spec_of` on the mesh."""
  return NamedSharding(mesh, spec_of(axes, shape, mesh))


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
  """Constrains an activation inside jit, where a mesh is set; otherwise returns it as it is."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec_of(axes, x.shape, mesh))


def num_shards(name: str) -> int:
  """Returns over how many devices an axis is split inside jit, on the mesh that is set."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES[name])


def is_for_tpu() -> bool:
  """Says whether what is traced now will run on TPU: on the mesh that is set, or by default."""
  return _platform() == "tpu"


def is_for_cpu() -> bool:
  """Says whether what is traced now will run on CPU: on the mesh that is set, or by default."""
  return _platform() == "cpu"


def _platform() -> str:
  """Returns what is traced for: on the mesh that is set, or by default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return jax.default_backend()
  return "tpu" if "TPU" in device.device_kind else device.device_kind


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def place(x, sharding: NamedSharding) -> jax.Array:
  """Returns an array that each process has whole, each device with its own part alone."""
  if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
    return x
  x = np.asarray(x)
  # JAX takes this for a transfer that nobody asked for, as what `shard_batch` does over processes.
  with jax.transfer_guard_host_to_device("allow"):
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
