"""The mesh, and one table from logical axis names to mesh axes."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "sequence", "tensor")

# Logical axis -> mesh axes. What is not listed is not split.
RULES: dict[str, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "sequence": ("sequence",),
  "embed": ("fsdp",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "mlp": ("tensor",),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; -1 takes what is left, for one axis."""

  data: int = -1
  fsdp: int = 1
  sequence: int = 1
  tensor: int = 1


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
  """Makes the mesh over all devices.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [getattr(config, axis) for axis in AXES]
  known = math.prod(size for size in sizes if size != -1)
  if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
    raise ValueError(f"mesh: sizes must be positive, one may be -1; got {config}")
  if len(devices) % known or (-1 not in sizes and known != len(devices)):
    raise ValueError(
      f"mesh: {config} needs a multiple of {known} devices, but there are {len(devices)}; "
      "change the sizes, or set one to -1"
    )
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.make_mesh(sizes, AXES, axis_types=auto, devices=devices)


def spec_of(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """Returns how an array is split.

  Args:
    axes: logical names of the last axes; axes in front of them (stacked layers) are not split.
    shape: the array's shape.
    mesh: the mesh.
  Raises:
    ValueError: a mesh axis does not divide an axis that should be split over it.
  """
  names = (None,) * (len(shape) - len(axes)) + tuple(axes)
  parts = []
  for name, size in zip(names, shape, strict=True):
    mesh_axes = tuple(axis for axis in RULES.get(name, ()) if mesh.shape[axis] > 1)
    ways = math.prod(mesh.shape[axis] for axis in mesh_axes)
    if size % ways:
      raise ValueError(
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


def is_for_tpu() -> bool:
  """Says whether what is traced now will run on TPU: on the mesh that is set, or by default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return jax.default_backend() == "tpu"
  return "TPU" in device.device_kind


# Operations a second of matrix products in bfloat16, as the makers give them, by kind of device.
_PEAKS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
}


def peak_flops() -> float | None:
  """Returns the operations a second that all devices could do; None where that is not known."""
  peak = _PEAKS.get(jax.devices()[0].device_kind)
  return None if peak is None else peak * jax.device_count()


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch, mesh: Mesh):
  """Puts this process's part of a batch on its devices, split along the first axis."""
  sharding = NamedSharding(mesh, PartitionSpec(RULES["batch"]))
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
  )
