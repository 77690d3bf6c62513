"""Atomic writes: files and folders appear under their names only once they are complete."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

_SUFFIX = ".partial"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path to write to, which is renamed to `path` if the block succeeds.

  A file may replace a file; a folder may replace only an empty folder. If the block fails, what it
  wrote is removed, and `path` is unchanged. The temporary path is in the same folder, and unique
  across threads, processes and hosts.

  Args:
    path: the file or folder to make, in an existing folder.
  Raises:
    OSError: the rename fails.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
  try:
    yield partial
    partial.replace(path)
  finally:
    _remove(partial)


def remove_partials(folder: str | os.PathLike) -> None:
  """Removes what killed `replacing` blocks left in a folder; none may be running."""
  # Files of other programs may end with the suffix, too.
  for partial in pathlib.Path(folder).glob("*." + 8 * "[0-9a-f]" + _SUFFIX):
    _remove(partial)


def _remove(partial: pathlib.Path) -> None:
  # A failure to clean up must not hide the original error.
  with contextlib.suppress(OSError):
    shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file atomically.

  Raises:
    OSError: the file cannot be written.
  """
  with replacing(path) as partial:
    partial.write_text(text)
