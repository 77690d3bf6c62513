"""Lists the media of folders at URLs, and of glob patterns such as gs://bucket/*/part-?/*.mp4."""

import posixpath
from pathlib import Path

import fsspec

from videoar_jax.data.sources import index, remote
from videoar_jax.data.sources.captions import CAPTIONS, read_list
from videoar_jax.data.sources.folder import describe
from videoar_jax.data.sources.media_files import Names, is_hidden, is_media


def is_listed(path: str) -> bool:
  """Returns whether a path is a glob pattern, or a URL other than an index's."""
  if remote.is_url(path):
    return _is_pattern(path) or not path.endswith(index.EXTENSIONS)
  return _is_pattern(path) and not Path(path).exists()


def list_media(path: str) -> tuple[str, list[tuple[str, dict]]]:
  """Returns the folder that all media are in, and each file's path below it with its metadata.

  That folder is the part of a pattern before its first wildcard. Captions are as in a local folder:
  lines of its `captions.jsonl`, otherwise the names of the files' own folders.

  Raises:
    ValueError: the pattern names no bucket, the URL cannot be listed, or `captions.jsonl` is wrong.
  """
  folder = _folder_of(path)
  with remote.errors(path):
    files, root = fsspec.core.url_to_fs(folder)
    is_whole = path.rstrip("/") == folder
    everything = _below(root, files.find(root)) if is_whole or files.exists(_captions(root)) else []
    found = everything if is_whole else _below(root, files.glob(fsspec.core.url_to_fs(path)[1]))
    has_captions = files.exists(_captions(root))
  captions = {}
  if has_captions:
    # Lines of other files than those that the pattern selects are no mistakes.
    copy = remote.local_file(_captions(folder))
    captions = read_list(copy.parent, CAPTIONS, Names(everything))
  return folder, describe(Path(root), found, captions)


def _is_pattern(path: str) -> bool:
  return any(character in path for character in "*?[")


def _folder_of(path: str) -> str:
  """Returns the part of a path before its first wildcard, up to a slash."""
  if not _is_pattern(path):
    return path.rstrip("/")
  first = min(path.index(character) for character in "*?[" if character in path)
  folder = path[:first].rpartition("/")[0]
  if not remote.is_url(path):
    return str(Path(folder).expanduser().absolute())
  if folder.endswith(":/"):
    raise ValueError(f"{path}: name the bucket, and put wildcards after it")
  return folder


def _captions(folder: str) -> str:
  return f"{folder}/{CAPTIONS}"


def _below(root: str, found: list[str]) -> list[str]:
  """Returns the media among some files, sorted, by their paths below a folder."""
  paths = (posixpath.relpath(file, root) for file in found)
  return sorted(path for path in paths if is_media(path) and not is_hidden(path))
