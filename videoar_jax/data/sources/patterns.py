"""Lists the media of folders at URLs, and of glob patterns such as gs://bucket/*/part-?/*.mp4."""

import posixpath
import tempfile
from pathlib import Path

import fsspec

from videoar_jax.data.sources import index, remote
from videoar_jax.data.sources.captions import may_have_captions, read_captions
from videoar_jax.data.sources.folder import describe
from videoar_jax.data.sources.media_files import Listing, list_files, listing_of


def is_listed(path: str) -> bool:
  """Returns whether a path is a glob pattern, or a URL other than an index's."""
  if remote.is_url(path):
    return _is_pattern(path) or not path.endswith(index.EXTENSIONS)
  return _is_pattern(path) and not Path(path).exists()


def list_media(path: str) -> tuple[str, list[tuple[str, dict]]]:
  """Returns the folder that all media are in, and each file's path below it with its metadata.

  That folder is the part of a pattern before its first wildcard. What is left out of it, and where
  its captions are, is as in `folder.describe_files`.

  Raises:
    ValueError: the pattern names no bucket, the URL cannot be listed, or a list of captions is
      wrong.
  """
  folder = _folder_of(path)
  with remote.errors(path):
    files, root = fsspec.core.url_to_fs(folder)
    is_url = remote.is_url(folder)
    listing = listing_of(_below(root, files.find(root))) if is_url else list_files(Path(root))
    found = listing.media
    if path.rstrip("/") != folder:
      selected = set(_below(root, files.glob(fsspec.core.url_to_fs(path)[1])))
      found = [file for file in found if file in selected]
  # Lines of other files than those that the pattern selects are no mistakes.
  captions = _fetched_captions(folder, listing) if is_url else read_captions(Path(root), listing)
  return folder, describe(Path(root), found, captions)


def _fetched_captions(folder: str, listing: Listing) -> dict[str, list[str]]:
  """Returns the captions of a folder at a URL, as `read_captions` does those of a local one."""
  wanted = [file for file in listing.others if may_have_captions(file)]
  with tempfile.TemporaryDirectory() as copy:
    with remote.errors(folder):
      files, root = fsspec.core.url_to_fs(folder)
      if wanted:  # Together, which is in parallel if the storage supports that.
        files.get([f"{root}/{file}" for file in wanted], [f"{copy}/{file}" for file in wanted])
    try:
      return read_captions(Path(copy), listing)
    except ValueError as error:
      raise ValueError(str(error).replace(copy, folder)) from error


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


def _below(root: str, found: list[str]) -> list[str]:
  """Returns files' paths below a folder, without those that lead out of it."""
  paths = (posixpath.relpath(file, root) for file in found)
  return [path for path in paths if not path.startswith("../")]
