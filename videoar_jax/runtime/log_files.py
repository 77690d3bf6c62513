"""Handlers of the package's log."""

import logging
import pathlib
import sys

from videoar_jax.parallel import processes


def quiet_libraries() -> None:
  """Keeps the info messages of libraries off the terminal."""
  # They log to the root logger, and add a handler to it if it has none.
  logging.getLogger().addHandler(logging.NullHandler())
  for name in ("absl", "jax"):
    logging.getLogger(name).setLevel(logging.ERROR)


def start_log(path: pathlib.Path) -> None:
  """Sends the package's log to the terminal, and appends it to a file."""
  root = logging.getLogger("videoar_jax")
  root.setLevel(logging.DEBUG)
  root.propagate = False
  for handler in root.handlers[:]:
    root.removeHandler(handler)
    handler.close()
  terminal, file = logging.StreamHandler(sys.stdout), logging.FileHandler(path)
  terminal.setLevel(logging.INFO)
  # Long tables have `is_for_file`: they are only for the file.
  terminal.addFilter(lambda record: not hasattr(record, "is_for_file"))
  terminal.setFormatter(logging.Formatter("%(message)s"))
  file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
  root.addHandler(terminal)
  root.addHandler(file)


def start_errors_log() -> None:
  """Sends errors of the package's log to stderr, prefixed with the name of this process."""
  root = logging.getLogger("videoar_jax")
  root.setLevel(logging.ERROR)
  root.propagate = False
  terminal = logging.StreamHandler(sys.stderr)
  terminal.setFormatter(logging.Formatter(f"{processes.name()}: %(message)s"))
  root.handlers[:] = [terminal]
