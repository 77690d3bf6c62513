"""Checkpoints of a stage: the train state and, beside it, the input iterator's.

A checkpoint is restored onto any mesh and any number of devices and processes: the arrays are
placed as the restoring run's own shardings say.
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
# Parts of a state that may be empty, and are not saved then.
_OPTIONAL = ("ema", "discriminator", "anomaly")
_DAMAGED = "CHECKPOINT OF STEP %d IN %s IS DAMAGED (%s); that of step %d is read"

T = TypeVar("T")

_opened = itertools.count(1)  # How often a folder was, for writing, by all processes.


def _own(value):
  """Asks no other process."""
  return value


class Damaged(Exception):
  """The last checkpoint of a stage could not be read, and was set aside for the one before it."""


class Checkpointer:
  """Saves and restores one stage; saving is asynchronous and atomic.

  A save that was cut off leaves no checkpoint. `check` raises what went wrong in the background,
  and TimeoutError where a save does not end. One that fails in one process fails in all, and leaves
  what was saved before; the next one begins anew.

  Args:
    directory: of the checkpoints.
    is_reader: only read: nothing is made, and the unfinished save of a running stage is left alone.
      Else all processes must open it, and call `save`.
    max_to_keep: older checkpoints are removed,
    keep_period: but not those of a multiple of so many steps; 0 for none.
    timeout_s: seconds that a save may take, and a process may wait for others.
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
    self._began: tuple[int, float] = (0, 0.0)  # Step and time of the save that is under way.
    self._is_hanging = self._has_failed = False
    if is_reader:
      self._manager = self._manager_alone()
    else:
      self._open()

  def _manager_alone(self) -> ocp.CheckpointManager:
    """Returns what reads, and asks no other process."""
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
    """Opens the folder in all processes, and removes what a save that was cut off left there."""
    processes.try_in_all(self._tidy)
    processes.try_in_all(self._make_manager)
    self._has_failed = False

  def _tidy(self) -> None:
    if processes.is_first():
      self.directory.mkdir(parents=True, exist_ok=True)
      for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)

  def _make_manager(self) -> None:
    # Barriers of the devices have no time limit, those of named processes do. After a failure they
    # may have been at different ones: under another name all of them begin anew.
    name = f"checkpoints{next(_opened)}"
    several, meet = ocp.options.MultiprocessingOptions(), None
    if jax.process_count() > 1:
      several = ocp.options.MultiprocessingOptions(
        active_processes=set(range(jax.process_count())), barrier_sync_key_prefix=name
      )
      # Whatever became of a save, each process says at its end that none is under way.
      meet = Barrier(name, is_last=lambda key: ":set_value_" in key)
    options = ocp.CheckpointManagerOptions(
      **self._kept,
      create=False,
      multiprocessing_options=several,
      async_options=ocp.AsyncOptions(timeout_secs=self.timeout_s, barrier_sync_fn=meet),
    )
    with _quiet():
      self._manager = ocp.CheckpointManager(self.directory, options=options)
    # It would ask whether to stop by numbers of its own, among those of `is_preemption_agreed`.
    self._manager.reached_preemption = lambda step: False

  @property
  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: State, iterator_state: dict) -> None:
    """Begins to save, unless this step is saved already; all processes must call this.

    Raises:
      OSError: the disk has no room for it; nothing is written then.
      Exception: it cannot begin for another reason, here or in another process.
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
    """Checks that the disk takes a file, and has room for the state.

    Raises:
      OSError: it does not, or has none.
    """
    wanted = sum(x.nbytes for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self.directory).free
    if free < 1.1 * wanted:
      raise OSError(
        f"no room on the disk: a checkpoint in {self.directory} needs {wanted / 2**20:.0f} MiB, "
        f"{free / 2**20:.0f} MiB are free. Free some and run the same command again: it goes on "
        f"from step {self.latest_step or 0}"
      )
    with tempfile.TemporaryFile(dir=self.directory):
      pass

  def restore(self, abstract: State, step: int | None = None) -> tuple[State, dict]:
    """Returns a step's state, placed as the abstract arrays' shardings say, and the iterator's.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the checkpoint holds other parameters.
    """
    state, iterator_state = self._read(abstract, self._known(step))
    _check_placed(state, abstract)
    return state, iterator_state

  def _read(self, abstract: State, step: int) -> tuple[State, dict]:
    items = {name: ocp.args.StandardRestore(tree) for name, tree in _items(abstract).items()}
    restored = self._restore(step, **items, iterator=ocp.args.JsonRestore())
    state = {"params": restored["params"], **restored["progress"]}
    state |= {name: restored[name] if name in items else {} for name in _OPTIONAL}
    return state, restored["iterator"]

  def _read_item(self, name: str, abstract: dict, step: int) -> dict:
    return self._restore(step, **{name: ocp.args.StandardRestore(abstract)})[name]

  def _restore(self, step: int, **items) -> ocp.args.Composite:
    # Who cannot read it leaves nobody waiting.
    with contextlib.closing(self._manager_alone()) as manager:
      return manager.restore(step, args=ocp.args.Composite(**items))

  def restore_newest(self, abstract: State) -> tuple[int, State, dict]:
    """Returns the newest step that can be read, its state, and the iterator's; asked by all.

    Newer ones are renamed to `damaged-STEP`, which keeps them out of the way, and the log says so.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: none can be read; the message is the newest one's.
    """
    step, (state, iterator_state) = self._agree_on(lambda step: self._read(abstract, step))
    _check_placed(state, abstract)
    return step, state, iterator_state

  def restore_newest_item(self, name: str, abstract: dict) -> tuple[int, dict]:
    """Returns the newest step that can be read, and one part of it, as `restore_newest` does."""
    step, item = self._agree_on(lambda step: self._read_item(name, abstract, step))
    _check_placed(item, abstract)
    return step, item

  def restore_item(self, name: str, abstract: dict, step: int | None = None) -> dict:
    """Returns one part of a step's state: "params", their average "ema", or "discriminator".

    Without a step, it is of the newest that can be read; the log tells of newer ones. Asks no other
    process, and changes nothing.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the checkpoint holds other parameters.
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
          raise error.__cause__ from None  # It says best which parameters are others.
        raise
      for other, error in damaged.items():
        log.error(_DAMAGED, other, self.directory, error, good)
    _check_placed(item, abstract)
    return item

  def _newest(
    self, read: Callable[[int], T], broadcast=_own, all_true=_own
  ) -> tuple[int, T, dict[int, Exception]]:
    """Returns the newest step that can be read, what is read of it, and why newer ones cannot be.

    Args:
      read: what a step has.
      broadcast, all_true: of `processes`, where all processes are to have the same step.
    """
    steps, damaged = set(self._manager.all_steps()), {}
    # What is listed may differ for a while in a file system of a network.
    while (step := int(broadcast(max(steps - damaged.keys(), default=-1)))) >= 0:
      try:
        found, error = read(step), None
      except Exception as failure:  # What damage does to the libraries below has no one name.
        found, error = None, failure
      if all_true(error is None):
        return step, found, damaged
      damaged[step] = error or OSError("another process cannot read it")
    if not damaged:
      raise FileNotFoundError(f"no checkpoint in {self.directory}; train this stage first")
    newest = max(damaged)
    raise ValueError(
      f"no checkpoint in {self.directory} can be read. That of step {newest}: {damaged[newest]}"
    ) from damaged[newest]

  def _agree_on(self, read: Callable[[int], T]) -> tuple[int, T]:
    """Returns the newest step that all processes can read, and what; sets newer ones aside."""
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
    """Raises what went wrong with the last save, once it is over; asks no other process.

    Raises:
      TimeoutError: it has been going on for too long.
      Exception: it failed; it left no checkpoint, and the next save may go well.
    """
    step, began = self._began
    if not step:
      return
    # Its errors are for the thread that ends a save. If they were asked for here before, it would
    # not know of them, and remove the checkpoint that was to be replaced.
    if self._manager.is_saving_in_progress():
      if time.monotonic() - began > self.timeout_s:
        self._is_hanging = True
        raise TimeoutError(
          f"the save of step {step} to {self.directory} has been hanging for {self.timeout_s} s. "
          "Look at the disk, and run the same command again: it goes on from the checkpoint before "
          "it"
        )
      return
    self._began = 0, 0.0
    try:
      self._manager.wait_until_finished()
      # Others may see late what the first process has renamed.
      if processes.is_first() and not (self.directory / str(step)).exists():
        raise OSError(f"the save of step {step} to {self.directory} failed; the log says why")
    except Exception:
      self._has_failed = True
      # The library takes the step for saved otherwise, and those before it for removed.
      with contextlib.suppress(OSError):
        self._manager.reload()
      raise

  def wait(self) -> None:
    """InputStallMeter for a save under way, as long as it may take; raises what `check` does."""
    self.check()
    while self._began[0]:
      time.sleep(0.01)
      self.check()

  def close(self) -> None:
    """InputStallMeter for the last save, unless it is known to hang."""
    if self._is_hanging:
      return
    self.wait()
    try:
      self._manager.close()
    except Exception:
      # What went wrong before is told already; what it leaves behind is not to stand in its place.
      if not self._has_failed:
        raise


@contextlib.contextmanager
def _quiet():
  """Keeps Orbax from warning, each time, that a reader does not write."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def _items(state: State) -> dict:
  """Splits a state into what is restored apart: weights are wanted without the optimizer."""
  items = {
    "params": state["params"],
    "progress": {"opt_state": state["opt_state"], "step": state["step"]},
  }
  return items | {name: state[name] for name in _OPTIONAL if state[name]}


def _check_placed(restored, abstract) -> None:
  """Raises RuntimeError unless each array is placed as it was asked for."""
  leaves = jax.tree_util.tree_leaves_with_path(restored)
  for (path, x), wanted in zip(leaves, jax.tree.leaves(abstract), strict=True):
    if not x.sharding.is_equivalent_to(wanted.sharding, x.ndim):
      name = jax.tree_util.keystr(path)
      raise RuntimeError(f"{name} was restored as {x.sharding}, not as {wanted.sharding}")
