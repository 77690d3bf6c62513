"""Checkpoints of a stage: the train state and, beside it, the input iterator's."""

import contextlib
import logging
import os
import pathlib
import shutil

import jax
import orbax.checkpoint as ocp

from videoar_jax.train.state import State

# Parts of a state that may be empty, and are not saved then.
_OPTIONAL = ("ema", "rival", "guard")


class Checkpointer:
  """Saves and restores one stage; saving is asynchronous and atomic.

  A save that was cut off leaves no checkpoint. `check` raises what went wrong in the background.

  Args:
    directory: of the checkpoints.
    is_reader: only read: nothing is made, and the unfinished save of a running stage is left alone.
    max_to_keep: older checkpoints are removed.
  """

  def __init__(
    self, directory: str | os.PathLike, *, is_reader: bool = False, max_to_keep: int | None = 2
  ):
    self.directory = pathlib.Path(directory).absolute()
    with _quiet():
      options = ocp.CheckpointManagerOptions(read_only=True)
    if not is_reader:
      options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, cleanup_tmp_directories=True)
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
    """Raises the error of a save that failed in the background."""
    self._manager.check_for_errors()

  def close(self) -> None:
    """Waits for the last save."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()
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
