"""How processes connect, and which part of a batch each reads."""

import json
import sys
import types

import jax
import numpy as np
import pytest
from commands import start_two
from jax.sharding import Mesh
from type_checks import stand_in

from videoar_jax.parallel import processes as hosts
from videoar_jax.parallel.mesh import process_shard
from videoar_jax.runtime.versions import shared_versions

GIVEN = dict(zip(hosts.VARIABLES, ("host:1", "2", "1"), strict=True))


class Client:
  """The key-value store of a run, where the other processes have already put their versions."""

  def __init__(self, others):
    self.told = {f"videoar_jax/versions/{n}": json.dumps(found) for n, found in others.items()}
    self.waited_for = {}

  def key_value_set(self, key, value, allow_overwrite):
    assert allow_overwrite
    self.told[key] = value

  def wait_at_barrier(self, name, timeout_ms):
    self.waited_for[name] = list(self.told)

  def key_value_dir_get(self, prefix):
    return [(key, value) for key, value in self.told.items() if key.startswith(prefix)]


def join(monkeypatch, process, others):
  """Makes this process part of a run with others of these versions; returns the client."""
  client = Client(others)
  state = types.SimpleNamespace(client=client, process_id=process, num_processes=1 + len(others))
  monkeypatch.setattr(hosts.compat, "distributed_state", lambda: state)
  return client


@pytest.fixture
def started(monkeypatch):
  """Records the settings with which JAX would be started."""
  settings = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: settings.append(kwargs))
  join(monkeypatch, 1, {0: shared_versions()})
  for name in hosts.VARIABLES:
    monkeypatch.delenv(name, raising=False)
  return settings


def test_alone_nothing_is_started(started):
  hosts.start(is_distributed=False)
  assert (
    not started and hosts.name() == "" and hosts.is_first() and not hosts.is_preemption_agreed()
  )


def test_by_variables_and_by_what_the_cluster_tells(started, monkeypatch):
  hosts.start(is_distributed=True)
  for name, value in GIVEN.items():
    monkeypatch.setenv(name, value)
  hosts.start(is_distributed=False)
  by_cluster, by_variables = started
  assert "coordinator_address" not in by_cluster
  assert by_variables["coordinator_address"] == "host:1"
  assert (by_variables["num_processes"], by_variables["process_id"]) == (2, 1)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("VIDEOAR_PROCESS", "", "VIDEOAR_PROCESS must be set with"),
    ("VIDEOAR_PROCESS", "2", "below VIDEOAR_NUM_PROCESSES=2"),
    ("VIDEOAR_NUM_PROCESSES", "two", "whole number"),
    ("VIDEOAR_COORDINATOR", "host", "HOST:PORT"),
  ],
)
def test_wrong_variables_are_named(started, monkeypatch, name, value, message):
  for other, right in (GIVEN | {name: value}).items():
    monkeypatch.setenv(other, right)
  with pytest.raises(ValueError, match=message):
    hosts.start(is_distributed=False)
  assert not started


def test_a_cluster_that_tells_nothing_is_an_error(monkeypatch):
  def initialize(**_):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  with pytest.raises(ValueError, match=r"did not find each other.*VIDEOAR_COORDINATOR"):
    hosts.start(is_distributed=True)


def test_versions_are_compared_once_all_have_told_theirs(started, monkeypatch):
  client = join(monkeypatch, 1, {0: shared_versions(), 2: shared_versions()})
  hosts.start(is_distributed=True)
  (told,) = client.waited_for.values()
  assert sorted(told) == [f"videoar_jax/versions/{n}" for n in range(3)]
  assert json.loads(client.told["videoar_jax/versions/1"]) == shared_versions()


@pytest.mark.parametrize(
  "name", ["Python", "videoar_jax", "jax", "jaxlib", "flax", "orbax-checkpoint"]
)
def test_processes_of_other_versions_do_not_start(started, monkeypatch, name):
  left, own = [], shared_versions()
  monkeypatch.setattr(jax.distributed, "shutdown", lambda: left.append(True))
  join(monkeypatch, 1, {0: own, 2: own | {name: "9.9"}, 3: own})
  with pytest.raises(ValueError, match="different versions") as error:
    hosts.start(is_distributed=True)
  assert f": {name} is {own[name]} in processes 0-1, 3 and 9.9 in process 2. " in str(error.value)
  assert left


START = """
import os
from videoar_jax.parallel import processes
from videoar_jax.runtime import versions

versions.__version__ = os.environ.get("OTHER_VERSION", versions.__version__)
try:
  processes.start(is_distributed=False)
  print("started")
except ValueError as error:
  print(error)
"""


@pytest.mark.parametrize("other", [{}, {"OTHER_VERSION": "9.9"}])
def test_two_processes_start_if_their_versions_are_the_same(other):
  """If versions differ, each process reports them all before it ends."""
  started = start_two([sys.executable, "-c", START], ({}, other))
  outputs = [process.communicate(timeout=120)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0], outputs
  own = shared_versions()["videoar_jax"]
  error = f"different versions: videoar_jax is {own} in process 0 and 9.9 in process 1. "
  assert all((error if other else "started") in output for output in outputs), outputs


def test_to_stop_is_asked_by_calls_of_the_whole_process(monkeypatch):
  """Counts calls, not steps, which restart in each stage: agreements would come too late."""
  asked = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    hosts.multihost_utils, "reached_preemption_sync_point", lambda call: bool(asked.append(call))
  )
  for _ in range(3):
    hosts.is_preemption_agreed()
  assert asked == list(range(asked[0], asked[0] + 3)) and asked[0] >= 1


def fail():
  raise RuntimeError("the disk is full")


@pytest.mark.parametrize(
  ("action", "is_well", "error", "message"),
  [
    (fail, True, RuntimeError, "disk is full"),
    (lambda: None, False, OSError, "another process"),
  ],
)
def test_what_fails_in_one_process_fails_in_all(monkeypatch, action, is_well, error, message):
  """Whatever happens to it here, the others are notified."""
  told = []
  monkeypatch.setattr(hosts, "all_true", lambda is_so: told.append(is_so) or (is_so and is_well))
  with pytest.raises(error, match=message):
    hosts.try_in_all(action)
  assert told == [action is not fail]


def mesh_of(processes, **sizes):
  """Returns a mesh of fake devices that only have a process index."""
  sizes = {"slice": 1, "data": 1, "fsdp": 1, "sequence": 1, "tensor": 1} | sizes
  devices = np.array([types.SimpleNamespace(process_index=p) for p in processes], object)
  return stand_in(Mesh, devices=devices.reshape(tuple(sizes.values())), shape=sizes)


@pytest.mark.parametrize(
  ("processes", "sizes", "expected"),
  [
    ((0, 0, 1, 1), {"fsdp": 4}, {0: (0, 2), 1: (1, 2)}),
    ((1, 1, 0, 0), {"slice": 2, "fsdp": 2}, {0: (1, 2), 1: (0, 2)}),
    ((0, 0, 1, 1), {"tensor": 4}, {0: (0, 1), 1: (0, 1)}),
    ((0, 0, 1, 1, 2, 2, 3, 3), {"data": 2, "sequence": 4}, {0: (0, 2), 1: (0, 2), 3: (1, 2)}),
    ((0, 1, 0, 1), {"data": 4}, {0: (0, 2), 1: (1, 2)}),
  ],
)
def test_processes_read_what_their_devices_hold(monkeypatch, processes, sizes, expected):
  mesh = mesh_of(processes, **sizes)
  for process, part in expected.items():
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    assert process_shard(mesh) == part


def test_a_batch_that_is_cut_unevenly_is_an_error():
  # Processes 0 and 1 share one sample's row, and each has another of its own.
  with pytest.raises(ValueError, match="unevenly"):
    process_shard(mesh_of((0, 0, 0, 1, 1, 1), data=3, tensor=2))
