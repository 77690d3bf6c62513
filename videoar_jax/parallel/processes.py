"""Multi-process runs: joining, identifying, synchronizing and stopping processes."""

import itertools
import json
import os
import re
import socket
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from videoar_jax.parallel import compat
from videoar_jax.runtime.versions import differences, shared_versions

# If these are set, they define the processes, and no cluster is detected.
VARIABLES = ("VIDEOAR_COORDINATOR", "VIDEOAR_NUM_PROCESSES", "VIDEOAR_PROCESS")
# A process without heartbeats for this long counts as dead, and the others end.
HEARTBEAT_TIMEOUT_S = 40
BARRIER_TIMEOUT_S = 600

_asked = itertools.count(1)  # Counts the calls of `is_preemption_agreed`.


def start(is_distributed: bool) -> None:
  """Joins the other processes of the run; call it before anything uses a JAX device.

  Args:
    is_distributed: detect the other processes from Slurm, the TPU slice or GKE. Not needed if
      VIDEOAR_COORDINATOR=HOST:PORT, VIDEOAR_NUM_PROCESSES and VIDEOAR_PROCESS are set.
  Raises:
    ValueError: a variable is missing or wrong, no cluster is detected, or processes have different
      versions.
  """
  given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
  if not given and not is_distributed:
    return
  settings = _parse(given) if given else {}
  try:
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S, **settings)
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f"the processes of the run did not find each other: {error}. They are detected on Slurm "
      f"(under srun), TPU slices and GKE; elsewhere set {', '.join(VARIABLES)}; a single process "
      "needs neither these nor --distributed"
    ) from error
  _check_versions()


def _check_versions() -> None:
  """Raises ValueError in all processes unless they have the same versions; uses no device."""
  state = compat.distributed_state()
  place = "videoar_jax/versions/"
  own = json.dumps(shared_versions())
  state.client.key_value_set(f"{place}{state.process_id}", own, allow_overwrite=True)
  try:
    state.client.wait_at_barrier("videoar_jax/versions", 1000 * BARRIER_TIMEOUT_S)
  except jax.errors.JaxRuntimeError as error:
    published = state.client.key_value_dir_get(place)
    known = ", ".join(sorted(name.rpartition("/")[2] for name, _ in published))
    raise ValueError(
      f"only processes {known} of the run published their versions within {BARRIER_TIMEOUT_S} s; "
      "install the same version of videoar_jax everywhere"
    ) from error
  published = state.client.key_value_dir_get(place)
  found = {int(name.rpartition("/")[2]): json.loads(text) for name, text in published}
  if lines := differences(found):
    # Shut down together: else the first process to exit ends the others before they report why.
    jax.distributed.shutdown()
    raise ValueError(
      f"the processes of the run have different versions: {'; '.join(lines)}. Install the same "
      "versions everywhere"
    )


def _parse(given: dict[str, str]) -> dict:
  missing = [name for name in VARIABLES if name not in given]
  if missing:
    raise ValueError(f"{', '.join(missing)} must be set with {', '.join(given)}; set all three")
  coordinator, *numbers = (given[name] for name in VARIABLES)
  if not re.fullmatch(r".+:\d+", coordinator):
    raise ValueError(f"VIDEOAR_COORDINATOR={coordinator!r} must be the HOST:PORT of process 0")
  for name, text in zip(VARIABLES[1:], numbers, strict=True):
    if not re.fullmatch(r"\d+", text):
      raise ValueError(f"{name}={text!r} must be a whole number")
  num_processes, process = map(int, numbers)
  if process >= num_processes:
    raise ValueError(
      f"VIDEOAR_PROCESS={process} must be below VIDEOAR_NUM_PROCESSES={num_processes}; count from 0"
    )
  return {
    "coordinator_address": coordinator,
    "num_processes": num_processes,
    "process_id": process,
  }


def is_first() -> bool:
  """Returns whether this is process 0, the only one that writes the run's files."""
  return jax.process_index() == 0


def name() -> str:
  """Returns the name of this process, for error messages; "" in a single-process run."""
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return ""
  return f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def wait_for_all(what: str, timeout_s: int = BARRIER_TIMEOUT_S) -> None:
  """Waits until all processes have called this.

  Args:
    what: name of the barrier.
    timeout_s: time limit in seconds, after which it raises.
  """
  if jax.process_count() > 1:
    import orbax.checkpoint as ocp  # Imported late: it takes half a second.

    # The coordination service's barrier: collectives on devices have no time limit.
    ocp.multihost.get_barrier_sync_fn()(key=what, timeout_ms=1000 * timeout_s)


def is_preemption_agreed() -> bool:
  """Returns whether a process of a multi-process run got SIGTERM; true at the same call in all.

  Call it after every step of any kind. JAX, not Python, handles the signal, and agrees on the next
  call that no process has made yet. Calls are counted over the whole process, since step numbers
  start again with each stage.
  """
  if jax.process_count() == 1:
    return False
  return multihost_utils.reached_preemption_sync_point(next(_asked))


def broadcast(value):
  """Returns the value of process 0; all processes must call this.

  Args:
    value: a number or an array, of the same shape in all processes.
  """
  return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(value)


def fetch(x) -> np.ndarray:
  """Returns an array in host memory; if it is split over processes, all of them must call this."""
  if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


def all_true(is_so: bool) -> bool:
  """Returns whether `is_so` is true in every process; all processes must call this."""
  return is_so if jax.process_count() == 1 else bool(multihost_utils.process_allgather(is_so).all())


def try_in_all(action: Callable[[], object]) -> None:
  """Calls `action` in each process; raises in all if it fails in one. All must call this.

  Raises:
    Exception: the exception of `action` in this process.
    OSError: `action` failed in another process only.
  """
  error = None
  try:
    action()
  except Exception as failure:
    error = failure
  if not all_true(error is None):
    raise error or OSError("another process failed; see its log")
