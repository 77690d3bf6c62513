"""Shared by all commands: errors in one line, and checks of flags."""

import argparse
import contextlib
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from videoar_jax.data.sources.remote import is_url
from videoar_jax.experiment.overrides import set_fields
from videoar_jax.interop import hub
from videoar_jax.runtime.versions import untested_warning


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
  """Shows defaults, except of flags that are off, and keeps the line breaks of descriptions."""

  def _get_help_string(self, action):
    return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
  """Reports errors in one line, as the rest of the package does; accepts no abbreviated flags."""

  def __init__(self, **settings):
    super().__init__(formatter_class=Formatter, allow_abbrev=False, **settings)

  def error(self, message):
    print(f"error: {message}; see --help", file=sys.stderr)
    raise SystemExit(2)


def add_device_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `device_settings`."""
  parser.add_argument(
    "--mesh",
    default=argparse.SUPPRESS,
    help="devices that share the work, such as fsdp:8 or data:2,tensor:4; default: one device",
  )
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16", "int8"),
    default="float32",
    help="of the generator's weights and cache; int8: of its layers' weights, rounded per output "
    "channel",
  )
  parser.add_argument(
    "--batch_size",
    type=int,
    default=argparse.SUPPRESS,
    help="clips that are made together, a multiple of slice x data x fsdp of --mesh; default: 16, "
    "or the next multiple",
  )


def device_settings(options: argparse.Namespace) -> dict[str, Any]:
  """Returns `mesh`, `dtype` and `batch_size`, as `load.load_model` takes them.

  Raises:
    ValueError: a flag is wrong.
  """
  from videoar_jax.parallel.mesh import parse_mesh

  batch_size = getattr(options, "batch_size", None)
  if batch_size is not None and batch_size < 1:
    raise ValueError(f"--batch_size={batch_size} must be at least 1")
  mesh = parse_mesh(options.mesh) if hasattr(options, "mesh") else None
  return {"mesh": mesh, "dtype": options.dtype, "batch_size": batch_size}


def print_result(run: Callable[[], str], *, uses_jax: bool = True) -> int:
  """Prints a command's result or error; returns the exit status: 2 for user errors, else 0.

  Args:
    run: the command.
    uses_jax: whether to warn about untested versions of JAX and Python.
  """
  if uses_jax and (warning := untested_warning()):
    print(f"warning: {warning}", file=sys.stderr)
  escape_unprintable()
  try:
    print(run())
  except (ImportError, ValueError, OSError) as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 2
  for name, commit in hub.commits().items():
    print(f"note: {name} is of commit {commit}", file=sys.stderr)
  return 0


def escape_unprintable() -> None:
  r"""Makes stdout print bytes of names that are not UTF-8 as \udce9, as stderr does, not fail."""
  if hasattr(sys.stdout, "reconfigure"):  # A notebook's has not.
    sys.stdout.reconfigure(errors="backslashreplace")


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

  It may import its neighbours as `from configs import ...`, whatever the current folder.
  """
  if not pathlib.Path(path).is_file():
    raise ValueError(f"--config={path} does not exist; name a file of configs/")
  with _imports_of(path):
    names = runpy.run_path(path)
  if "get_config" not in names:
    raise ValueError(f"--config={path} has no get_config; name a file of configs/")
  return names


def read_config(text: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """Reads `FILE.py:argument`; returns the config with all fields.

  Args:
    text: the value of --config.
    overrides: `--config.FIELD=VALUE`, see `overrides.set_fields`.
  Raises:
    ValueError: the file is not a config, or a field is unknown or has the wrong type.
  """
  # JAX reads environment variables when imported, so command lines are parsed before.
  from videoar_jax.experiment.defaults import complete

  path, _, argument = text.partition(":")
  get_config = load_config_file(path)["get_config"]
  with _imports_of(path):
    # A user's own file may take no argument.
    config = get_config(argument) if argument else get_config()
  if not isinstance(config, ConfigDict | dict):
    raise ValueError(f"--config={path}: get_config does not return a ConfigDict; return one")
  config = complete(config)
  set_fields(config, overrides)
  return complete(config)


@contextlib.contextmanager
def _imports_of(path: str):
  """Lets a config file import its neighbours; turns its exceptions into ValueError."""
  folder = str(pathlib.Path(path).absolute().parent.parent)
  sys.path.insert(0, folder)
  try:
    yield
  except ValueError as error:  # Raised by the file itself, with its own hint.
    raise ValueError(f"--config={path}: {error}") from error
  except Exception as error:
    lines = [x.lineno for x in traceback.extract_tb(error.__traceback__) if x.filename == path]
    where = f"{path}, line {lines[-1]}" if lines else path
    raise ValueError(f"--config={where}: {type(error).__name__}: {error}") from error
  finally:
    sys.path.remove(folder)


def check_local(path: str | os.PathLike, flag: str) -> None:
  """Raises ValueError if a path is a URL, such as of object storage, where runs are not kept."""
  if hub.is_hub(path):
    raise ValueError(
      f"{flag}={hub.spelling(path)} is on the Hugging Face hub, from which models are only read "
      "here; name a local folder, and upload a model with `python -m videoar_jax.convert push`"
    )
  if is_url(os.fspath(path)):
    raise ValueError(
      f"{flag}={path} is a URL, but runs and results are kept in folders; mount the bucket "
      "(gcsfuse, mountpoint-s3) and name a folder in it, or name a local folder and copy it "
      "afterwards"
    )


def check_out(out: pathlib.Path) -> None:
  """Raises ValueError if a folder cannot be created or written to."""
  check_local(out, "--out")
  place = out.absolute()
  while not place.exists():
    place = place.parent
  if not place.is_dir():
    raise ValueError(f"--out={out}: {place} is a file; name a folder")
  if not os.access(place, os.W_OK | os.X_OK):
    raise ValueError(f"--out={out}: {place} cannot be written to; name another folder")


def one_line(error: Exception) -> str:
  """Returns an error's message without line breaks."""
  return " ".join(str(error).split())
