"""Differences between two sets of settings."""

import json

_ABSENT = "(absent)"


def differing_fields(one: dict, other: dict) -> list[str]:
  """Returns `field: value -> other value` for every field that differs, in nested dicts too."""
  flat_one, flat_other = _flatten(one), _flatten(other)
  return [
    f"{name}: {flat_one.get(name, _ABSENT)!r} -> {flat_other.get(name, _ABSENT)!r}"
    for name in sorted(flat_one.keys() | flat_other.keys())
    if flat_one.get(name, _ABSENT) != flat_other.get(name, _ABSENT)
  ]


def _flatten(values: dict, prefix: str = "") -> dict:
  flat = {}
  # As in JSON, where tuples are lists.
  for name, value in json.loads(json.dumps(values)).items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat
