"""Files and folders that appear at their names once they are whole."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

_SUFFIX = ".partial"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a path to write to; what is there takes the name `path` if the block ends well.

  A file takes the place of a file, a folder that of none or of an empty one. If the block fails,
  what it wrote is removed, and what was at `path` stays. The path is beside `path`, and no other
  block has it, in whatever thread, process or host.

  Args:
    path: of a file or a folder to make, in a folder that exists.
  Raises:
    OSError: it cannot take the name.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_SUFFIX}")
  try:
    yield partial
    partial.replace(path)
  finally:
    _remove(partial)


def remove_partials(folder: str | os.PathLike) -> None:
  """Removes what blocks of `replacing` left in a folder when they were killed; none may run."""
  for partial in pathlib.Path(folder).glob(f"*{_SUFFIX}"):
    _remove(partial)


def _remove(partial: pathlib.Path) -> None:
  # What cannot be removed hides nothing that went wrong before.
  with contextlib.suppress(OSError):
    shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file; it appears once it is whole.

  Raises:
    OSError: it cannot be written.
  """
  with replacing(path) as partial:
    partial.write_text(text)
