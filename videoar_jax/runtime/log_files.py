"""Handlers of the package's log."""

import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator

from videoar_jax.parallel import processes


def quiet_libraries() -> None:
  """Keeps the info messages of libraries off the terminal."""
  # They log to the root logger, and add a handler to it if it has none.
  logging.getLogger().addHandler(logging.NullHandler())
  for name in ("absl", "jax"):
    logging.getLogger(name).setLevel(logging.ERROR)


class _Held(logging.Handler):
  """Keeps records for handlers that are still to come."""

  def __init__(self):
    super().__init__()
    self.records: list[logging.LogRecord] = []

  def emit(self, record: logging.LogRecord) -> None:
    self.records.append(record)


@contextlib.contextmanager
def held_log() -> Iterator[None]:
  """Holds the package's log until `start_log` or `start_errors_log`, which write what was held.

  The log of an earlier run in this process ends. If an error comes first, held warnings go to
  stderr; of other processes than the first, only errors do.
  """
  root, held = logging.getLogger("videoar_jax"), _Held()
  level = root.level
  _use([held], logging.DEBUG)
  try:
    yield
  except BaseException:
    least = logging.WARNING if processes.is_first() else logging.ERROR
    terminal = _terminal(sys.stderr)
    for record in held.records:
      if record.levelno >= least:
        terminal.handle(record)
    raise
  finally:
    if held in root.handlers:
      root.removeHandler(held)
      root.setLevel(level)


def start_log(path: pathlib.Path) -> None:
  """Sends the package's log to the terminal, and appends it to a file."""
  # Names of files may have bytes that are not UTF-8.
  file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
  file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
  terminal = _terminal(sys.stdout)
  terminal.setLevel(logging.INFO)
  # Long tables have `is_for_file`: they are only for the file.
  terminal.addFilter(lambda record: not hasattr(record, "is_for_file"))
  _replay([terminal, file], logging.DEBUG)


def start_errors_log() -> None:
  """Sends errors of the package's log to stderr, prefixed with the name of this process."""
  _replay([_terminal(sys.stderr)], logging.ERROR)


def _terminal(stream) -> logging.Handler:
  """Returns a handler that prints messages; of other processes than the first, with their names."""
  terminal = logging.StreamHandler(stream)
  prefix = "" if processes.is_first() else f"{processes.name()}: "
  terminal.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
  return terminal


def _replay(handlers: list[logging.Handler], level: int) -> None:
  """Replaces the handlers of the package's log, and hands them what was held."""
  root, records = logging.getLogger("videoar_jax"), []
  for handler in root.handlers:
    if isinstance(handler, _Held):
      records, handler.records = handler.records, []
  _use(handlers, level)
  root.propagate = False
  for record in records:
    if record.levelno >= level:
      root.handle(record)


def _use(handlers: list[logging.Handler], level: int) -> None:
  """Replaces the handlers of the package's log, and its level."""
  root = logging.getLogger("videoar_jax")
  root.setLevel(level)
  for handler in root.handlers[:]:
    root.removeHandler(handler)
    handler.close()
  for handler in handlers:
    root.addHandler(handler)
