"""Samples in tar files, in WebDataset's format, with random access.

Members of the same name but for the ending are one sample: the media (mp4, jpg and so on), and the
caption in `.txt`, or in `.json` as {"caption": "...", "class_id": 3}; a blank `.txt` counts as
missing. Only known endings end a name, so that it may have dots. The offsets of the members are
stored once, in `NAME.tar.index.json` beside the file.

Of a tar file that is cut off or damaged, the samples before the damage are used, with a warning.
"""

import collections
import contextlib
import json
import logging
import mimetypes
import posixpath
import tarfile
from pathlib import Path

from videoar_jax.data.sources.captions import clean_text, decoded, parse_json
from videoar_jax.data.sources.media_files import MEDIA_EXTENSIONS, is_hidden, normal
from videoar_jax.interop.atomic import write_text
from videoar_jax.interop.strict_json import to_json

log = logging.getLogger(__name__)

_MEDIA = tuple(ending.removeprefix(".") for ending in MEDIA_EXTENSIONS)
_ENDINGS = (*_MEDIA, "txt", "json")
_FORMAT = 3  # Of the stored index.

Parts = dict[str, list[int]]  # [offset, size] of a sample's members, by ending.


class TarShard:
  """Random access to the samples of a tar file, by seeking.

  Raises:
    ValueError: the file is not a tar file, or has no whole sample.
  """

  def __init__(self, path: Path):
    self.path = path
    index = _index_of(path)
    damage, unused = index["damage"], index["unused"]
    samples = {key: parts for key, parts in index["samples"].items() if set(parts) & set(_MEDIA)}
    # Members without media are not samples, but files such as a README.
    self.keys, self._samples = list(samples), list(samples.values())
    self.videos = [f"{path.name}/{key}" for key in self.keys]
    if not self.keys and damage:
      raise ValueError(f"{path} is not a complete tar file ({damage}); create it again")
    if not self.keys:
      raise ValueError(
        f"{path} has no sample; its members should be named as in 0001.mp4, 0001.txt"
      )
    if damage:
      log.warning(
        "%s is not complete (%s): only the samples before the damage are used; create it again",
        *(path, damage),
      )
    if unused:
      counts = ", ".join(f"{count} x {ending}" for ending, count in unused.items())
      log.warning("%s has media that belong to no sample: %s", path, counts)

  def read(self, position: int) -> tuple[dict, bytes]:
    """Returns a sample's metadata and media file.

    Raises:
      ValueError: a member is cut off, or its JSON is damaged.
    """
    parts = self._samples[position]
    with self.path.open("rb") as file:

      def part(name: str) -> bytes:
        offset, size = parts[name]
        file.seek(offset)
        data = file.read(size)
        if len(data) < size:
          raise ValueError("cut off")
        return data

      facts = {}
      if "json" in parts:
        try:
          facts = dict(parse_json(part("json")))
        except (TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
          raise ValueError(f"its JSON is damaged ({type(error).__name__})") from error
      text = clean_text(decoded(part("txt"))) if "txt" in parts else ""
      if text:
        facts |= {"caption": text, "captions": None}
      return facts, part(next(name for name in _MEDIA if name in parts))


def _index_of(path: Path) -> dict:
  """Returns what `_scan` has found, now or earlier."""
  status = path.stat()
  stamp = [_FORMAT, status.st_size, status.st_mtime_ns, list(_ENDINGS)]
  saved = path.with_name(path.name + ".index.json")
  try:
    values = json.loads(saved.read_text())
    if values["stamp"] == stamp and {"samples", "unused", "damage"} <= values.keys():
      return values
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
    pass  # The index is missing or damaged.
  values = {"stamp": stamp} | _scan(path)
  # In a read-only folder, the next run has to scan the tar file again.
  with contextlib.suppress(OSError):
    write_text(saved, to_json(values))
  return values


def _scan(path: Path) -> dict:
  """Returns the parts of each sample, the endings of unused media, and what is damaged, if any."""
  samples: dict[str, Parts] = {}
  names: dict[str, str] = {}  # A sample has the name of its first member, however that is spelled.
  unused, damage, last = collections.Counter(), None, None
  size = path.stat().st_size
  try:
    with tarfile.open(path, "r:") as tar:
      for member in tar:
        if not member.isfile() or is_hidden(member.name):
          continue
        key, ending = _split_name(member.name)
        key = names.setdefault(normal(key), key)
        if member.offset_data + member.size > size:
          damage, last = "it is cut off", key
          break
        if ending in _ENDINGS:
          last = key
          samples.setdefault(key, {})[ending] = [member.offset_data, member.size]
        elif _is_like_media(member.name):
          unused[f".{ending}"] += 1
      damage = damage or _damage_at(path, tar.offset)
  except MemoryError:
    raise
  except Exception as error:  # Damaged headers raise more than tarfile's own exceptions.
    damage = str(error) or type(error).__name__
  if damage and last is not None:
    samples.pop(last, None)  # Some of its members may be missing.
  for parts in samples.values():
    unused.update(f".{ending}" for ending in [name for name in _MEDIA if name in parts][1:])
  return {"samples": samples, "unused": unused, "damage": damage}


def _damage_at(path: Path, offset: int) -> str | None:
  """Returns what is wrong if a tar file goes on where `tarfile` has found its end."""
  with path.open("rb") as file:
    file.seek(offset)
    return "a header is damaged" if file.read(tarfile.BLOCKSIZE).strip(b"\0") else None


def _split_name(name: str) -> tuple[str, str]:
  """Returns the name without its last ending, and that ending in lower case."""
  key, ending = posixpath.splitext(name)
  return key, ending.removeprefix(".").lower()


def _is_like_media(name: str) -> bool:
  kind = mimetypes.guess_type(posixpath.basename(name))[0] or ""
  return kind.startswith(("video/", "image/"))
