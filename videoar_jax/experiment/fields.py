"""Dataclasses from the sections of a config, with errors that name the field and the mend."""

import dataclasses
import difflib
import re
import types
import typing
from typing import Any


def build(cls: type, values: dict, path: str):
  """Builds a dataclass from a section, sections within it included.

  Args:
    cls: the dataclass; a field that would be a Python keyword ends with an underscore in it.
    values: its fields.
    path: the section's name, for errors.
  Raises:
    ValueError: a field is unknown, missing, of another type, or out of range.
  """
  fields = {field.name.rstrip("_"): field for field in dataclasses.fields(cls)}
  check_names(values, tuple(fields), path)
  hints, arguments = typing.get_type_hints(cls), {}
  for name, field in fields.items():
    hint = hints[field.name]
    if name in values:
      arguments[field.name] = convert(hint, values[name], f"{path}.{name}")
    elif dataclasses.is_dataclass(hint):
      arguments[field.name] = convert(hint, {}, f"{path}.{name}")
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise ValueError(f"{path}.{name} is missing; set it")
  try:
    return cls(**arguments)
  except ValueError as error:
    # Dataclasses name their field; where it stands in the config is known here.
    prefix = "" if str(error).startswith(path.rpartition(".")[0] or path) else f"{path}: "
    raise ValueError(f"{prefix}{error}") from None


def convert(hint: Any, value: Any, path: str) -> Any:
  if dataclasses.is_dataclass(hint):
    return build(hint, value, path)
  options = typing.get_args(hint) if _is_union(hint) else (hint,)
  kinds = tuple(typing.get_origin(option) or option for option in options)
  if tuple in kinds and isinstance(value, list | tuple):
    return _as_tuple(value)
  if float in kinds and isinstance(value, int) and not isinstance(value, bool):
    return float(value) if int not in kinds else value
  if isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds):
    return value
  wanted = " or ".join(kind.__name__ for kind in kinds)
  raise ValueError(f"{path}={value!r} must be of type {wanted}")


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _as_tuple(value):
  return tuple(_as_tuple(item) if isinstance(item, list | tuple) else item for item in value)


def check_names(values: dict, known: tuple[str, ...], path: str) -> None:
  for name in values:
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1)
      hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
      raise ValueError(f"{path}.{name} is not a field; {hint}")


def attribute_docs(cls: type) -> dict[str, str]:
  """Returns what a dataclass's docstring says of each attribute, by its name in configs."""
  _, _, text = (cls.__doc__ or "").partition("Attributes:\n")
  docs: dict[str, str] = {}
  name = None
  for line in text.splitlines():
    entry = re.match(r"    (\w+(?:, \w+)*): (.+)", line)
    if entry:
      *others, name = entry[1].split(", ")
      docs |= dict.fromkeys((*others, name), entry[2])
    elif name is not None and line.startswith("      "):
      docs[name] += " " + line.strip()
  return {name.rstrip("_"): text for name, text in docs.items()}
