"""Sets config fields from the command line: `--config.FIELD=VALUE` or `--config.FIELD VALUE`."""

import keyword
import re
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import FieldReference

from videoar_jax.experiment.fields import check_names
from videoar_jax.experiment.renamed import new_name

_FIELD = re.compile(r"--?(no)?config\.([^=]*)(=.*)?", re.DOTALL)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Splits arguments into those that set no field, and those that do, each with its value."""
  others, overrides = [], []
  arguments = list(arguments)
  while arguments:
    argument = arguments.pop(0)
    match = _FIELD.fullmatch(argument)
    if not match:
      others.append(argument)
      continue
    # A boolean may stand alone: `--config.FIELD` or `--noconfig.FIELD`.
    has_value = match[3] or match[1] or not arguments or arguments[0].startswith("--")
    overrides.append(argument if has_value else f"{argument}={arguments.pop(0)}")
  return others, overrides


def set_fields(config: ConfigDict, overrides: Sequence[str]) -> None:
  """Sets fields; if several flags set one field, the last wins.

  Args:
    config: with all fields, see `defaults.complete`; values are parsed as their types.
    overrides: as `split_overrides` returns them.
  Raises:
    ValueError: there is no such field, or a value has the wrong type; names the field.
  """
  # Keyed by name, because repeated flags for a tuple would be concatenated.
  arguments: dict[str, str] = {}
  for override in overrides:
    no, name, value = _FIELD.fullmatch(override).groups()
    section, field = _find(config, name)
    arguments.pop(name, None)
    if value == "=None" and isinstance(_raw(section, field), FieldReference):
      section[field] = None
    else:
      arguments[name] = f"--{no or ''}config.{_as_path(name)}{value or ''}"
  argv, values = ["", *arguments.values()], flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      "config", config, flag_values=values, lock_config=False, sys_argv=argv
    )
    values(argv)
  except (flags.Error, TypeError, ValueError) as error:
    raise ValueError(str(error).removeprefix("flag ")) from error


def _find(config: ConfigDict, name: str) -> tuple[ConfigDict, str]:
  """Returns the section of a field, and the field's name in it.

  Raises:
    ValueError: there is no such field; suggests a similar one.
  """
  if new_name(name) is not None:
    raise ValueError(f"config.{name} is now config.{new_name(name)}")
  parts = name.split(".")
  found, section = config, config
  for i, part in enumerate(parts):
    path = ".".join(("config", *parts[:i]))
    if not isinstance(found, ConfigDict):
      raise ValueError(f"{path} is a value and has no fields; set it or another field")
    check_names({part: None}, tuple(found), path)
    section, found = found, found[part]
  if isinstance(found, ConfigDict):
    raise ValueError(f"config.{name} is a section; set its fields, config.{name}.FIELD")
  return section, parts[-1]


def _raw(section: ConfigDict, field: str):
  return dict(section.items(preserve_field_references=True))[field]


def _as_path(name: str) -> str:
  """Returns a name in the library's Python syntax: `init["from"]`, since `from` is a keyword."""
  first, *parts = name.split(".")
  is_plain = str.isidentifier
  return first + "".join(
    f".{part}" if is_plain(part) and not keyword.iskeyword(part) else f'["{part}"]'
    for part in parts
  )
