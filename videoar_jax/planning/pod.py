"""TPU topologies for ahead-of-time compilation without the hardware, and meshes over them."""

import dataclasses
import importlib.util

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh

from videoar_jax.parallel.hardware import Chip
from videoar_jax.parallel.mesh import AXES, MeshConfig, make_mesh, mesh_sizes
from videoar_jax.parallel.rules import AnyMesh


@dataclasses.dataclass(frozen=True)
class Pod:
  """A pod to plan for; with several slices, each of them is such a pod.

  Attributes:
    name: such as `v5p:4x4x4`.
    chip: type of its chips.
    num_chips: number of chips.
    is_compiled: whether to compile programs, or only to estimate them.
  """

  name: str
  chip: Chip
  num_chips: int
  is_compiled: bool

  def mesh(self, config: MeshConfig) -> AnyMesh:
    """Returns the mesh of its devices to compile for, or an abstract mesh to estimate for.

    Raises:
      ValueError: the sizes do not fit, the topology is unknown, or libtpu is not installed.
    """
    slices = max(1, config.slice)
    if self.is_compiled:
      return make_mesh(config, list(_devices(self.name, slices)))
    sizes = mesh_sizes(config, self.num_chips * self.chip.num_devices * slices)
    return AbstractMesh(sizes, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def _devices(topology: str, num_slices: int):
  """Returns the devices of a TPU topology.

  Raises:
    ValueError: there is none of that name, or libtpu is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError("libtpu is not installed; pip install 'videoar_jax[plan]', or add --count")
  try:
    options = {"num_slices": num_slices} if num_slices > 1 else {}
    if topology.startswith("v4:"):
      # Else the two cores of a chip are devices of their own, which no v4 host shows.
      options["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
  except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
    raise ValueError(
      f"--topology={topology}: the compiler does not know this topology ({error}); known are for "
      "instance v5e:2x2 to 16x16, v5p:2x2x1 to 16x16x16, v6e:2x2 to 16x16"
    ) from error
