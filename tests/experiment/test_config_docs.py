"""docs/config.md is current and describes every field."""

import dataclasses
import inspect
import pathlib

import pytest

from videoar_jax.experiment import config_docs
from videoar_jax.experiment.defaults import default_config

PAGE = pathlib.Path(__file__).resolve().parent.parent.parent / "docs" / "config.md"


def test_the_page_is_current():
  command = "python -m videoar_jax.experiment.config_docs > docs/config.md"
  assert PAGE.read_text() == config_docs.render(), f"regenerate it: {command}"


def test_every_field_of_a_config_is_on_the_page():
  """Under its section's heading, whichever table the generator of the page takes it from."""
  stages = {"a": "tokenizer", "b": "generator", "c": "cache"}
  sections = {}
  for block in config_docs.render().split("\n##")[1:]:
    heading = block.partition("\n")[0]
    name = heading.split("`")[1] if "`" in heading else ""
    sections.setdefault(name, set()).update(
      line.split("`")[1] for line in block.splitlines() if line.startswith("| `")
    )

  def check(config, path):
    for name in config:
      shown = path.replace("stage.a", "stage.NAME").replace("stage.b", "stage.NAME")
      shown = shown.replace("stage.c", "stage.NAME")
      if name not in stages:
        assert name in sections.get(shown, ()) or path in ("", "stage"), f"{shown}.{name}"
      if isinstance(config[name], type(config)) and name not in ("mixture",):
        inherits = path.startswith("stage.") and name in ("data", "mesh")
        check(config[name], name if inherits else f"{path}.{name}".strip("."))

  check(default_config(stages), "")


@dataclasses.dataclass(frozen=True)
class Undocumented:
  """Says nothing of one.

  Attributes:
    known: is said, a|b.
  """

  known: float | None = None
  unknown: int = 3


def test_a_field_that_the_docstring_leaves_out_is_named():
  with pytest.raises(ValueError, match="the docstring of Undocumented does not describe unknown"):
    list(config_docs.section("x", Undocumented))


def test_rows_say_type_default_and_meaning():
  # Python 3.13 takes the indentation off by itself.
  Undocumented.__doc__ = inspect.cleandoc(Undocumented.__doc__) + "\n  unknown: is said, too.\n"
  heading, summary, table = config_docs.section("x", Undocumented)
  assert heading == "### `x`\n" and summary.startswith("Says nothing of one.")
  assert table.splitlines()[2:] == [
    "| `known` | float or None | `None` | is said, a\\|b. |",
    "| `unknown` | int | `3` | is said, too. |",
  ]
