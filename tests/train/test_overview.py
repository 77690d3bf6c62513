"""The overview of a network's parameters."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.train.overview import count_by_module, parameter_table


def test_all_parameters_are_listed_and_counted():
  mesh = make_mesh(MeshConfig(data=1, fsdp=2))
  split = NamedSharding(mesh, PartitionSpec("fsdp", None))
  kernel = jax.ShapeDtypeStruct((30, 50), jnp.float32, sharding=split)
  params = {"encoder": {"in": {"kernel": kernel}, "bias": jnp.zeros(50)}, "scale": jnp.zeros(3)}
  assert count_by_module(params) == {"encoder": 1550, "scale": 3}
  lines = parameter_table(params).splitlines()
  [row] = [line for line in lines if "encoder/in/kernel" in line]
  cells = [cell.strip() for cell in row.strip("|").split("|")]
  assert cells == ["encoder/in/kernel", "(30, 50)", "float32", "1,500", "('fsdp', None)"]
  assert lines[-1] == "Total: 1,553 -- 6,212 bytes"
