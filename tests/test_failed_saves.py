"""Saves of two processes that fail in one: what is lost, when both notice, and what follows.

Both processes run `save_as_one_of_two`.
"""

import contextlib
import pathlib
import resource
import sys
import time
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import start_two
from orbax.checkpoint._src.multihost import multihost

from videoar_jax.parallel import processes as hosts
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.train.checkpoint import Checkpointer

TIMEOUT_S = 60  # Of a save: nothing here may take so long.
NO_ROOM = types.SimpleNamespace(free=0)
BARRIER_TIMEOUT_S = 5  # Of Orbax's own barriers, 300 otherwise.


@contextlib.contextmanager
def small_files():
  """Prevents files from growing, like a full disk."""
  _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (64, most))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def gone(*_, **__):
  raise OSError("the bucket is gone")


# Step, process in which it fails, how, and seconds in which both are to know.
FAILURES = [
  (2, 1, small_files, 5),
  (4, 0, small_files, 5),
  # At its end.
  (6, 0, lambda: mock.patch("os.rename", gone), 5),
  # At its beginning: nothing is tried where there is no room.
  (8, 1, lambda: mock.patch("shutil.disk_usage", lambda _: NO_ROOM), 5),
  # Folders cannot be made, and the other one waits for them.
  (10, 0, lambda: mock.patch("os.mkdir", gone), 20),
  # Before any barrier of the library, at which the other one waits.
  (12, 1, lambda: mock.patch("orbax.checkpoint.CheckpointManager.save", gone), 20),
]


def save_as_one_of_two(folder):
  """Saves, fails, and saves again, keeping a single checkpoint."""
  multihost._DEFAULT_BARRIER_TIMEOUT = BARRIER_TIMEOUT_S
  hosts.start(False)
  split = jax.NamedSharding(make_mesh(MeshConfig(data=1, fsdp=4)), jax.P("fsdp"))

  def make(step):
    params, step = jax.jit(
      lambda step: (jnp.full((8, 4096), step), jnp.full(8, step)), out_shardings=split
    )(step)
    state = {"params": {"kernel": params}, "opt_state": (), "step": step}
    return state | {"ema": {}, "discriminator": {}, "anomaly": {}}

  def listed():
    hosts.wait_for_all("nobody saves")
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())

  checkpointer = Checkpointer(folder, max_to_keep=1, timeout_s=TIMEOUT_S)
  for step, process, failure, bound_s in FAILURES:
    checkpointer.save(step - 1, make(float(step - 1)), {"next_index": step - 1})
    checkpointer.wait()
    assert listed() == [step - 1], listed()
    began = time.monotonic()
    with failure() if jax.process_index() == process else contextlib.nullcontext():
      with pytest.raises(Exception) as failed:
        checkpointer.save(step, make(float(step)), {"next_index": step})
        checkpointer.wait()
      assert not isinstance(failed.value, TimeoutError)
      took = time.monotonic() - began
      print(f"step {step} after {took:.2f} s: {failed.value!r:.200}", flush=True)
      assert took < bound_s
    checkpointer.check()
    assert listed() == [step - 1], listed()
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(0.0)
    )
    found, state, iterator = checkpointer.restore_newest(abstract)
    assert (found, iterator) == (step - 1, {"next_index": step - 1})
    for shard in state["params"]["kernel"].addressable_shards:
      np.testing.assert_array_equal(shard.data, step - 1)
  checkpointer.close()
  print("all is well")


TESTS = pathlib.Path(__file__).parent
PATHS = [str(TESTS / "helpers"), str(TESTS)]


@pytest.mark.slow
def test_a_save_that_fails_in_one_process_is_known_in_both_and_loses_nothing_else(tmp_path):
  lines = (
    f"import pathlib, sys; sys.path[:0] = {PATHS!r}",
    "from test_failed_saves import save_as_one_of_two",
    f"save_as_one_of_two(pathlib.Path({str(tmp_path / 'checkpoints')!r}))",
  )
  processes = start_two([sys.executable, "-c", "\n".join(lines)])
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
  for own, output in enumerate(outputs):
    told = [line for line in output.splitlines() if line.startswith("step ")]
    for (_, failed, _, _), line in zip(FAILURES, told, strict=True):
      signs = (f"process {failed} failed", "another process failed", "DEADLINE")
      assert own == failed or any(sign in line for sign in signs), line
    assert "all is well" in output
