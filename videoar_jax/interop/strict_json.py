"""JSON as the standard has it: numbers that are not finite are null, which every reader takes."""

import json
import math
import os
from typing import Any

from videoar_jax.interop.atomic import write_text


def to_json(value: Any, **settings: Any) -> str:
  """Returns a value as JSON, with null for numbers that are not finite.

  Args:
    value: dicts, lists, tuples, texts, numbers, None.
    **settings: of `json.dumps`.
  """
  return json.dumps(_finite(value), allow_nan=False, **settings)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes an indented JSON file atomically; see `to_json`.

  Raises:
    OSError: the file cannot be written.
  """
  write_text(path, to_json(value, indent=2) + "\n")


def _finite(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {name: _finite(x) for name, x in value.items()}
  return [_finite(x) for x in value] if isinstance(value, list | tuple) else value
