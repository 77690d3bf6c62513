"""Tested versions, where they are listed, and detecting processes with other versions."""

import pathlib
import re

import pytest

from videoar_jax.experiment import command_line
from videoar_jax.runtime import versions
from videoar_jax.runtime.versions import TESTED, differences, numbers, untested_warning

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def next_minor(version):
  major, minor = numbers(version)
  return f"{major}.{minor + 1}"


def test_requirements_have_the_bounds_of_the_table():
  lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
  for name in ("jax", "flax"):
    first, last = TESTED[name]
    assert f"{name}>={first},<{next_minor(last)}" in lines
  project = (REPOSITORY / "pyproject.toml").read_text()
  assert f'requires-python = ">={TESTED["Python"][0]}"' in project


def test_both_ends_of_the_table_are_what_is_tested():
  workflow = (REPOSITORY / ".github" / "workflows" / "tests.yml").read_text()
  found = re.findall(r'- \{python: "(.+)", jax: "(.+)", flax: "(.+)"\}', workflow)
  ends = zip(*(TESTED[name] for name in ("Python", "jax", "flax")), strict=True)
  assert found == [tuple(version.replace(".x", ".*") for version in end) for end in ends]


@pytest.fixture
def install(monkeypatch):
  """Returns a function that fakes installed versions; others are the first tested ones."""

  def set_versions(**other):
    known = {name: first for name, (first, _) in TESTED.items()} | other
    monkeypatch.setattr(versions, "installed", known.get)

  return set_versions


@pytest.mark.parametrize(
  ("name", "version", "is_tested"),
  [
    ("Python", "3.11.0", True),
    ("Python", "3.13.9", True),
    ("Python", "3.9.18", False),
    ("Python", "3.14.0rc1", False),
    ("jax", "0.10.2", True),
    ("jax", "0.10.1", False),
    ("jax", "0.9.5", False),
    ("jax", "0.12.0.1", True),
    ("jax", "0.12.99", True),
    ("jax", "0.13.0.dev20270101", False),
    ("jax", "1.0", False),
    ("flax", "0.12.12", True),
    ("flax", "0.12.7", False),
    ("flax", "0.13.0", False),
  ],
)
def test_what_is_outside_of_the_range_is_named(install, name, version, is_tested):
  install(**{name: version})
  warning = untested_warning()
  assert (warning is None) == is_tested
  if not is_tested:
    assert f"not tested with {name} {version}," in warning
    ranges = "Python 3.11 to 3.13, jax 0.10.2 to 0.12.x, flax 0.12.8 to 0.12.x"
    assert warning.endswith(f"Tested are {ranges}")


def test_commands_warn_once_before_they_fail(install, capsys):
  def fail():
    raise ImportError("no module of that name")

  install(jax="0.13.0")
  assert command_line.print_result(fail) == 2
  warning, error = capsys.readouterr().err.splitlines()
  assert warning.startswith("warning: not tested with jax 0.13.0, which")
  assert error == "error: no module of that name"
  assert command_line.print_result(lambda: "done", uses_jax=False) == 0
  install()
  assert command_line.print_result(lambda: "done") == 0
  assert not capsys.readouterr().err


ONE = {"Python": "3.11", "jax": "0.10.2"}


def test_processes_that_are_alike_do_not_differ():
  assert not differences({0: ONE, 1: dict(ONE)})


def test_each_process_is_named_with_its_version():
  others = ONE | {"jax": "0.12.0"}
  found = {0: ONE, 1: others, 2: ONE, 3: ONE, 4: ONE | {"Python": "3.13"}, 5: ONE}
  assert differences(found) == [
    "Python is 3.11 in processes 0-3, 5 and 3.13 in process 4",
    "jax is 0.10.2 in processes 0, 2-5 and 0.12.0 in process 1",
  ]


def test_a_version_that_a_process_does_not_tell_differs():
  assert differences({0: ONE, 1: ONE | {"flax": "0.12.8"}}) == [
    "flax is unknown in process 0 and 0.12.8 in process 1"
  ]


def test_own_versions_name_what_must_be_alike():
  found = versions.shared_versions()
  assert set(found) == {"Python", "videoar_jax", "jax", "jaxlib", "flax", "orbax-checkpoint"}
  assert re.fullmatch(r"3\.\d+", found["Python"])
