"""What the sources of a run listed when it began: data that changed since then is noticed.

`WORKDIR/data.json` has, for each section of the config that names files and for each split, the
samples with the sizes of their files, the names of the classes, and hashes of captions and motion,
and of an index; or the name of another section with the same listing. Paths and times of
modification do not count: data may be moved.
"""

import hashlib
import json
import pathlib

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.data.sources.media_files import printable
from videoar_jax.experiment.schema import RunConfig
from videoar_jax.interop.atomic import write_text
from videoar_jax.interop.strict_json import to_json

FILE = "data.json"
_MAX_LISTED = 100_000  # Of more samples, only a hash is kept.
_NUM_SHOWN = 3
_FIELDS = {"num_samples", "samples", "hash", "captions", "index", "class_names"}


def sections_of(run: RunConfig) -> dict[str, DataConfig]:
  """Returns the data settings of a config by the names of their sections."""
  sections = {"data": run.data}
  for stage in (*run.caches, *run.stages):
    sections[f"stage.{stage.name}.data"] = stage.data
  for stage in run.stages:
    for part in stage.mixture:
      sections[f"stage.{stage.name}.mixture.{part.name}"] = part.data
  return sections


def describe(source) -> dict | None:
  """Returns what a source lists, for JSON; None for a source without files."""
  if not hasattr(source, "listing"):
    return None
  sizes, path = source.listing(), getattr(source, "path", None)
  is_index = isinstance(path, pathlib.Path) and path.is_file()
  return {
    "num_samples": len(sizes),
    "samples": sizes if len(sizes) <= _MAX_LISTED else None,
    "hash": _hash(sizes),
    "captions": _hash(_captions_of(source)),
    "index": hashlib.sha256(path.read_bytes()).hexdigest()[:16] if is_index else None,
    "class_names": list(getattr(source, "class_names", [])),
  }


def _captions_of(source) -> list:
  """Returns a source's captions and, if it knows any, how much moves in its clips."""
  captions, flows = source.known_captions(), source.known_flows()
  return [captions, flows] if flows else captions


def _hash(value) -> str:
  return hashlib.sha256(to_json(value).encode()).hexdigest()[:16]


def read(workdir: pathlib.Path) -> dict[str, dict]:
  """Returns the listings of a workdir by "SECTION SPLIT"; empty if there are none.

  Raises:
    ValueError: the file is damaged.
  """
  path = workdir / FILE
  try:
    found = json.loads(path.read_text())
    found = {name: found[x] if isinstance(x, str) else x for name, x in found.items()}
    if not all(listing.keys() == _FIELDS for listing in found.values()):
      raise ValueError("a listing has other fields")
  except FileNotFoundError:
    return {}
  except (ValueError, AttributeError, KeyError) as error:
    raise ValueError(f"{path} is damaged ({error}); remove it to go on unchecked") from error
  return found


def write(workdir: pathlib.Path, listings: dict[str, dict]) -> None:
  """Writes listings, in place of earlier ones of the same name."""
  if not listings:
    return
  result: dict[str, dict | str] = {}
  for name, listing in (read(workdir) | listings).items():
    result[name] = next((other for other, x in result.items() if x == listing), listing)
  write_text(workdir / FILE, to_json(result, indent=0) + "\n")


def check_same(workdir: pathlib.Path, listings: dict[str, dict], *, is_allowed: bool) -> list[str]:
  """Returns a line for each source that lists other samples than when the run began.

  Args:
    workdir: of the run.
    listings: of its sources now.
    is_allowed: whether to go on.
  Raises:
    ValueError: there are such lines, and it is not allowed.
  """
  before = read(workdir)
  found: dict[str, str] = {}  # The first source with each change.
  for name, now in listings.items():
    changes = _changes(before[name], now) if name in before else []
    if changes:
      found.setdefault("; ".join(changes), name)
  lines = [f"{name}: {changes}" for changes, name in found.items()]
  if lines and not is_allowed:
    text = "\n  ".join(lines)
    raise ValueError(
      f"the data is not what {workdir} was trained on so far:\n  {text}\n"
      "Restore it, name another workdir, or add --allow_changed_data to go on with the data as it "
      "is now. Nothing was changed"
    )
  return lines


def _changes(before: dict, now: dict) -> list[str]:
  """Returns what differs between two listings of a source."""
  changes = []
  old, new = before["samples"], now["samples"]
  if before["hash"] != now["hash"]:
    if old is None or new is None:
      changes.append(f"{before['num_samples']} samples are now {now['num_samples']}, or others")
    else:
      changes += _named("added", [name for name in new if name not in old])
      changes += _named("removed", [name for name in old if name not in new])
      changes += _named("changed", [name for name in new if name in old and old[name] != new[name]])
      changes = changes or ["the samples have another order"]
  numbers = {name: number for number, name in enumerate(before["class_names"])}
  moved = [
    f"{name!r} {numbers[name]} -> {number}"
    for number, name in enumerate(now["class_names"])
    if numbers.get(name, number) != number
  ]
  if moved:
    changes.append(f"{len(moved)} classes have other numbers ({_first(moved)})")
  elif before["class_names"] != now["class_names"]:
    changes.append(f"{len(numbers)} classes are now {len(now['class_names'])}")
  # Captions of other samples differ in any case.
  if not changes and before["captions"] != now["captions"]:
    changes.append("captions or motion changed")
  if not changes and before["index"] != now["index"]:
    changes.append("the entries of the index changed")
  return changes


def _named(what: str, names: list[str]) -> list[str]:
  return [f"{len(names)} {what} ({_first(names)})"] if names else []


def _first(names: list[str]) -> str:
  return ", ".join(map(printable, names[:_NUM_SHOWN])) + (
    ", ..." if len(names) > _NUM_SHOWN else ""
  )


def class_names(workdir: pathlib.Path, run: RunConfig, data: DataConfig) -> list[str]:
  """Returns the classes that a source had in training; empty if they are not known."""
  found = read(workdir)
  names = (f"{name} train" for name, other in sections_of(run).items() if other == data)
  return next((found[name]["class_names"] for name in names if name in found), [])
