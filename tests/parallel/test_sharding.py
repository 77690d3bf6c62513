"""The mesh and the table of logical axes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from type_checks import stand_in

from videoar_jax.models.videoar.config import GeneratorConfig
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.models.videoar.task import GeneratorTask
from videoar_jax.parallel.mesh import (
  MeshConfig,
  _arrange,
  _split_slices,
  make_mesh,
  num_batch_shards,
  shard_batch,
)
from videoar_jax.parallel.rules import constrain, place, replicated, spec_of
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.optimizer import OptimizerConfig
from videoar_jax.train.trainer import Trainer


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


def test_name_without_a_rule_is_an_error(mesh):
  with pytest.raises(ValueError, match=r"'embde' has no rule.*embed"):
    spec_of(("embde", None), (4, 4), mesh)


def test_slices_come_first_and_keep_their_devices_together():
  devices = [
    types.SimpleNamespace(slice_index=index, platform="cpu", id=number, process_index=0)
    for number, index in enumerate((1, 0, 1, 0))
  ]
  parts = _split_slices(devices, 2)
  assert [[device.id for device in part] for part in parts] == [[1, 3], [0, 2]]
  with pytest.raises(ValueError, match=r"mesh\.slice=4.*2 slices"):
    _split_slices(devices, 4)


def test_an_axis_may_be_a_part_of_a_side_of_a_pod():
  devices = [
    types.SimpleNamespace(
      coords=(x, y, z), core_on_chip=0, platform="tpu", device_kind="TPU v5", id=16 * x + 4 * y + z
    )
    for x in range(4)
    for y in range(4)
    for z in range(4)
  ]
  arranged = _arrange(devices, (1, 1, 32, 2, 1))
  assert arranged.shape == (1, 1, 32, 2, 1)
  assert sorted(device.id for device in arranged.flat) == list(range(64))
  for first, second in arranged.reshape(32, 2):
    assert sum(abs(a - b) for a, b in zip(first.coords, second.coords, strict=True)) in (1, 2)


def test_batches_are_split_over_slices_and_parameters_are_not():
  mesh = make_mesh(MeshConfig(data=1, slice=2), jax.devices()[:2])
  assert dict(mesh.shape)["slice"] == 2 and num_batch_shards(mesh) == 2
  assert spec_of(("batch", "embed"), (4, 4), mesh) == PartitionSpec(("slice",), None)


def test_parameters_and_optimizer_are_born_split(mesh):
  """A generator's state is initialized sharded: no device ever holds all of it."""
  config = GeneratorConfig(1, 8, 2, 2, 4, 16, num_bits=4, vocabulary_size=8)
  layout = Layout(2, 1, ((1, 1),))

  def init(key):
    return Generator(nnx.Rngs(params=key), config, layout)

  task = stand_in(GeneratorTask, init=init, adversary=None, frozen={})
  trainer = Trainer(task, LoopConfig(1, 2, OptimizerConfig(), ema_decay=0.9), mesh, seed=0)
  state = trainer.init()
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    if "kernel" in jax.tree_util.keystr(path) or "table" in jax.tree_util.keystr(path):
      assert x.addressable_shards[0].data.size == x.size // 2, jax.tree_util.keystr(path)


def test_what_is_put_on_devices_by_name_is_no_implicit_transfer(mesh):
  with jax.transfer_guard("disallow"):
    whole = place(np.arange(4), replicated(mesh))
    split = shard_batch({"video": np.arange(4)}, mesh)["video"]
    for x in (whole, split):
      np.testing.assert_array_equal(jax.device_get(x), np.arange(4))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
      whole + 1


def test_constraint_without_a_mesh_is_nothing_and_with_one_splits(mesh):
  x = jnp.ones((4, 3))
  assert constrain(x, ("batch", None)) is x
  with jax.set_mesh(mesh):
    y = jax.jit(lambda x: constrain(x, ("batch", None)))(x)
  assert y.sharding.spec == PartitionSpec(("fsdp",), None) or y.sharding.spec[0] == "fsdp"
