"""Checkpoints: what a reader leaves alone, a full disk, a missing step."""

import collections
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.train.checkpoint import Checkpointer

Usage = collections.namedtuple("Usage", "total used free")


def make_state(value):
  params = {"kernel": jnp.full((3, 4), value)}
  opt_state = ({"mu": params}, ())
  rival = {"params": {"bias": jnp.full(3, 2 * value)}, "averages": {"real": jnp.asarray(value)}}
  state = {"params": params, "opt_state": opt_state, "ema": {}, "step": jnp.asarray(7)}
  return state | {"rival": rival, "guard": {}}


@pytest.fixture
def saved(tmp_path):
  checkpointer = Checkpointer(tmp_path / "checkpoints")
  checkpointer.save(7, make_state(1.0), {"next_index": 3})
  checkpointer.close()
  return tmp_path / "checkpoints"


def test_state_and_iterator_come_back(saved):
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    make_state(0.0),
  )
  checkpointer = Checkpointer(saved)
  state, iterator = checkpointer.restore(abstract)
  jax.tree.map(np.testing.assert_array_equal, state, make_state(1.0))
  assert iterator == {"next_index": 3} and jax.tree.structure(state) == jax.tree.structure(abstract)
  with pytest.raises(FileNotFoundError, match="step 5"):
    checkpointer.restore(abstract, step=5)
  checkpointer.close()


def test_a_reader_leaves_an_unfinished_save_alone(saved):
  unfinished = saved / "9.orbax-checkpoint-tmp-1"
  unfinished.mkdir()
  reader = Checkpointer(saved, is_reader=True)
  assert reader.latest_step == 7
  reader.close()
  assert unfinished.is_dir()
  writer = Checkpointer(saved)
  assert writer.latest_step == 7
  writer.close()


def test_full_disk_is_named_and_loses_nothing(saved, monkeypatch):
  checkpointer = Checkpointer(saved)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 90, 10))
  with pytest.raises(OSError, match=r"no room on the disk.*checkpoints.*from step 7"):
    checkpointer.save(8, make_state(2.0), {"next_index": 4})
  assert checkpointer.latest_step == 7
  checkpointer.close()
  assert not (saved / "8").exists()
