"""How processes find each other, and which part of a batch each reads."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from type_checks import stand_in

from videoar_jax.parallel import processes as hosts
from videoar_jax.parallel.mesh import process_shard

GIVEN = dict(zip(hosts.VARIABLES, ("host:1", "2", "1"), strict=True))


@pytest.fixture
def started(monkeypatch):
  """The settings with which JAX is started, in place of starting it."""
  settings = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: settings.append(kwargs))
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
    ("VIDEOAR_PROCESS", "", "need VIDEOAR_PROCESS beside"),
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


def test_to_stop_is_asked_by_calls_of_the_whole_process(monkeypatch):
  """A stage's own steps begin anew: what was agreed in one would come too late in the next."""
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
  """Whatever becomes of it here, the others are told."""
  told = []
  monkeypatch.setattr(hosts, "all_true", lambda is_so: told.append(is_so) or (is_so and is_well))
  with pytest.raises(error, match=message):
    hosts.try_in_all(action)
  assert told == [action is not fail]


def mesh_of(processes, **sizes):
  """Returns a mesh whose devices know their process alone."""
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
