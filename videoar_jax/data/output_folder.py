"""A folder to write to, local or at a URL: files appear under their names only when complete.

A local file is renamed when it is complete. A file for a URL is written locally and uploaded as a
whole; object stores such as gs:// and s3:// show an upload only when it is complete.
"""

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from videoar_jax.data.sources import remote
from videoar_jax.interop.atomic import remove_partials, replacing


class OutputFolder:
  """A folder to write to.

  Args:
    place: a local path, or a URL; the folder need not exist.

  Attributes:
    place: the URL, or the absolute path.

  Raises:
    ValueError: the URL has no known protocol, or needs a package that is not installed.
  """

  def __init__(self, place: str | Path):
    is_url = remote.is_url(place)
    self.place = str(place).rstrip("/") if is_url else str(Path(place).expanduser().absolute())
    with self._errors():
      # Listings that are cached would miss what other machines write.
      self._files, self._path = fsspec.core.url_to_fs(self.place, use_listings_cache=False)

  def __str__(self) -> str:
    return self.place

  def sizes(self) -> dict[str, int]:
    """Returns the size in bytes of each file in the folder, by name."""
    with self._errors():
      try:
        found = self._files.ls(self._path, detail=True)
      except FileNotFoundError:
        return {}
    return {posixpath.basename(info["name"]): info["size"] for info in found}

  def has(self, name: str) -> bool:
    """Returns whether a file is in the folder."""
    with self._errors():
      return self._files.exists(self._file(name))

  def read(self, names: list[str]) -> list[str]:
    """Returns the texts of files; those at a URL are fetched in parallel if it supports that."""
    paths = [self._file(name) for name in names]
    with self._errors():
      found = self._files.cat(paths) if paths else {}
    return [found[path].decode() for path in paths]

  def read_range(self, name: str, start: int, end: int) -> bytes:
    """Returns some bytes of a file."""
    with self._errors():
      return self._files.cat_file(self._file(name), start=start, end=end)

  def write(self, name: str, text: str) -> None:
    """Writes a text file."""
    with self.writing(name) as path:
      path.write_bytes(text.encode())

  @contextlib.contextmanager
  def writing(self, name: str) -> Iterator[Path]:
    """Yields a local path to write a file to, which appears in the folder if the block succeeds."""
    if isinstance(self._files, LocalFileSystem):
      folder = Path(self._path)
      folder.mkdir(parents=True, exist_ok=True)
      with replacing(folder / name) as path:
        yield path
      return
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder, name)
      yield path
      with self._errors():
        self._files.put_file(os.fspath(path), self._file(name))

  def remove(self, name: str) -> None:
    """Removes a file."""
    with self._errors():
      self._files.rm_file(self._file(name))

  def remove_partials(self) -> None:
    """Removes what killed processes left; none may be running."""
    if isinstance(self._files, LocalFileSystem):
      remove_partials(self._path)

  def _file(self, name: str) -> str:
    return f"{self._path}/{name}"

  def _errors(self) -> contextlib.AbstractContextManager:
    # Errors of local files name them.
    is_url = remote.is_url(self.place)
    return remote.errors(self.place, "used") if is_url else contextlib.nullcontext()
