"""JSON that every reader takes."""

import json

from videoar_jax.interop.strict_json import write_json


def test_numbers_that_are_not_finite_are_null(tmp_path):
  value = {"a": [float("nan"), 1.5, {"b": (float("-inf"), 2)}], "c": "NaN", "d": True, "e": None}

  def refuse(name):
    raise AssertionError(name)

  write_json(tmp_path / "x.json", value)
  read = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
  assert read == {"a": [None, 1.5, {"b": [None, 2]}], "c": "NaN", "d": True, "e": None}
