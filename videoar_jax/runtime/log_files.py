"""Where the package's log goes."""

import logging
import pathlib
import sys

from videoar_jax.parallel import processes


def quiet_libraries() -> None:
  """Keeps what libraries tell of their own doings off the terminal."""
  # They write to the root logger, and give it a handler of their own where it has none.
  logging.getLogger().addHandler(logging.NullHandler())
  for name in ("absl", "jax"):
    logging.getLogger(name).setLevel(logging.ERROR)


def start_log(path: pathlib.Path) -> None:
  """Sends the package's log to the terminal and to a file, which grows with every run."""
  root = logging.getLogger("videoar_jax")
  root.setLevel(logging.DEBUG)
  root.propagate = False
  for handler in root.handlers[:]:
    root.removeHandler(handler)
    handler.close()
  terminal, file = logging.StreamHandler(sys.stdout), logging.FileHandler(path)
  terminal.setLevel(logging.INFO)
  terminal.addFilter(lambda record: not hasattr(record, "is_for_file"))  # Long tables are.
  terminal.setFormatter(logging.Formatter("%(message)s"))
  file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
  root.addHandler(terminal)
  root.addHandler(file)


def start_errors_log() -> None:
  """Sends errors of the package's log to the terminal, each with the name of this process."""
  root = logging.getLogger("videoar_jax")
  root.setLevel(logging.ERROR)
  root.propagate = False
  terminal = logging.StreamHandler(sys.stderr)
  terminal.setFormatter(logging.Formatter(f"{processes.name()}: %(message)s"))
  root.handlers[:] = [terminal]
