"""Checkpoints of a stage: the train state, and the state of the input iterator.

A checkpoint can be restored on any mesh and any number of devices and processes: arrays are placed
by the restoring run's own shardings.
"""

import contextlib
import itertools
import logging
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import TypeVar

import jax
import orbax.checkpoint as ocp

from videoar_jax.parallel import processes
from videoar_jax.parallel.barrier import Barrier
from videoar_jax.train.state import State

log = logging.getLogger(__name__)
# Parts of a state that may be empty; then they are not saved.
_OPTIONAL = ("ema", "discriminator", "anomaly")
# Names that parts, and entries of parts, had in checkpoints of the first versions.
_FORMER = {"discriminator": "rival", "anomaly": "guard", "lecam_ema": "averages"}
_DAMAGED = "CHECKPOINT OF STEP %d IN %s IS DAMAGED (%s); falling back to step %d"
T = TypeVar("T")
_opened = itertools.count(1)  # Counts folders opened for writing; the same in all processes.


def _own(value):
  """Returns the value without asking other processes."""
  return value


class Damaged(Exception):
  """The last checkpoint of a stage was damaged; it was set aside, and an earlier one is used."""


class Checkpointer:
  """Saves and restores one stage; saving is asynchronous and atomic.

  An interrupted save leaves no checkpoint. `check` raises errors of the background save, and
  TimeoutError if it hangs. A save that fails in one process fails in all; earlier checkpoints stay,
  and the next save starts afresh.

  Args:
    directory: folder of the checkpoints.
    is_reader: read only: create nothing, and leave the unfinished save of a running stage alone.
      Else all processes must open the folder, and call `save`.
    max_to_keep: number of newest checkpoints to keep.
    keep_period: checkpoints at multiples of this many steps are never removed; 0 for none.
    timeout_s: seconds that a save may take, and that a process may wait for others.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    is_reader: bool = False,
    max_to_keep: int | None = 2,
    keep_period: int = 0,
    timeout_s: int = 600,
  ):
    self.directory = pathlib.Path(directory).absolute()
    self.timeout_s = timeout_s
    self._kept = {"max_to_keep": max_to_keep, "keep_period": keep_period or None}
    self._began: tuple[int, float] = (0, 0.0)  # Step and start time of the save in progress.
    self._is_hanging = self._has_failed = False
    if is_reader:
      self._manager = self._manager_alone()
    else:
      self._open()

  def _manager_alone(self) -> ocp.CheckpointManager:
    """Returns a read-only manager that does not synchronize with other processes."""
    alone = ocp.options.MultiprocessingOptions(
      primary_host=jax.process_index(),
      active_processes={jax.process_index()},
      barrier_sync_key_prefix=f"process{jax.process_index()}",
    )
    options = ocp.CheckpointManagerOptions(
      read_only=True, create=False, multiprocessing_options=alone
    )
    with _quiet():
      return ocp.CheckpointManager(self.directory, options=options)

  def _open(self) -> None:
    """Opens the folder in all processes, and removes the remains of interrupted saves."""
    processes.try_in_all(self._tidy)
    processes.try_in_all(self._make_manager)
    self._has_failed = False

  def _tidy(self) -> None:
    if processes.is_first():
      self.directory.mkdir(parents=True, exist_ok=True)
      for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)

  def _make_manager(self) -> None:
    # With `active_processes`, Orbax uses the coordination service's barriers, which have a time
    # limit; device barriers have none. After a failure, processes may be at different barriers: a
    # new name makes all of them start again.
    name = f"checkpoints{next(_opened)}"
    several, meet = ocp.options.MultiprocessingOptions(), None
    if jax.process_count() > 1:
      several = ocp.options.MultiprocessingOptions(
        active_processes=set(range(jax.process_count())), barrier_sync_key_prefix=name
      )
      # At the end of a save, failed or not, each process reports that none is in progress.
      meet = Barrier(name, is_last=lambda key: ":set_value_" in key)
    options = ocp.CheckpointManagerOptions(
      **self._kept,
      create=False,
      multiprocessing_options=several,
      async_options=ocp.AsyncOptions(timeout_secs=self.timeout_s, barrier_sync_fn=meet),
    )
    with _quiet():
      self._manager = ocp.CheckpointManager(self.directory, options=options)
    # The manager would check for preemption with its own step numbers, which would mix with the
    # call counts of `is_preemption_agreed`.
    self._manager.reached_preemption = lambda step: False

  @property
  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: State, iterator_state: dict) -> None:
    """Starts a save, unless this step is saved already; all processes must call this.

    Raises:
      OSError: the disk has too little space; nothing is written.
      Exception: the save cannot start for another reason, here or in another process.
    """
    if step == self.latest_step:
      return
    self.wait()
    if not processes.all_true(not self._has_failed):
      with contextlib.suppress(Exception):
        self._manager.close()
      self._open()
    processes.try_in_all(lambda: self.check_room(state))
    items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
    items["iterator"] = ocp.args.JsonSave(iterator_state)
    args = ocp.args.Composite(**items)
    self._began = step, time.monotonic()
    try:
      processes.try_in_all(lambda: self._manager.save(step, args=args, force=True))
    except Exception:
      self._began, self._has_failed = (0, 0.0), True
      raise

  def check_room(self, state: State) -> None:
    """Checks that the folder is writable, and that the disk has space for the state.

    Raises:
      OSError: the folder is not writable, or the disk has too little space.
    """
    wanted = sum(x.nbytes for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self.directory).free
    if free < 1.1 * wanted:
      raise OSError(
        f"no space on the disk: a checkpoint in {self.directory} needs {wanted / 2**20:.0f} MiB, "
        f"{free / 2**20:.0f} MiB are free. Free some space and run the same command again: it "
        f"resumes from step {self.latest_step or 0}"
      )
    with tempfile.TemporaryFile(dir=self.directory):
      pass

  def restore(self, abstract: State, step: int | None = None) -> tuple[State, dict]:
    """Returns the train state and the iterator's state of a step, by default the latest.

    Args:
      abstract: the expected state, as abstract arrays with shardings.
      step: step of the checkpoint.
    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the checkpoint's parameters are different.
    """
    state, iterator_state = self._read(abstract, self._known(step))
    _check_placed(state, abstract)
    return state, iterator_state

  def _read(self, abstract: State, step: int) -> tuple[State, dict]:
    items = _items(abstract)
    restored = self._restore(step, items, iterator=ocp.args.JsonRestore())
    state = {"params": restored["params"], **restored["progress"]}
    state |= {name: restored[name] if name in items else {} for name in _OPTIONAL}
    return state, restored["iterator"]

  def _read_item(self, name: str, abstract: dict, step: int) -> dict:
    return self._restore(step, {name: abstract})[name]

  def _restore(self, step: int, abstract: dict[str, dict], **others) -> dict:
    """Returns parts of a checkpoint, by their current names."""
    stored = {name: self._stored_name(name, step) for name in abstract}
    items = {}
    for name, tree in abstract.items():
      if stored[name] != name:
        tree = {_FORMER.get(key, key): value for key, value in tree.items()}
      items[stored[name]] = ocp.args.StandardRestore(tree)
    # Without synchronization: if one process cannot read it, the others must not wait.
    with contextlib.closing(self._manager_alone()) as manager:
      found = manager.restore(step, args=ocp.args.Composite(**items, **others))
    restored = {name: found[name] for name in others}
    for name, tree in abstract.items():
      former = {_FORMER.get(key, key): key for key in tree}
      part = found[stored[name]]
      is_former = stored[name] != name
      restored[name] = {former[key]: x for key, x in part.items()} if is_former else part
    return restored

  def _stored_name(self, name: str, step: int) -> str:
    """Returns the name that a part has in a checkpoint."""
    folder, former = self.directory / str(step), _FORMER.get(name)
    is_former = former is not None and (folder / former).exists()
    return former if is_former and not (folder / name).exists() else name

  def restore_newest(self, abstract: State) -> tuple[int, State, dict]:
    """Returns the newest readable step, its state and the iterator's; all processes must call this.

    Newer, damaged checkpoints are renamed to `damaged-STEP`, and logged.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: no checkpoint can be read; the message has the error of the newest one.
    """
    step, (state, iterator_state) = self._agree_on(lambda step: self._read(abstract, step))
    _check_placed(state, abstract)
    return step, state, iterator_state

  def restore_newest_item(self, name: str, abstract: dict) -> tuple[int, dict]:
    """Returns the newest readable step, and one part of it; otherwise like `restore_newest`."""
    step, item = self._agree_on(lambda step: self._read_item(name, abstract, step))
    _check_placed(item, abstract)
    return step, item

  def restore_item(self, name: str, abstract: dict, step: int | None = None) -> dict:
    """Returns one part of a step's state: "params", their average "ema", or "discriminator".

    Without a step, it reads the newest readable checkpoint, and logs newer, damaged ones. It does
    not synchronize with other processes, and changes nothing on disk.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the checkpoint's parameters are different.
    """

    def read(step: int) -> dict:
      return self._read_item(name, abstract, step)

    if step is not None:
      item = read(self._known(step))
    else:
      try:
        good, item, damaged = self._newest(read)
      except ValueError as error:
        if isinstance(error.__cause__, ValueError):
          raise error.__cause__ from None  # It names the parameters that differ.
        raise
      for other, error in damaged.items():
        log.error(_DAMAGED, other, self.directory, error, good)
    _check_placed(item, abstract)
    return item

  def _newest(
    self, read: Callable[[int], T], broadcast=_own, all_true=_own
  ) -> tuple[int, T, dict[int, Exception]]:
    """Returns the newest readable step, what `read` returns for it, and the errors of newer steps.

    Args:
      read: reads a step.
      broadcast, all_true: those of `processes`, if all processes must agree on a step.
    """
    steps, damaged = set(self._manager.all_steps()), {}
    # On a network file system, processes may briefly see different files.
    while (step := int(broadcast(max(steps - damaged.keys(), default=-1)))) >= 0:
      try:
        found, error = read(step), None
      except Exception as failure:  # The libraries raise many types for damaged files.
        found, error = None, failure
      if all_true(error is None):
        return step, found, damaged
      damaged[step] = error or OSError("another process cannot read it")
    if not damaged:
      raise FileNotFoundError(f"no checkpoint in {self.directory}; train this stage first")
    newest = max(damaged)
    raise ValueError(
      f"no checkpoint in {self.directory} can be read. Error of step {newest}: {damaged[newest]}"
    ) from damaged[newest]

  def _agree_on(self, read: Callable[[int], T]) -> tuple[int, T]:
    """Returns the newest step that all processes can read, and its data; sets newer ones aside."""
    good, found, damaged = self._newest(read, processes.broadcast, processes.all_true)
    for step, error in damaged.items():
      log.error(_DAMAGED, step, self.directory, error, good)
      if processes.is_first():
        path = self.directory / f"damaged-{step}"
        if path.exists():
          path = path.with_name(f"{path.name}-{time.time_ns()}")
        (self.directory / str(step)).rename(path)
      processes.wait_for_all(f"checkpoint {step} of {self.directory} is set aside")
    if damaged:
      self._manager.reload()
    return good, found

  def _known(self, step: int | None) -> int:
    step = self.latest_step if step is None else step
    if step is None or step not in self._manager.all_steps():
      what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
      raise FileNotFoundError(f"{what} in {self.directory}; train this stage first")
    return step

  def check(self) -> None:
    """Raises the error of the last save, once it has ended; does not synchronize.

    Raises:
      TimeoutError: the save has exceeded its time limit.
      Exception: the save failed and left no checkpoint; a later save may succeed.
    """
    step, began = self._began
    if not step:
      return
    # Do not ask for the save's errors while it runs: they are for Orbax's finalizing thread, which
    # would not see them any more, and would remove the checkpoint that the save replaces.
    if self._manager.is_saving_in_progress():
      if time.monotonic() - began > self.timeout_s:
        self._is_hanging = True
        raise TimeoutError(
          f"the save of step {step} to {self.directory} has been hanging for {self.timeout_s} s. "
          "Check the disk, and run the same command again: it resumes from the previous checkpoint"
        )
      return
    self._began = 0, 0.0
    try:
      self._manager.wait_until_finished()
      # Only on process 0, which renames it: others may see the new name later.
      if processes.is_first() and not (self.directory / str(step)).exists():
        raise OSError(f"the save of step {step} to {self.directory} failed; the log says why")
    except Exception:
      self._has_failed = True
      # Else Orbax considers the step as saved, and earlier ones as removed.
      with contextlib.suppress(OSError):
        self._manager.reload()
      raise

  def wait(self) -> None:
    """Waits for the save in progress, up to its time limit; raises what `check` raises."""
    self.check()
    while self._began[0]:
      time.sleep(0.01)
      self.check()

  def close(self) -> None:
    """Waits for the last save, unless it is known to hang, and closes the manager."""
    if self._is_hanging:
      return
    self.wait()
    try:
      self._manager.close()
    except Exception:
      # After a failed save, this would only hide the first error, which is reported already.
      if not self._has_failed:
        raise


@contextlib.contextmanager
def _quiet():
  """Suppresses Orbax's warning that a read-only manager does not write."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def _items(state: State) -> dict:
  """Splits a state into parts that can be restored separately, such as only the weights."""
  items = {
    "params": state["params"],
    "progress": {"opt_state": state["opt_state"], "step": state["step"]},
  }
  return items | {name: state[name] for name in _OPTIONAL if state[name]}


def _check_placed(restored, abstract) -> None:
  """Raises RuntimeError unless each array has the requested sharding."""
  leaves = jax.tree_util.tree_leaves_with_path(restored)
  for (path, x), wanted in zip(leaves, jax.tree.leaves(abstract), strict=True):
    if not x.sharding.is_equivalent_to(wanted.sharding, x.ndim):
      name = jax.tree_util.keystr(path)
      raise RuntimeError(f"{name} was restored as {x.sharding}, not as {wanted.sharding}")
