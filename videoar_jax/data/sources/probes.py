"""What the headers of a folder's files say, read once per start and kept from one to the next.

The results are in `$VIDEOAR_JAX_DATA/probes`, by each file's path, size and time of change. They
hold as long as the code that reads the files stays the same.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import PIL

from videoar_jax.data.bad_samples import cause_of
from videoar_jax.data.media import clips
from videoar_jax.data.sources import remote
from videoar_jax.data.sources.media_files import printable
from videoar_jax.interop.atomic import write_text
from videoar_jax.interop.strict_json import to_json

log = logging.getLogger(__name__)

_NUM_THREADS = 4
_lock = threading.Lock()
_folders: dict[Path, "_Probes"] = {}


def probe_files(folder: Path, files: list[str]) -> list[clips.VideoInfo | str]:
  """Returns what is known of each file below a folder; for one that cannot be used, the reason."""
  with _lock:
    path = folder.resolve()
    probes = _folders.setdefault(path, _Probes(path))
    return probes.of(files)


class _Probes:
  """The files of one folder, each with its stamp and what is known of it."""

  def __init__(self, folder: Path):
    self._folder = folder
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    self._note = remote.cache_folder() / "probes" / f"{name}.json"
    self._known: dict[str, tuple[list[int], clips.VideoInfo | str]] | None = None

  def of(self, files: list[str]) -> list[clips.VideoInfo | str]:
    if self._known is None:
      self._known = self._read()
    stamps = {file: _stamp(f"{self._folder}/{file}") for file in files}
    new = [f for f in files if f not in self._known or self._known[f][0] != stamps[f]]
    if new:
      try:
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
          for file, found in zip(new, pool.map(self._probe, new), strict=True):
            self._known[file] = (stamps[file], found)
      finally:
        self._write()
    return [self._known[file][1] for file in files]

  def _probe(self, file: str) -> clips.VideoInfo | str:
    try:
      path = self._folder / file
      if path.stat().st_size == 0:
        return "empty file"
      return clips.probe(path)
    except MemoryError:
      raise
    except Exception as error:
      cause, _, is_foreseen = cause_of(error)
      if not is_foreseen:
        log.warning("%s cannot be used", printable(str(self._folder / file)), exc_info=error)
      return cause

  def _read(self) -> dict[str, tuple[list[int], clips.VideoInfo | str]]:
    """Returns what earlier starts found out; nothing if that is missing, damaged or outdated."""
    try:
      note = json.loads(self._note.read_text())
      if note["reader"] == _reader():
        return {file: (stamp, _decode(facts)) for file, (stamp, facts) in note["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
      pass
    return {}

  def _write(self) -> None:
    # Reasons are not kept: what kept a file from being read may be gone by the next start.
    files = {
      file: [stamp, _encode(found)]
      for file, (stamp, found) in self._known.items()
      if not isinstance(found, str)
    }
    # Where nothing can be written, the next start has to read the files again.
    with contextlib.suppress(OSError):
      self._note.parent.mkdir(parents=True, exist_ok=True)
      write_text(self._note, to_json({"reader": _reader(), "files": files}))


def _stamp(path: str) -> list[int]:
  try:
    status = os.stat(path)
  except OSError:
    return []
  return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else []


def _encode(info: clips.VideoInfo) -> list:
  values = [getattr(info, field.name) for field in dataclasses.fields(info)]
  return [{"ratio": str(x)} if isinstance(x, Fraction) else x for x in values]


def _decode(values: list) -> clips.VideoInfo:
  return clips.VideoInfo(*[_ratio(x["ratio"]) if isinstance(x, dict) else x for x in values])


@functools.lru_cache  # Many files share a few frame rates.
def _ratio(text: str) -> Fraction:
  return Fraction(text)


@functools.cache
def _reader() -> str:
  """Returns a hash of the code and the versions of the libraries that read files."""
  paths = sorted(Path(clips.__file__).parent.glob("*.py"))
  digest = hashlib.sha256(f"{av.__version__} {PIL.__version__}".encode())
  for path in paths:
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]
