"""Checkpoints of a stage: the train state and, beside it, the input iterator's.

A checkpoint is restored onto any mesh and any number of devices and processes: the arrays are
placed as the restoring run's own shardings say.
"""

import contextlib
import logging
import os
import pathlib
import shutil
import time

import jax
import orbax.checkpoint as ocp

from videoar_jax.parallel import hosts
from videoar_jax.train.state import State

log = logging.getLogger(__name__)
# Parts of a state that may be empty, and are not saved then.
_OPTIONAL = ("ema", "rival", "guard")


class Checkpointer:
  """Saves and restores one stage; saving is asynchronous and atomic.

  A save that was cut off leaves no checkpoint. `check` raises what went wrong in the background,
  and TimeoutError where a save does not end.

  Args:
    directory: of the checkpoints.
    is_reader: only read: nothing is made, and the unfinished save of a running stage is left alone.
    max_to_keep: older checkpoints are removed,
    keep_every: but not those of a multiple of so many steps; 0 for none.
    timeout_s: seconds that a save may take, and a process may wait for others.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    is_reader: bool = False,
    max_to_keep: int | None = 2,
    keep_every: int = 0,
    timeout_s: int = 600,
  ):
    self.directory = pathlib.Path(directory).absolute()
    self.timeout_s = timeout_s
    self._began: tuple[int, float] = (0, 0.0)  # Step and time of the last save.
    self._is_hanging = False
    with _quiet():
      # A reader asks no other process, so that one may read alone.
      alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process{jax.process_index()}",
      )
      options = ocp.CheckpointManagerOptions(
        read_only=True, create=False, multiprocessing_options=alone
      )
    if not is_reader:
      options = ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep,
        keep_period=keep_every or None,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(timeout_secs=timeout_s),
      )
    with _quiet():
      self._manager = ocp.CheckpointManager(self.directory, options=options)

  @property
  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: State, iterator_state: dict) -> None:
    """Begins to save, unless this step is saved already.

    Raises:
      OSError: the disk has no room for it; nothing is written then.
    """
    if step == self.latest_step:
      return
    self.check_room(state)
    self._wait()
    self._began = step, time.monotonic()
    items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
    items["iterator"] = ocp.args.JsonSave(iterator_state)
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)

  def check_room(self, state: State) -> None:
    """Checks that the disk can take the state.

    Raises:
      OSError: it can't.
    """
    wanted = sum(x.nbytes for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self.directory).free
    if free < 1.1 * wanted:
      raise OSError(
        f"no room on the disk: a checkpoint in {self.directory} needs {wanted / 2**20:.0f} MiB, "
        f"{free / 2**20:.0f} MiB are free. Free some and run the same command again: it goes on "
        f"from step {self.latest_step or 0}"
      )

  def restore(self, abstract: State, step: int | None = None) -> tuple[State, dict]:
    """Returns a step's state, placed as the abstract arrays' shardings say, and the iterator's.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the checkpoint holds other parameters.
    """
    step = self._known(step)
    items = {name: ocp.args.StandardRestore(tree) for name, tree in _items(abstract).items()}
    items["iterator"] = ocp.args.JsonRestore()
    restored = self._manager.restore(step, args=ocp.args.Composite(**items))
    state = {"params": restored["params"], **restored["progress"]}
    state |= {name: restored[name] if name in items else {} for name in _OPTIONAL}
    return state, restored["iterator"]

  def restore_newest(self, abstract: State) -> tuple[int, State, dict]:
    """Returns the newest step that can be read, its state, and the iterator's.

    Newer ones are renamed to `damaged-STEP`, which keeps them out of the way, and the log says so.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: none can be read; the message is the newest one's.
    """
    steps = sorted(self._manager.all_steps(), reverse=True) or [self._known(None)]
    damaged: dict[int, Exception] = {}
    for step in steps:
      try:
        state, iterator_state = self.restore(abstract, step)
      except Exception as error:  # What damage does to the libraries below has no one name.
        damaged[step] = error
        continue
      for other, error in damaged.items():
        self._set_aside(other, error, step)
      if damaged:
        self._manager.reload()
      return step, state, iterator_state
    first = damaged[steps[0]]
    raise ValueError(
      f"no checkpoint in {self.directory} can be read. That of step {steps[0]}: {first}"
    ) from first

  def _set_aside(self, step: int, error: Exception, good: int) -> None:
    log.error(
      "CHECKPOINT OF STEP %d IS DAMAGED (%s); going on from that of step %d", step, error, good
    )
    if hosts.is_first():
      (self.directory / str(step)).rename(self.directory / f"damaged-{step}")
    hosts.wait_for_all(f"checkpoint {step} of {self.directory} is set aside")

  def restore_item(self, name: str, abstract: dict, step: int | None = None) -> dict:
    """Returns one part of a step's state: "params", their average "ema", or "rival".

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the checkpoint holds other parameters.
    """
    items = ocp.args.Composite(**{name: ocp.args.StandardRestore(abstract)})
    return self._manager.restore(self._known(step), args=items)[name]

  def _known(self, step: int | None) -> int:
    step = self.latest_step if step is None else step
    if step is None or step not in self._manager.all_steps():
      what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
      raise FileNotFoundError(f"{what} in {self.directory}; train this stage first")
    return step

  def check(self) -> None:
    """Raises what went wrong with the last save.

    Raises:
      TimeoutError: it has been going on for too long.
      Exception: it failed; it left no checkpoint, and the next save may go well.
    """
    step, began = self._began
    try:
      self._manager.check_for_errors()
      if step and not self._manager.is_saving_in_progress():
        # The thread that ends a save may have come first to the error, and has kept it.
        self._manager.wait_until_finished()
        if not (self.directory / str(step)).exists():
          raise OSError(f"the save of step {step} to {self.directory} failed; the log says why")
        self._began = 0, 0.0
    except Exception:
      # The library takes the step for saved otherwise.
      self._manager.reload()
      self._began = 0, 0.0
      raise
    if time.monotonic() - began > self.timeout_s and self._manager.is_saving_in_progress():
      self._is_hanging = True
      raise TimeoutError(
        f"the save of step {step} to {self.directory} has been hanging for {self.timeout_s} s. "
        "Look at the disk, and run the same command again: it goes on from the checkpoint before it"
      )

  def _wait(self) -> None:
    """Waits for a save under way, as long as it may take."""
    while self._manager.is_saving_in_progress():
      self.check()
      time.sleep(0.01)
    self.check()

  def close(self) -> None:
    """Waits for the last save, unless it is known to hang."""
    if self._is_hanging:
      return
    self._wait()
    self._manager.wait_until_finished()
    self._manager.close()


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
