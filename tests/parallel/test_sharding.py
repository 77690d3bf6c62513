"""The mesh and the table of logical axes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from videoar_jax.parallel.sharding import MeshConfig, constrain, make_mesh, spec_of


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])


def test_rest_of_the_devices():
  assert make_mesh(MeshConfig(), jax.devices()[:2]).shape["data"] == 2


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(data=1), MeshConfig(0, 2)])
def test_sizes_that_do_not_fit_are_named(config):
  with pytest.raises(ValueError, match="mesh"):
    make_mesh(config, jax.devices()[:2])


def test_axes_map_by_name_and_stacked_layers_stay_whole(mesh):
  assert spec_of(("embed", "mlp"), (4, 6, 8), mesh) == PartitionSpec(None, ("fsdp",), None)


def test_axis_that_does_not_divide_is_an_error(mesh):
  with pytest.raises(ValueError, match=r"'embed' of size 5.*'fsdp'"):
    spec_of(("embed", None), (5, 4), mesh)


def test_constraint_without_a_mesh_is_nothing_and_with_one_splits(mesh):
  x = jnp.ones((4, 3))
  assert constrain(x, ("batch", None)) is x
  with jax.set_mesh(mesh):
    y = jax.jit(lambda x: constrain(x, ("batch", None)))(x)
  assert y.sharding.spec == PartitionSpec(("fsdp",), None) or y.sharding.spec[0] == "fsdp"
