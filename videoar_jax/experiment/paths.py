"""Paths in configs: which fields hold them, and which spellings are of one place."""

import os
import re
from collections.abc import Callable

from videoar_jax.data.sources.remote import is_url

NAMED_TOKENIZERS = ("bytes", "words", "classes")
DATA = r"(data|stage\.\w+\.data|stage\.\w+\.mixture\.\w+)\.(path|split_file)"
CACHE = r"stage\.\w+\.path"
_OTHERS = (
  r"stage\.\w+\.(init\.from|loss\.lpips_weights)|text\.tokenizer|sampling\.guidance"
  "|frozen_tokenizer"
)
_FIELD = re.compile(f"{DATA}|{CACHE}|{_OTHERS}")


def is_path(name: str, value) -> bool:
  """Returns whether a field, by its dotted name, has the path of a file or folder as its value."""
  if not isinstance(value, str) or not value or not _FIELD.fullmatch(name) or is_url(value):
    return False
  if name == "text.tokenizer":
    return value not in NAMED_TOKENIZERS
  return name != "sampling.guidance" or value.endswith(".json")


def absolute(values: dict, folder: str | os.PathLike = "") -> dict:
  """Returns a config whose paths hold wherever a command is run.

  Args:
    values: the config, complete.
    folder: to which its paths are relative; by default the current one.
  """
  return _with_paths(
    values, lambda path: os.path.abspath(os.path.join(folder, os.path.expanduser(path)))
  )


def resolved(values: dict) -> dict:
  """Returns a config in which all spellings of a path are the same one, links included."""
  return _with_paths(values, lambda path: os.path.realpath(os.path.expanduser(path)))


def _with_paths(values: dict, change: Callable[[str], str], prefix: str = "") -> dict:
  result = {}
  for name, value in values.items():
    if isinstance(value, dict):
      value = _with_paths(value, change, f"{prefix}{name}.")
    elif is_path(prefix + name, value):
      value = change(value)
    result[name] = value
  return result
