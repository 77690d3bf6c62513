"""A pod that is not there: its devices as TPU's compiler knows them, and meshes over them."""

import dataclasses
import importlib.util
import re

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh

from videoar_jax.parallel.hardware import Chip
from videoar_jax.parallel.mesh import AXES, AnyMesh, MeshConfig, make_mesh, mesh_sizes


@dataclasses.dataclass(frozen=True)
class Pod:
  """Where to plan for; of several slices, each is such a pod.

  Attributes:
    name: as `v5p:4x4x4`.
    chip: what it is made of.
    num_chips: how many of them.
    is_compiled: whether to ask the compiler, or to count alone.
  """

  name: str
  chip: Chip
  num_chips: int
  is_compiled: bool

  def mesh(self, config: MeshConfig) -> AnyMesh:
    """Returns the mesh over its devices, where the compiler is asked; else one without devices.

    Raises:
      ValueError: the sizes do not fit, there is no such topology, or no compiler.
    """
    slices = max(1, config.slice)
    if self.is_compiled:
      return make_mesh(config, list(_devices(self.name, slices)))
    sizes = mesh_sizes(config, self.num_chips * self.chip.num_devices * slices)
    return AbstractMesh(sizes, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def parse_mesh(text: str) -> MeshConfig:
  """Reads `axis:size,axis:size`; what is left out is 1.

  Raises:
    ValueError: it is not of that form.
  """
  sizes = dict.fromkeys(AXES, 1)
  for part in text.split(","):
    match = re.fullmatch(r"(\w+):(\d+)", part)
    if not match or match[1] not in sizes:
      raise ValueError(f"--mesh={text}: {part!r} is not AXIS:SIZE; axes are {', '.join(AXES)}")
    sizes[match[1]] = int(match[2])
  return MeshConfig(**sizes)


def _devices(topology: str, num_slices: int):
  """Returns the devices of a TPU topology.

  Raises:
    ValueError: there is none of that name, or libtpu is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError("TPU's compiler is missing; pip install 'videoar_jax[plan]', or add --count")
  try:
    more = {"num_slices": num_slices} if num_slices > 1 else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices
  except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
    raise ValueError(
      f"--topology={topology}: the compiler knows no such pod ({error}); known are for instance "
      "v5e:2x2 to 16x16, v5p:2x2x1 to 16x16x16, v6e:2x2 to 16x16"
    ) from error
