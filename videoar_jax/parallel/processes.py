"""A run of several processes: how they find each other, who they are, how they stop together."""

import itertools
import json
import os
import re
import socket
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from videoar_jax.parallel import compat
from videoar_jax.runtime.versions import differences, shared_versions

# Given together, they name the processes; nothing else is asked then.
VARIABLES = ("VIDEOAR_COORDINATOR", "VIDEOAR_NUM_PROCESSES", "VIDEOAR_PROCESS")
# A process that is silent for so long is taken for dead, and ends the others.
HEARTBEAT_TIMEOUT_S = 40
BARRIER_TIMEOUT_S = 600

_asked = itertools.count(1)  # How often `is_preemption_agreed` was.


def start(is_distributed: bool) -> None:
  """Joins this process to the others of its run, before anything asks JAX for a device.

  Args:
    is_distributed: whether there are others, as Slurm, a TPU slice or GKE tell. The variables
      VIDEOAR_COORDINATOR=HOST:PORT, VIDEOAR_NUM_PROCESSES and VIDEOAR_PROCESS need no such word.
  Raises:
    ValueError: a variable is missing or wrong, there is nothing that tells of others, or others
      have other versions.
  """
  given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
  if not given and not is_distributed:
    return
  settings = _parse(given) if given else {}
  try:
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S, **settings)
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f"the processes of the run did not find each other: {error}. Slurm (under srun), TPU slices "
      f"and GKE tell where they are; elsewhere set {', '.join(VARIABLES)}; one process needs "
      "neither these nor --distributed"
    ) from error
  _check_versions()


def _check_versions() -> None:
  """Raises ValueError in all processes unless they have the same versions; asks no device."""
  state = compat.distributed_state()
  place = "videoar_jax/versions/"
  own = json.dumps(shared_versions())
  state.client.key_value_set(f"{place}{state.process_id}", own, allow_overwrite=True)
  state.client.wait_at_barrier("videoar_jax/versions", 1000 * BARRIER_TIMEOUT_S)
  told = state.client.key_value_dir_get(place)
  found = {int(name.rpartition("/")[2]): json.loads(text) for name, text in told}
  if lines := differences(found):
    # Together: the first one to end would take the others with it before they can say why.
    jax.distributed.shutdown()
    raise ValueError(
      f"the processes of the run have different versions: {'; '.join(lines)}. Install the same "
      "ones everywhere"
    )


def _parse(given: dict[str, str]) -> dict:
  missing = [name for name in VARIABLES if name not in given]
  if missing:
    raise ValueError(f"{', '.join(given)} need {', '.join(missing)} beside them; set all three")
  coordinator, *numbers = (given[name] for name in VARIABLES)
  if not re.fullmatch(r".+:\d+", coordinator):
    raise ValueError(f"VIDEOAR_COORDINATOR={coordinator!r} must be HOST:PORT, of process 0")
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
  """Says whether this process writes what the run leaves; all read."""
  return jax.process_index() == 0


def name() -> str:
  """Returns who this process is, for its errors; "" where it is alone."""
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return ""
  return f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def wait_for_all(what: str, timeout_s: int = BARRIER_TIMEOUT_S) -> None:
  """Returns once all processes are here.

  Args:
    what: the name of what is waited for.
    timeout_s: seconds after which it is an error.
  """
  if jax.process_count() > 1:
    # Of the service that processes find each other by: devices know no time limit.
    ocp.multihost.get_barrier_sync_fn()(key=what, timeout_ms=1000 * timeout_s)


def is_preemption_agreed() -> bool:
  """Says whether one of several processes got SIGTERM, at the same call in all of them.

  To be asked after every step, of whatever kind. JAX, not Python, listens for the signal, and finds
  the next call that no process has come to: the calls of the whole process count, since a step's
  number begins anew with each stage.
  """
  if jax.process_count() == 1:
    return False
  return multihost_utils.reached_preemption_sync_point(next(_asked))


def broadcast(value):
  """Returns what the first process has.

  Args:
    value: a number or an array, of one shape in all processes; all must call this.
  """
  return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(value)


def all_true(is_so: bool) -> bool:
  """Says whether something is so for each process; all must call this."""
  return is_so if jax.process_count() == 1 else bool(multihost_utils.process_allgather(is_so).all())


def try_in_all(action: Callable[[], object]) -> None:
  """Does something in each process; raises in all where it fails in one; all must call this.

  Raises:
    Exception: what went wrong here.
    OSError: it went well here, and wrong elsewhere.
  """
  error = None
  try:
    action()
  except Exception as failure:
    error = failure
  if not all_true(error is None):
    raise error or OSError("another process could not; see what it says")
