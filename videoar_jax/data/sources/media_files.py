"""Which files below a folder are data: videos and images, by the endings of their names.

Hidden files and folders, whose names begin with a dot, are no data, and neither is what this
package has written itself: folders of runs, prepared shards and samples. Links to folders are
followed, but each folder is listed only once, so that loops end and no file has two names.
"""

import collections
import dataclasses
import functools
import logging
import os
import posixpath
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from PIL import features

log = logging.getLogger(__name__)

VIDEO_EXTENSIONS = (
  *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
  *(".wmv", ".ogv", ".gif", ".3gp", ".flv"),
)
IMAGE_EXTENSIONS = (
  *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"),
  *((".avif",) if "avif" in features.modules and features.check("avif") else ()),
)
MEDIA_EXTENSIONS = VIDEO_EXTENSIONS + IMAGE_EXTENSIONS

# A folder that has all names of one of these was written by this package.
OUTPUT_MARK = ".videoar_jax_output"
_RUN = {"config.json", "run.json"}
_SUITES = [{f"{suite}.json", f"{suite}.mp4"} for suite in ("generation", "reconstruction")]
_OUTPUTS = (_RUN, {"prepared.json"}, {OUTPUT_MARK}, *_SUITES)
_FOLDERS_OF_RUN = ("samples", "report")
_NUM_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Listing:
  """The files below a folder, as paths relative to it, with slashes.

  Attributes:
    media: videos and images, sorted.
    others: all other files.
  """

  media: list[str]
  others: list[str]

  def other_kinds(self) -> str:
    """Returns the most common endings of the other files, as text; "" if there are none."""
    counts = collections.Counter(posixpath.splitext(file)[1].lower() for file in self.others)
    kinds = counts.most_common(_NUM_SHOWN)
    return ", ".join(f"{count} x {ending or 'no ending'}" for ending, count in kinds)


def list_files(folder: Path) -> Listing:
  """Lists the files below a folder."""
  listing = Listing([], [])
  folders, links, seen = collections.deque([("", folder)]), collections.deque(), set()
  while folders or links:  # Links come last, so that a folder is listed under its own name.
    below, path = (folders or links).popleft()
    try:
      status = os.stat(path)
      entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
      log.warning("%s is left out: %s", printable(str(path)), error.strerror)
      continue
    if (status.st_dev, status.st_ino) in seen:
      continue
    seen.add((status.st_dev, status.st_ino))
    names = {entry.name for entry in entries}
    # A folder of data that became that of a run or of samples, too.
    left_out = set(_FOLDERS_OF_RUN) & names if names >= _RUN else set()
    if OUTPUT_MARK in names and (marked := _names_of_output(path)):
      names.remove(OUTPUT_MARK)
      left_out |= marked & names
    if below and is_output(names):
      log.warning("%s is left out: videoar_jax has written it", printable(str(path)))
      continue
    for name in sorted(left_out):
      log.warning("%s is left out: videoar_jax has written it", printable(f"{path}/{name}"))
    for entry in entries:
      if is_hidden(entry.name) or entry.name in left_out:
        continue
      match _kind(entry):
        case "folder":
          queue = links if entry.is_symlink() else folders
          queue.append((f"{below}{entry.name}/", entry.path))
        case "file":
          files = listing.media if is_media(entry.name) else listing.others
          files.append(below + entry.name)
  listing.media.sort()
  return listing


def listing_of(files: Iterable[str]) -> Listing:
  """Returns the listing of a folder that has files of these relative paths."""
  names: dict[str, set[str]] = collections.defaultdict(set)
  for file in files:
    if not is_hidden(posixpath.dirname(file)):
      names[posixpath.dirname(file)].add(posixpath.basename(file))

  @functools.cache
  def is_left_out(below: str) -> bool:
    if not below:
      return False
    above, name = posixpath.split(below)
    if is_left_out(above):
      return True
    is_of_run = name in _FOLDERS_OF_RUN and names.get(above, set()) >= _RUN
    if is_found := is_of_run or is_output(names.get(below, ())):
      log.warning("%s is left out: videoar_jax has written it", printable(below))
    return is_found

  listing = Listing([], [])
  for below in sorted(names):
    for name in sorted(names[below]) if not is_left_out(below) else ():
      if not is_hidden(name):
        files = listing.media if is_media(name) else listing.others
        files.append(posixpath.join(below, name))
  listing.media.sort()
  return listing


def find_media(folder: Path) -> list[str]:
  """Returns the videos and images below a folder, sorted, by their paths below it."""
  return list_files(folder).media


def _kind(entry: os.DirEntry) -> str:
  """Returns "folder", "file", or "" for a pipe or a device, which could block a reader."""
  try:
    if entry.is_dir():
      return "folder"
    if entry.is_file() or not os.path.exists(entry.path):
      return "file"  # A broken link is named as one when it is read.
    return ""
  except OSError:
    return "file"


def is_hidden(path: str) -> bool:
  """Returns whether a relative path is that of a hidden file, or of one in a hidden folder."""
  return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def is_media(name: str) -> bool:
  """Returns whether a name is that of a video or an image."""
  return name.lower().endswith(MEDIA_EXTENSIONS)


def is_image_name(name: str) -> bool:
  """Returns whether a name is that of an image."""
  return name.lower().endswith(IMAGE_EXTENSIONS)


def is_output(names: Iterable[str]) -> bool:
  """Returns whether a folder with files of these names was written by this package."""
  names = set(names)
  return any(marks <= names for marks in _OUTPUTS)


def mark_output(folder: Path, names: Iterable[str]) -> None:
  """Makes a folder for media that are no data.

  An empty folder is marked as a whole; in one that has files already, only the new names are.

  Args:
    folder: the folder.
    names: names of the files and folders that are about to be written there.
  """
  folder.mkdir(parents=True, exist_ok=True)
  mark = folder / OUTPUT_MARK
  if not any(folder.iterdir()):
    mark.touch()
  elif not mark.exists() or mark.stat().st_size:
    with mark.open("a", encoding="utf-8", errors="surrogateescape") as file:
      file.write("".join(f"{name}\n" for name in names))


def _names_of_output(folder: str | Path) -> set[str]:
  """Returns which names in a folder `mark_output` has listed; empty if that is the whole folder."""
  try:
    return set(Path(folder, OUTPUT_MARK).read_text("utf-8", "surrogateescape").splitlines())
  except OSError:
    return set()


def printable(name: str) -> str:
  r"""Returns a name for messages and JSON, in which bytes that are not UTF-8 look like \udce9."""
  return name.encode("utf-8", "backslashreplace").decode()


def normal(name: str) -> str:
  """Returns a relative path in one spelling: Unicode's NFC, and without "./" or "a/../"."""
  return unicodedata.normalize("NFC", posixpath.normpath(name))


class Names:
  """Finds files by names that may be spelled otherwise, such as in NFD, as macOS does.

  Args:
    files: relative paths.
  """

  def __init__(self, files: Iterable[str]):
    self._files = set(files)

  def __len__(self) -> int:
    return len(self._files)

  @functools.cached_property
  def _by_normal(self) -> dict[str, str]:
    return {normal(file): file for file in self._files}

  def find(self, name: str) -> str | None:
    """Returns the file of a name; None if there is none."""
    path = posixpath.normpath(name)
    return path if path in self._files else self._by_normal.get(normal(name))
