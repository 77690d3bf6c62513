"""What the command lines share: errors in one line, and checks of flags."""

import argparse
import ast
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from videoar_jax.runtime.versions import untested_warning


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
  """Shows defaults, but for flags that are off, and the example as it is written."""

  def _get_help_string(self, action):
    return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
  """Tells of errors in one line, as the rest of the package does; takes no shortened flags."""

  def __init__(self, **settings):
    super().__init__(formatter_class=Formatter, allow_abbrev=False, **settings)

  def error(self, message):
    print(f"error: {message}; see --help", file=sys.stderr)
    raise SystemExit(2)


def print_result(run: Callable[[], str], *, uses_jax: bool = True) -> int:
  """Prints what a command returns, or its error; returns 2 for what the user can mend, else 0.

  Args:
    run: the command.
    uses_jax: whether to warn of versions of JAX and Python that are not tested.
  """
  if uses_jax and (warning := untested_warning()):
    print(f"warning: {warning}", file=sys.stderr)
  try:
    print(run())
  except (ImportError, ValueError, OSError) as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 2
  return 0


def parse_resolution(text: str) -> tuple[int, int]:
  """Reads `SIDE` or `HEIGHTxWIDTH`, in pixels.

  Raises:
    ValueError: it is neither.
  """
  size = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
  if not size:
    raise ValueError(f"--resolution={text} is neither SIDE nor HEIGHTxWIDTH")
  return int(size[1]), int(size[2] or size[1])


def load_config_file(path: str) -> dict:
  """Runs a config file; returns the names in it.

  Raises:
    ValueError: the file is not there, or is no config.
  """
  if not pathlib.Path(path).is_file():
    raise ValueError(f"--config={path} does not exist; name a file of configs/")
  names = runpy.run_path(path)
  if "get_config" not in names:
    raise ValueError(f"--config={path} has no get_config; name a file of configs/")
  return names


def read_config(text: str):
  """Reads `FILE.py:argument`; returns the config.

  Raises:
    ValueError: the file is no config.
  """
  path, _, argument = text.partition(":")
  get_config = load_config_file(path)["get_config"]
  # A file of a user's own may take no argument.
  return get_config(argument) if argument else get_config()


def add_field(config: ConfigDict, name: str, value: Any) -> None:
  """Sets a field, in sections that are made where a config leaves them out.

  Args:
    config: a whole one.
    name: of the field, with its sections: `stage.I.loop.keep_period`.
    value: of the field.
  Raises:
    ValueError: a section is none, or is of a stage that there is not.
  """
  *sections, field = parts = name.split(".")
  if sections == ["stage"]:
    raise ValueError(f"config.{name} is a section; set its fields, config.{name}.FIELD")
  for i, part in enumerate(sections):
    if parts[:i] == ["stage"] and part not in config:
      # Sections of stages that do not run are ignored otherwise.
      raise ValueError(f"config.stage has no section {part!r}; it has {', '.join(config)}")
    if part not in config:
      with config.unlocked():
        config[part] = ConfigDict()
    config = config[part]
    if not isinstance(config, ConfigDict):
      raise ValueError(f"config.{'.'.join(sections[: i + 1])} is a value and has no fields")
  with config.unlocked():
    config[field] = value


def parse_value(text: str) -> Any:
  """Returns the Python value that a text writes, or the text."""
  if text.lower() in ("true", "false"):
    return text.lower() == "true"
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def check_out(out: pathlib.Path) -> None:
  """Raises ValueError if a folder cannot be made, or written to."""
  place = out.absolute()
  while not place.exists():
    place = place.parent
  if not place.is_dir():
    raise ValueError(f"--out={out}: {place} is a file; name a folder")
  if not os.access(place, os.W_OK | os.X_OK):
    raise ValueError(f"--out={out}: {place} cannot be written to; name another folder")


def one_line(error: Exception) -> str:
  """Returns what an error says, without line breaks."""
  return " ".join(str(error).split())
