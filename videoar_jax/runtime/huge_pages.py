"""Huge pages for malloc, which glibc only turns on before a program starts.

XLA's temporary arrays are returned to the system after each step and faulted in again at the next
one, page by page: on CPU that takes a fifth of the time of a small model's training step.

  VIDEOAR_JAX_HUGE_PAGES=0    leaves commands as they were started
"""

import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

VARIABLE = "VIDEOAR_JAX_HUGE_PAGES"
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_FIRST_GLIBC = (2, 35)
_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_command(arguments: Sequence[str], argv: Sequence[str]) -> None:
  """Starts this process again with huge pages, if it is a command of this package without them.

  Called before anything large is imported. A process that only imports the package goes on as it
  is, and so does one where huge pages are not to be had.

  Args:
    arguments: `sys.orig_argv`, what Python was started with.
    argv: `sys.argv`, which begins with "-m" while Python looks for the module to run.
  """
  if list(argv[:1]) != ["-m"] or not _names_command(arguments):
    return
  if (tunables := wanted_tunables(os.environ, _setting(), _glibc())) is None:
    return
  try:
    os.execve(sys.executable, [sys.executable, *arguments[1:]], os.environ | {_TUNABLES: tunables})
  except OSError:  # Then it runs without.
    return


def wanted_tunables(environ: Mapping[str, str], setting: str, glibc: str) -> str | None:
  """Returns the value of GLIBC_TUNABLES with which to start again; None for no need.

  Args:
    environ: of this process.
    setting: the kernel's choice of huge pages: "never", "madvise" or "always"; "" if it has none.
    glibc: such as "glibc 2.36"; "" for other libraries, such as musl, and systems.
  """
  tunables = environ.get(_TUNABLES, "")
  version = re.fullmatch(r"glibc (\d+)\.(\d+).*", glibc)
  # With "always", memory has huge pages already.
  is_possible = (
    setting == "madvise" and version and (int(version[1]), int(version[2])) >= _FIRST_GLIBC
  )
  if not is_possible or environ.get(VARIABLE) == "0" or _HUGE_PAGES in tunables:
    return None
  return ":".join(filter(None, [tunables, f"{_HUGE_PAGES}=1"]))


def describe(environ: Mapping[str, str]) -> str:
  """Returns a line for the log: whether malloc was asked for huge pages."""
  tunables = environ.get(_TUNABLES, "")
  if f"{_HUGE_PAGES}=1" in tunables:
    return f"malloc uses huge pages ({_TUNABLES}={tunables}); {VARIABLE}=0 turns them off"
  return "malloc uses pages of the usual size"


def _names_command(arguments: Sequence[str]) -> bool:
  """Returns whether Python was started as `python [OPTIONS] -m videoar_jax.COMMAND ...`."""
  after = arguments[arguments.index("-m") + 1 :] if "-m" in arguments else []
  return bool(after) and after[0].startswith("videoar_jax.")


def _setting() -> str:
  """Returns the kernel's choice, which is in brackets."""
  try:
    found = re.search(r"\[(\w+)\]", _SETTING.read_text())
  except OSError:
    return ""
  return found[1] if found else ""


def _glibc() -> str:
  """Returns the C library as glibc names itself; "" for others."""
  try:
    return os.confstr("CS_GNU_LIBC_VERSION") or ""
  except (AttributeError, ValueError, OSError):
    return ""
