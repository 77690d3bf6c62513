"""Files at URLs such as gs://bucket/folder, s3://bucket/folder or memory://folder, by fsspec.

Files that need random access are copied once to a local cache, `$VIDEOAR_JAX_DATA` (by default
`data` in `interop.caches.cache_root`), and again when they change. Local paths are used directly.
"""

import contextlib
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import fsspec

from videoar_jax.interop.atomic import replacing, write_text
from videoar_jax.interop.caches import cache_root
from videoar_jax.interop.strict_json import to_json

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]+:/")
_COPIED = "copied.json"  # The checksum of each copied file.


def cache_folder() -> Path:
  """Returns the folder of what is kept from one run to the next."""
  return Path(os.environ.get("VIDEOAR_JAX_DATA") or cache_root() / "data").expanduser()


def is_url(path: str | Path) -> bool:
  """Returns whether a path is a URL, or a chain of them; a `Path` has only one slash of "://"."""
  return _URL.match(str(path)) is not None


def join(folder: str | Path, file: str) -> str:
  """Joins a folder and a file's path; an absolute path or a URL stays as it is."""
  if is_url(file) or not is_url(folder):
    return file if is_url(file) else os.fspath(Path(folder) / file)
  return file if posixpath.isabs(file) else f"{str(folder).rstrip('/')}/{file}"


def read(url: str) -> bytes:
  """Returns a file's bytes.

  Raises:
    ValueError: there is no such file, or it cannot be read.
  """
  with errors(url):
    files, path = fsspec.core.url_to_fs(url)
    return files.cat_file(path)


def local_file(path: str | Path) -> Path:
  """Returns a local path as it is, or the path of a local copy of the file at a URL.

  Raises:
    ValueError: there is no file at the URL.
  """
  if not is_url(path):
    return Path(path).expanduser()
  folder, _, name = str(path).rpartition("/")
  return _copy(folder, lambda found: found == name) / name


def local_folder(path: str | Path, suffixes: tuple[str, ...] = ("",)) -> Path:
  """Returns a local path as it is, or the path of a local copy of the folder at a URL.

  Args:
    path: the folder; its subfolders are not copied.
    suffixes: suffixes of the files to copy.
  Raises:
    ValueError: there is no such file at the URL.
  """
  if not is_url(path):
    return Path(path).expanduser()
  return _copy(str(path).rstrip("/"), lambda found: found.endswith(suffixes))


def _copy(url: str, is_wanted) -> Path:
  """Copies the wanted files of a folder that are new or changed; returns the local folder."""
  folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]
  folder.mkdir(parents=True, exist_ok=True)
  note = folder / _COPIED
  copied = _read_note(note)
  with errors(url):
    files, root = fsspec.core.url_to_fs(url)
    found = {
      posixpath.basename(info["name"]): info["name"]
      for info in files.ls(root, detail=True, refresh=True)
      if info["type"] == "file" and is_wanted(posixpath.basename(info["name"]))
    }
    if not found:
      raise FileNotFoundError
    for name, source in sorted(found.items()):
      stamp = str(files.checksum(source))
      if copied.get(name) != stamp or not (folder / name).is_file():
        with replacing(folder / name) as partial:
          files.get_file(source, os.fspath(partial))
        copied[name] = stamp
        write_text(note, to_json(copied))
  for name in set(copied) - set(found):
    # Remove local copies of deleted files, except those that another call wanted.
    if is_wanted(name):
      (folder / name).unlink(missing_ok=True)
      del copied[name]
  write_text(note, to_json(copied))
  return folder


def _read_note(note: Path) -> dict[str, str]:
  """Returns the checksums of the copies; none if they are missing or damaged."""
  try:
    return dict(json.loads(note.read_text()))
  except (OSError, ValueError, TypeError, RecursionError):
    return {}


@contextlib.contextmanager
def errors(url: str, doing: str = "read") -> Iterator[None]:
  """Converts errors, whose types differ by protocol, into a ValueError that names the URL.

  Args:
    url: the file or folder.
    doing: what is done with it, as a participle.
  """
  try:
    yield
  except ImportError as error:
    raise ValueError(f"{url} needs another package: {error}") from error
  except FileNotFoundError as error:
    raise ValueError(f"{url}: there is no such file") from error
  except MemoryError:
    raise
  except Exception as error:  # Such as botocore's, which are no OSError.
    raise ValueError(f"{url} cannot be {doing} ({type(error).__name__}: {error})") from error
