"""The device mesh, and the shard of a batch that each process reads."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES, AnyMesh, place

T = TypeVar("T")

# From the slowest network to the fastest: the data-centre network connects slices.
AXES = ("slice", "data", "fsdp", "sequence", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; one axis may be -1, for all remaining devices.

  Attributes:
    data: data parallel: each device has a shard of the batch, and all parameters.
    fsdp: fully sharded data parallel: each device has a shard of the batch, of the parameters, and
      of the optimizer state.
    sequence: sequence parallel: each device has a shard of every clip's tokens and, within
      attention, of the heads.
    tensor: tensor parallel: each device has a shard of the heads and of the MLP.
    slice: data parallel over TPU slices, which a slower network connects.
  """

  data: int = -1
  fsdp: int = 1
  sequence: int = 1
  tensor: int = 1
  slice: int = 1


def parse_mesh(text: str, name: str = "--mesh") -> MeshConfig:
  """Parses `axis:size,axis:size`; the size of other axes is 1, and one may be -1.

  Args:
    text: to parse.
    name: of the flag or field, for the error.
  Raises:
    ValueError: it does not have that form.
  """
  sizes = dict.fromkeys(AXES, 1)
  for part in text.split(","):
    match = re.fullmatch(r"(\w+):(-1|\d+)", part)
    if not match or match[1] not in sizes:
      raise ValueError(f"{name}={text}: {part!r} is not AXIS:SIZE; axes are {', '.join(AXES)}")
    sizes[match[1]] = int(match[2])
  return MeshConfig(**sizes)


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
    ValueError: the sizes do not multiply to the number of devices, or `slice` is not the number of
      slices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(config, len(devices))
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  slices = [_arrange(part, sizes[1:]) for part in _split_slices(devices, sizes[0])]
  return Mesh(np.stack(slices), AXES, axis_types=auto)


def _split_slices(devices: list, num_slices: int) -> list[list]:
  """Returns the devices of each slice; devices without slices are split in order."""
  by_slice: dict[int, list] = {}
  for device in devices:
    by_slice.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
  if len(by_slice) == 1:
    size = len(devices) // num_slices
    return [devices[i * size : (i + 1) * size] for i in range(num_slices)]
  if len(by_slice) != num_slices:
    raise ValueError(
      f"mesh.slice={num_slices}, but the devices are in {len(by_slice)} slices; set mesh.slice to "
      f"{len(by_slice)}"
    )
  return [by_slice[index] for index in sorted(by_slice)]


def _arrange(devices: list, sizes: tuple[int, ...]) -> np.ndarray:
  """Returns one slice's devices in the shape of the mesh, with physical neighbours adjacent."""
  # Mesh axes may split a physical axis, for sizes that are not products of physical axes.
  return mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)


def num_batch_shards(mesh: AnyMesh) -> int:
  """Returns the number of shards that the mesh splits a batch into."""
  return math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES["batch"])


def process_shard(mesh: Mesh) -> tuple[int, int]:
  """Returns which shard of each batch this process reads, and the number of shards.

  Processes whose devices hold the same samples, because a mesh axis across them splits something
  else, read the same shard.

  Raises:
    ValueError: the shards of two processes overlap only partly.
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
      f"mesh: {dict(mesh.shape)} splits batches unevenly over the {len(owned)} processes; choose "
      "mesh.sequence x mesh.tensor to divide, or be a multiple of, the devices of a process"
    )
  return parts.index(tuple(sorted(owned[jax.process_index()]))), len(parts)


def call_on(mesh: Mesh | None, function: Callable[..., T], *arguments, **settings) -> T:
  """Calls a function, on a mesh if there is one."""
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    return function(*arguments, **settings)


def shard_padded(batch, mesh: Mesh | None):
  """Splits a batch that every process has in full over the devices, along the first axis.

  Rows are repeated from the start until they divide. Without a mesh, the batch stays as it is.
  """
  if mesh is None:
    return batch
  spec, shards = PartitionSpec(LOGICAL_AXIS_RULES["batch"]), num_batch_shards(mesh)

  def split(x) -> jax.Array:
    num = -(-len(x) // shards) * shards
    return place(np.take(x, np.arange(num) % len(x), axis=0), NamedSharding(mesh, spec))

  return jax.tree.map(split, batch)


def shard_batch(batch, mesh: Mesh):
  """Puts this process's shard of a batch on its devices, split along the first axis."""
  sharding = NamedSharding(mesh, PartitionSpec(LOGICAL_AXIS_RULES["batch"]))
  with jax.transfer_guard_host_to_device("allow"):
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )
