"""Commands start again with huge pages; nothing else does."""

import os
import subprocess
import sys

import pytest

from videoar_jax.runtime import huge_pages
from videoar_jax.runtime.huge_pages import describe, restart_command, wanted_tunables

COMMAND = ["python", "-X", "dev", "-m", "videoar_jax.sample", "--help"]


@pytest.mark.parametrize(
  ("environ", "setting", "glibc", "wanted"),
  [
    ({}, "madvise", "glibc 2.36", "glibc.malloc.hugetlb=1"),
    ({}, "madvise", "glibc 2.35.9000", "glibc.malloc.hugetlb=1"),
    ({"GLIBC_TUNABLES": "a.b=1"}, "madvise", "glibc 3.0", "a.b=1:glibc.malloc.hugetlb=1"),
    ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "madvise", "glibc 2.36", None),
    ({"VIDEOAR_JAX_HUGE_PAGES": "0"}, "madvise", "glibc 2.36", None),
    ({}, "madvise", "glibc 2.31", None),
    ({}, "madvise", "", None),
    ({}, "never", "glibc 2.36", None),
    ({}, "always", "glibc 2.36", None),
    ({}, "", "glibc 2.36", None),
  ],
)
def test_tunables_are_set_where_they_help(environ, setting, glibc, wanted):
  assert wanted_tunables(environ, setting, glibc) == wanted


@pytest.fixture
def started(monkeypatch):
  """Returns what was started instead of this process, where huge pages are to be had."""
  calls = []
  monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
  monkeypatch.setattr(huge_pages, "_setting", lambda: "madvise")
  monkeypatch.setattr(huge_pages, "_glibc", lambda: "glibc 2.36")
  monkeypatch.setattr(os, "environ", {"HOME": "/"})
  return calls


def test_a_command_starts_again_with_its_arguments(started):
  restart_command(COMMAND, ["-m", "--help"])
  ((path, arguments, environ),) = started
  assert path == sys.executable and arguments == [sys.executable, *COMMAND[1:]]
  assert environ["HOME"] == "/" and environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
  assert "huge pages" in describe(environ) and "VIDEOAR_JAX_HUGE_PAGES=0" in describe(environ)
  assert describe({}) == "malloc uses pages of the usual size"


@pytest.mark.parametrize(
  ("arguments", "argv"),
  [
    (["python", "-c", "import videoar_jax"], ["-c"]),
    (["python", "-m", "pytest", "videoar_jax.sample"], ["-m"]),
    (COMMAND, ["/path/videoar_jax/sample.py", "--help"]),
    (["python", "train.py", "-m", "videoar_jax.sample"], ["train.py", "-m", "videoar_jax.sample"]),
  ],
)
def test_libraries_and_other_programs_go_on(started, arguments, argv):
  restart_command(arguments, argv)
  assert not started


def test_a_system_that_starts_nothing_goes_on(started, monkeypatch):
  def fail(*call):
    raise OSError

  monkeypatch.setattr(os, "execve", fail)
  restart_command(COMMAND, ["-m", "--help"])


def starts_of(tmp_path, *arguments, **variables):
  """Returns the value of GLIBC_TUNABLES at each start of Python for one command."""
  text = (
    "import os; open(os.environ['LOG'], 'a').write(os.environ.get('GLIBC_TUNABLES', '') + '\\n')"
  )
  (tmp_path / "usercustomize.py").write_text("")
  (tmp_path / "sitecustomize.py").write_text(text)
  log = tmp_path / "log.txt"
  log.write_text("")
  environ = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
  environ |= {"LOG": str(log), "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path[1:]])}
  subprocess.run(
    [sys.executable, *arguments], env=environ | variables, check=True, capture_output=True
  )
  return log.read_text().splitlines()


def test_whole_commands_start_at_most_twice(tmp_path):
  tunables = wanted_tunables({}, huge_pages._setting(), huge_pages._glibc())
  expected = [""] if tunables is None else ["", tunables]
  command = ["-m", "videoar_jax.plan", "--help"]
  assert starts_of(tmp_path, *command) == expected
  assert starts_of(tmp_path, *command, VIDEOAR_JAX_HUGE_PAGES="0") == [""]
  assert starts_of(tmp_path, "-c", "import videoar_jax") == [""]
