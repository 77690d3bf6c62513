"""Checkpoints: retention, other meshes, damage, failures, read-only access."""

import collections
import logging
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_runs import damage_checkpoint

from videoar_jax.parallel import processes
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.train.checkpoint import Checkpointer

Usage = collections.namedtuple("Usage", "total used free")


def make_state(value):
  params = {"kernel": jnp.full((3, 4), value)}
  opt_state = ({"mu": params}, ())
  discriminator = {
    "params": {"bias": jnp.full(3, 2 * value)},
    "lecam_ema": {"real": jnp.asarray(value)},
  }
  state = {"params": params, "opt_state": opt_state, "ema": {}, "step": jnp.asarray(7)}
  return state | {"discriminator": discriminator, "anomaly": {}}


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
  with pytest.raises(OSError, match=r"no space on the disk.*checkpoints.*from step 7"):
    checkpointer.save(8, make_state(2.0), {"next_index": 4})
  assert checkpointer.latest_step == 7
  checkpointer.close()
  assert not (saved / "8").exists()


def abstract_of(state, mesh=None, spec=None):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def describe(x):
    own = sharding
    if mesh is not None:
      own = NamedSharding(mesh, spec if x.ndim == 2 else PartitionSpec())
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own)

  return jax.tree.map(describe, state)


def save_all(directory, steps, **options):
  checkpointer = Checkpointer(directory, **options)
  for step in steps:
    checkpointer.save(step, make_state(float(step)), {"next_index": step})
  checkpointer.close()


def test_newest_are_kept_and_those_of_a_period(tmp_path):
  save_all(tmp_path, range(2, 14, 2), max_to_keep=2, keep_period=4)
  kept = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
  assert kept == [4, 8, 10, 12]


def test_damaged_checkpoints_give_way_to_the_one_before(tmp_path, caplog):
  save_all(tmp_path, (2, 4, 6), max_to_keep=None)
  damage_checkpoint(tmp_path, 6)
  shutil.rmtree(tmp_path / "4" / "progress")
  checkpointer = Checkpointer(tmp_path)
  with caplog.at_level(logging.ERROR):
    step, state, iterator = checkpointer.restore_newest(abstract_of(make_state(0.0)))
  assert step == 2 and iterator == {"next_index": 2} and "STEP 6 IN" in caplog.text
  jax.tree.map(np.testing.assert_array_equal, state, make_state(2.0))
  assert (tmp_path / "damaged-6").is_dir() and (tmp_path / "damaged-4").is_dir()
  # The steps come again, and are saved again.
  checkpointer.save(4, make_state(4.0), {"next_index": 4})
  checkpointer.close()
  assert Checkpointer(tmp_path, is_reader=True).latest_step == 4


def test_a_step_that_is_damaged_again_is_set_aside_again(tmp_path):
  save_all(tmp_path, (2, 4), max_to_keep=None)
  (tmp_path / "damaged-4").mkdir()
  (tmp_path / "damaged-4" / "old").touch()
  damage_checkpoint(tmp_path, 4)
  checkpointer = Checkpointer(tmp_path)
  assert checkpointer.restore_newest(abstract_of(make_state(0.0)))[0] == 2
  checkpointer.close()
  assert len(list(tmp_path.glob("damaged-4*"))) == 2


def test_a_reader_takes_the_one_before_and_changes_nothing(tmp_path, caplog):
  save_all(tmp_path, (2, 4), max_to_keep=None)
  damage_checkpoint(tmp_path, 4)
  reader = Checkpointer(tmp_path, is_reader=True)
  abstract = abstract_of(make_state(0.0))["params"]
  with caplog.at_level(logging.ERROR):
    params = reader.restore_item("params", abstract)
  np.testing.assert_array_equal(params["kernel"], 2.0)
  assert "STEP 4 IN" in caplog.text and (tmp_path / "4").is_dir()
  with pytest.raises(ValueError):  # One that was asked for by its number is no other.
    reader.restore_item("params", abstract, 4)
  reader.close()


def test_processes_take_the_step_that_the_first_has_and_all_can_read(tmp_path, monkeypatch):
  """As process 1 of two, which lists more steps than the first and cannot read its step 4."""
  save_all(tmp_path, (2, 4, 6), max_to_keep=None)
  checkpointer = Checkpointer(tmp_path)
  asked, firsts, answers = [], iter([4, 2]), iter([False, True])
  monkeypatch.setattr(processes, "broadcast", lambda step: asked.append(step) or next(firsts))
  monkeypatch.setattr(processes, "all_true", lambda is_so: is_so and next(answers))
  monkeypatch.setattr(processes, "is_first", lambda: False)
  monkeypatch.setattr(processes, "wait_for_all", lambda what: None)
  step, _, iterator = checkpointer.restore_newest(abstract_of(make_state(0.0)))
  checkpointer.close()
  assert step == 2 and iterator == {"next_index": 2} and asked == [6, 6]
  assert not list(tmp_path.glob("damaged*"))  # That is the first one's to do.


def test_arrays_that_are_placed_otherwise_than_asked_are_an_error(saved, monkeypatch):
  abstract = abstract_of(make_state(0.0), make_mesh(MeshConfig()), PartitionSpec())
  checkpointer = Checkpointer(saved)
  read = checkpointer._read
  elsewhere = abstract_of(make_state(0.0))
  monkeypatch.setattr(checkpointer, "_read", lambda _, step: read(elsewhere, step))
  for restore in (checkpointer.restore, checkpointer.restore_newest):
    with pytest.raises(RuntimeError, match=r"'real'.* was restored as .*not as"):
      restore(abstract)
  checkpointer.close()
  assert (saved / "7").is_dir()


def test_damage_everywhere_is_an_error_and_changes_nothing(saved):
  damage_checkpoint(saved, 7)
  checkpointer = Checkpointer(saved)
  with pytest.raises(ValueError, match=r"no checkpoint in .*checkpoints can be read.*step 7"):
    checkpointer.restore_newest(abstract_of(make_state(0.0)))
  checkpointer.close()
  assert (saved / "7").is_dir()


def test_a_save_that_fails_is_noticed_and_the_next_one_goes_well(saved, monkeypatch):
  checkpointer = Checkpointer(saved)
  rename = pathlib.Path.rename

  def fail(*_):
    raise OSError("the bucket is gone")

  # What makes a save whole, at its end, in the background.
  monkeypatch.setattr(pathlib.Path, "rename", fail)
  monkeypatch.setattr("os.rename", fail)
  checkpointer.save(8, make_state(2.0), {"next_index": 4})
  with pytest.raises(Exception, match=r"the bucket is gone|save of step 8 .* failed"):
    for _ in range(3000):
      checkpointer.check()
      time.sleep(0.01)
  monkeypatch.undo()
  assert pathlib.Path.rename is rename and checkpointer.latest_step == 7
  checkpointer.save(9, make_state(3.0), {"next_index": 5})
  checkpointer.close()
  assert Checkpointer(saved, is_reader=True).latest_step == 9


@pytest.mark.parametrize("num_looks", [0, 10_000])
def test_a_save_that_fails_leaves_the_one_it_was_to_replace(saved, monkeypatch, num_looks):
  """However soon anyone looks; and its partial files are removed before the next save."""
  checkpointer = Checkpointer(saved, max_to_keep=1)

  def fail(*_):
    raise OSError("the bucket is gone")

  monkeypatch.setattr("os.rename", fail)
  checkpointer.save(8, make_state(2.0), {"next_index": 4})
  with pytest.raises(OSError, match="the bucket is gone"):
    for _ in range(num_looks):
      checkpointer.check()
    checkpointer.wait()
  monkeypatch.undo()
  assert (saved / "7").is_dir() and list(saved.glob("8.*")) and checkpointer.latest_step == 7
  removed = []
  monkeypatch.setattr(
    checkpointer, "check_room", lambda _: removed.append(not list(saved.glob("8.*")))
  )
  checkpointer.save(9, make_state(3.0), {"next_index": 5})
  checkpointer.close()
  assert removed == [True] and Checkpointer(saved, is_reader=True).latest_step == 9
  assert not (saved / "7").exists()


@pytest.mark.parametrize("part", ["check_room", "_manager.save"])
def test_a_save_that_another_process_cannot_begin_is_begun_by_none(saved, monkeypatch, part):
  checkpointer, tried = Checkpointer(saved), []
  holder = checkpointer._manager if "." in part else checkpointer
  monkeypatch.setattr(holder, part.rpartition(".")[2], lambda *_, **__: tried.append(part))
  # As if the other one had failed as soon as this one has tried.
  monkeypatch.setattr(processes, "all_true", lambda is_so: is_so and not tried)
  with pytest.raises(OSError, match="another process failed"):
    checkpointer.save(8, make_state(2.0), {"next_index": 4})
  monkeypatch.undo()
  assert tried and not list(saved.glob("8*"))
  checkpointer.check()
  checkpointer.save(9, make_state(3.0), {"next_index": 5})
  checkpointer.close()
  assert Checkpointer(saved, is_reader=True).latest_step == 9


def test_a_disk_that_takes_no_file_is_found_out_before_a_save_begins(saved, monkeypatch):
  def fail(**_):
    raise OSError("Read-only file system")

  checkpointer = Checkpointer(saved)
  monkeypatch.setattr("tempfile.TemporaryFile", fail)
  with pytest.raises(OSError, match="Read-only"):
    checkpointer.save(8, make_state(2.0), {"next_index": 4})
  checkpointer.close()
  assert not list(saved.glob("8*"))


def test_a_save_does_not_ask_whether_to_stop(tmp_path, monkeypatch):
  """Saves do not take part in the agreement on preemption, whose numbers have to rise."""
  asked = []
  monkeypatch.setattr(
    processes.multihost_utils, "reached_preemption_sync_point", lambda number: asked.append(number)
  )
  save_all(tmp_path, (2, 4))
  assert not asked


def test_a_save_that_hangs_is_noticed(saved, monkeypatch):
  checkpointer = Checkpointer(saved, timeout_s=5)
  checkpointer.save(8, make_state(2.0), {"next_index": 4})
  monkeypatch.setattr(checkpointer._manager, "is_saving_in_progress", lambda: True)
  checkpointer.check()
  now = time.monotonic()
  monkeypatch.setattr(time, "monotonic", lambda: now + 6)
  with pytest.raises(TimeoutError, match=r"save of step 8 .* hanging for 5 s"):
    checkpointer.check()
  checkpointer.close()  # And does not wait.


def test_restores_onto_other_meshes(tmp_path):
  """From fsdp over two devices to one device, to tensor, and back, exactly."""
  devices = jax.devices()[:2]
  meshes = [
    (make_mesh(MeshConfig(data=1, fsdp=2), devices), PartitionSpec(None, "fsdp")),
    (make_mesh(MeshConfig(data=1), devices[:1]), PartitionSpec()),
    (make_mesh(MeshConfig(data=1, tensor=2), devices), PartitionSpec(None, "tensor")),
    (make_mesh(MeshConfig(data=1, fsdp=2), devices), PartitionSpec(None, "fsdp")),
  ]
  state = make_state(1.0)
  state["params"]["kernel"] = jnp.arange(12.0).reshape(3, 4)
  first = state
  for number, (mesh, spec) in enumerate(meshes):
    abstract = abstract_of(state, mesh, spec)
    state = jax.tree.map(lambda x, y: jax.device_put(np.asarray(x), y.sharding), state, abstract)
    checkpointer = Checkpointer(tmp_path / str(number))
    checkpointer.save(1, state, {})
    checkpointer.close()
    mesh, spec = meshes[(number + 1) % len(meshes)]
    abstract = abstract_of(state, mesh, spec)
    checkpointer = Checkpointer(tmp_path / str(number))
    _, state, _ = checkpointer.restore_newest(abstract)
    checkpointer.close()
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, abstract)
  jax.tree.map(np.testing.assert_array_equal, state, first)


@pytest.mark.parametrize("has_failed", [False, True])
def test_closing_does_not_hide_why_a_save_failed(tmp_path, monkeypatch, has_failed):
  checkpointer = Checkpointer(tmp_path)

  def stumble(*_, **__):
    raise TimeoutError("others wait at a barrier")

  if has_failed:
    monkeypatch.setattr(checkpointer._manager, "save", stumble)
    with pytest.raises(TimeoutError):
      checkpointer.save(1, make_state(0.0), {})
  close = checkpointer._manager.close
  monkeypatch.setattr(checkpointer._manager, "close", stumble)
  if has_failed:
    checkpointer.close()
  else:
    with pytest.raises(TimeoutError):
      checkpointer.close()
  close()
