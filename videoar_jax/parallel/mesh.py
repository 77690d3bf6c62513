"""The mesh, and one table from logical axis names to mesh axes."""

import dataclasses
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

# From the slowest network to the fastest: slices are joined by the data centre's own.
AXES = ("slice", "data", "fsdp", "sequence", "tensor")

# Of devices, or of their numbers alone, for plans.
AnyMesh = Mesh | AbstractMesh

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


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; -1 takes what is left, for one axis.

  Attributes:
    data: each has a part of the batch and all parameters.
    fsdp: each has a part of the batch, of the parameters, and of the optimizer.
    sequence: each has a part of every clip's tokens and, within attention, of the heads.
    tensor: each has a part of the heads and of the MLP.
    slice: as `data`, over slices of TPUs that a slow network joins.
  """

  data: int = -1
  fsdp: int = 1
  sequence: int = 1
  tensor: int = 1
  slice: int = 1


def mesh_sizes(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
  """Returns the number of devices along each of `AXES`.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  sizes = [getattr(config, axis) for axis in AXES]
  known = math.prod(size for size in sizes if size != -1)
  if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
    raise ValueError(f"mesh: sizes must be positive, one may be -1; got {config}")
  if num_devices % known or (-1 not in sizes and known != num_devices):
    raise ValueError(
      f"mesh: {config} needs a multiple of {known} devices, but there are {num_devices}; "
      "change the sizes, or set one to -1"
    )
  return tuple(num_devices // known if size == -1 else size for size in sizes)


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
  """Makes the mesh over all devices.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or the slices are others.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(config, len(devices))
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  slices = [_arrange(part, sizes[1:]) for part in _split_slices(devices, sizes[0])]
  return Mesh(np.stack(slices), AXES, axis_types=auto)


def _split_slices(devices: list, num_slices: int) -> list[list]:
  """Returns the devices of each slice; those that know no slice are cut in their order."""
  by_slice: dict[int, list] = {}
  for device in devices:
    by_slice.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
  if len(by_slice) == 1:
    size = len(devices) // num_slices
    return [devices[i * size : (i + 1) * size] for i in range(num_slices)]
  if len(by_slice) != num_slices:
    raise ValueError(
      f"mesh.slice={num_slices}, but the devices are in {len(by_slice)} slices; set it to that"
    )
  return [by_slice[index] for index in sorted(by_slice)]


def _arrange(devices: list, sizes: tuple[int, ...]) -> np.ndarray:
  """Returns one slice's devices in the shape of its axes, neighbours beside each other."""
  # Where no axis is as long as sides of the pod, an axis is a part of a side.
  return mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)


def spec_of(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
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


def sharding_of(axes, shape, mesh: AnyMesh) -> NamedSharding:
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


def replicated(mesh: AnyMesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def place(x, sharding: NamedSharding) -> jax.Array:
  """Returns an array that each process has whole, each device with its own part alone."""
  if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
    return x
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def num_batch_shards(mesh: AnyMesh) -> int:
  """Returns how many parts a batch is split into over the devices."""
  return math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES["batch"])


def process_shard(mesh: Mesh) -> tuple[int, int]:
  """Returns which part of each batch this process is to read, and how many parts there are.

  Processes that share samples, by an axis of the mesh that splits something else, read the same.

  Raises:
    ValueError: processes share some samples and not others.
  """
  num_axes = len(LOGICAL_AXIS_RULES["batch"])
  rows = mesh.devices.reshape(math.prod(mesh.devices.shape[:num_axes]), -1)
  owned: dict[int, set[int]] = {}
  for row, devices in enumerate(rows):
    for device in devices:
      owned.setdefault(device.process_index, set()).add(row)
  parts = sorted({tuple(sorted(part)) for part in owned.values()})
  if sum(map(len, parts)) != len(rows) or len({len(part) for part in parts}) > 1:
    raise ValueError(
      f"mesh: {dict(mesh.shape)} cuts batches across the {len(owned)} processes unevenly; let "
      "mesh.sequence x mesh.tensor divide, or be a multiple of, the devices of a process"
    )
  return parts.index(tuple(sorted(owned[jax.process_index()]))), len(parts)


def shard_batch(batch, mesh: Mesh):
  """Puts this process's part of a batch on its devices, split along the first axis."""
  sharding = NamedSharding(mesh, PartitionSpec(LOGICAL_AXIS_RULES["batch"]))
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
  )
