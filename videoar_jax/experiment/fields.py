"""Builds dataclasses from the sections of a config, with errors that name the field and the fix."""

import dataclasses
import difflib
import inspect
import re
import types
import typing
from typing import Any


def build(cls: type, values: dict, path: str):
  """Builds a dataclass from a section and its subsections.

  Args:
    cls: the dataclass; a trailing underscore marks fields whose names are Python keywords.
    values: all its fields, see `defaults.complete`.
    path: the section's name, for errors.
  Raises:
    ValueError: a field is missing, has the wrong type, or is out of range.
  """
  hints, arguments = typing.get_type_hints(cls), {}
  for name, field in fields_of(cls).items():
    hint = hints[field.name]
    if values[name] is None and not allows_none(hint):
      raise ValueError(f"{path}.{name} is missing; set it")
    arguments[field.name] = convert(hint, values[name], f"{path}.{name}")
  try:
    return cls(**arguments)
  except ValueError as error:
    # Dataclasses name the field; only here its path in the config is known.
    prefix = "" if str(error).startswith(path.rpartition(".")[0] or path) else f"{path}: "
    raise ValueError(f"{prefix}{error}") from None


def convert(hint: Any, value: Any, path: str) -> Any:
  """Converts a value to a field's type: lists to tuples, integers to floats.

  Raises:
    ValueError: it has the wrong type; names the field.
  """
  if dataclasses.is_dataclass(hint):
    return build(hint, value, path)
  kinds = kinds_of(hint)
  if tuple in kinds and isinstance(value, list | tuple):
    return _as_tuple(value)
  if float in kinds and isinstance(value, int) and not isinstance(value, bool):
    return float(value) if int not in kinds else value
  if value is None and allows_none(hint):
    return None
  if isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds):
    return value
  wanted = " or ".join(kind.__name__ for kind in kinds)
  raise ValueError(f"{path}={value!r} must be of type {wanted}")


def fields_of(cls: type, without: tuple[str, ...] = ()) -> dict[str, dataclasses.Field]:
  """Returns the fields of a dataclass, by their names in configs."""
  names = {field.name.rstrip("_"): field for field in dataclasses.fields(cls)}
  return {name: field for name, field in names.items() if name not in without}


def default_of(field: dataclasses.Field) -> Any:
  """Returns the default of a field; None if it has none."""
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return None if field.default is dataclasses.MISSING else field.default


def allows_none(hint: Any) -> bool:
  """Returns whether a field of a type may be None."""
  return types.NoneType in _options(hint)


def kinds_of(hint: Any) -> tuple[type, ...]:
  """Returns the classes of a field's values, without that of None."""
  options = (option for option in _options(hint) if option is not types.NoneType)
  return tuple(typing.get_origin(option) or option for option in options)


def _options(hint: Any) -> tuple:
  is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
  return typing.get_args(hint) if is_union else (hint,)


def _as_tuple(value):
  return tuple(_as_tuple(item) if isinstance(item, list | tuple) else item for item in value)


def check_names(values: dict, known: tuple[str, ...], path: str) -> None:
  """Raises ValueError if a section has an unknown field; suggests a similar one."""
  for name in values:
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1)
      hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"
      raise ValueError(f"{path}.{name} is not a field; {hint}")


def attribute_docs(cls: type) -> dict[str, str]:
  """Returns the attributes' descriptions in a dataclass's docstring, by their names in configs.

  Those that it has from another dataclass are described there.
  """
  docs: dict[str, str] = {}
  for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
    docs |= _own_docs(base)
  return docs


def _own_docs(cls: type) -> dict[str, str]:
  _, _, text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
  docs: dict[str, str] = {}
  names: list[str] = []
  for line in text.splitlines():
    entry = re.match(r"  (\w+(?:, \w+)*): (.+)", line)
    if entry:
      names = entry[1].split(", ")
      docs |= dict.fromkeys(names, entry[2])
    elif line.startswith("    "):
      docs |= {name: f"{docs[name]} {line.strip()}" for name in names}
  return {name.rstrip("_"): text for name, text in docs.items()}
