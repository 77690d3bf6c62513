"""Tested and installed versions of Python and of libraries."""

import importlib.metadata
import itertools
import platform
import re
from collections.abc import Iterable, Mapping

from videoar_jax import __version__

# First and last tested version; `x` in the last one is any number. `requirements.txt` has the same
# bounds, and `.github/workflows/tests.yml` tests both ends.
TESTED = {
  "Python": ("3.11", "3.13"),
  "jax": ("0.10.2", "0.12.x"),
  "flax": ("0.12.8", "0.12.x"),
}
# Libraries whose versions must be the same in all processes of a run.
_SHARED = ("jax", "jaxlib", "flax", "orbax-checkpoint")


def numbers(version: str) -> tuple[int, ...]:
  """Returns a version's leading numbers, such as (0, 12) for `0.12.x`."""
  return tuple(map(int, re.match(r"\d+(?:\.\d+)*", version)[0].split(".")))


def installed(name: str) -> str:
  """Returns the installed version of Python or of a library."""
  return platform.python_version() if name == "Python" else importlib.metadata.version(name)


def tested_range(name: str) -> str:
  """Returns the tested versions as text, such as `jax 0.10.2 to 0.12.x`."""
  return f"{name} {' to '.join(TESTED[name])}"


def untested_warning() -> str | None:
  """Returns a line that names the versions outside the tested range; None if there are none."""
  versions = {name: installed(name) for name in TESTED}
  outside = [f"{name} {text}" for name, text in versions.items() if not _is_tested(name, text)]
  if not outside:
    return None
  tested = ", ".join(map(tested_range, TESTED))
  return f"not tested with {', '.join(outside)}, which may cause failures. Tested are {tested}"


def _is_tested(name: str, version: str) -> bool:
  first, last = map(numbers, TESTED[name])
  return first <= numbers(version) and numbers(version)[: len(last)] <= last


def shared_versions() -> dict[str, str]:
  """Returns this process's versions of everything that must be the same in all processes."""
  python = ".".join(platform.python_version_tuple()[:2])
  return {"Python": python, "videoar_jax": __version__} | {n: installed(n) for n in _SHARED}


def differences(found: Mapping[int, Mapping[str, str]]) -> list[str]:
  """Returns a line for each library whose version differs between processes.

  Args:
    found: the `shared_versions` of each process.
  """
  lines = []
  for name in dict.fromkeys(itertools.chain(*found.values())):
    holders: dict[str, list[int]] = {}
    for process, versions in sorted(found.items()):
      holders.setdefault(versions.get(name, "unknown"), []).append(process)
    if len(holders) > 1:
      having = [f"{version} in {_ranges(who)}" for version, who in holders.items()]
      lines.append(f"{name} is {' and '.join(having)}")
  return lines


def _ranges(processes: Iterable[int]) -> str:
  """Returns sorted process numbers as text, such as `process 3` or `processes 0-2, 5`."""
  runs = [
    [process for _, process in run]
    for _, run in itertools.groupby(enumerate(processes), lambda pair: pair[1] - pair[0])
  ]
  texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
  is_one = len(runs) == 1 and len(runs[0]) == 1
  return f"process{'' if is_one else 'es'} {', '.join(texts)}"
