"""Encoded videos and images in shards: tar files as in WebDataset, or ArrayRecord files.

In a tar file, members that share their name up to the first dot are one sample: the media (mp4, jpg
and so on), and the caption in `.txt`, or in `.json` as {"caption": "...", "class_id": 3}. The
offsets of the members are stored once, in `NAME.tar.index.json` beside the file.

In an ArrayRecord file, a sample is a record as in `records.py`: {"caption": "...", "class_id": 3},
then the bytes of the media file. Beside files from `prepare.py` is a .json file with the samples'
names, which keeps all clips of a video in the same split.
"""

import contextlib
import io
import json
import tarfile
from pathlib import Path
from typing import Protocol, runtime_checkable

from videoar_jax.data.bad_samples import BadSamples
from videoar_jax.data.sources import records, remote, splits
from videoar_jax.data.sources.base import ClipParams, ClipSource
from videoar_jax.data.sources.folder import EXTENSIONS, IMAGE_EXTENSIONS, MIN_FILES_TO_SPLIT
from videoar_jax.interop.atomic import write_text

_MEDIA = tuple(suffix.removeprefix(".") for suffix in EXTENSIONS + IMAGE_EXTENSIONS)
PREPARED = "prepared.json"


def prepared_name(shard: int, num_shards: int) -> str:
  """Returns the file name of a shard that `prepare.py` makes."""
  return f"clips-{shard:05d}-of-{num_shards:05d}{records.SUFFIX}"


@runtime_checkable
class Shard(Protocol):
  """A file of samples."""

  keys: list[str]

  def read(self, position: int) -> tuple[dict, bytes]:
    """Returns a sample's metadata and media file; raises ValueError if it cannot be read."""


class TarShard:
  """Random access to the samples of a tar file, by seeking.

  Raises:
    ValueError: the file is not a tar file, is truncated, or has no media.
  """

  def __init__(self, path: Path):
    self.path = path
    members = _tar_index(path)
    # Members without media are not samples, but files such as a README.
    self._samples = [parts for parts in members.values() if set(parts) & set(_MEDIA)]
    self.keys = [key for key, parts in members.items() if set(parts) & set(_MEDIA)]
    if not self.keys:
      raise ValueError(
        f"{path} has no sample; its members should be named as in 0001.mp4, 0001.txt"
      )

  def read(self, position: int) -> tuple[dict, bytes]:
    """Returns a sample's metadata and media file."""
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
          facts = dict(json.loads(part("json")))
        except (TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
          raise ValueError(f"its JSON is damaged ({type(error).__name__})") from error
      if "txt" in parts:
        facts["caption"] = part("txt").decode(errors="replace").strip()
      return facts, part(next(name for name in _MEDIA if name in parts))


def _tar_index(path: Path) -> dict[str, dict[str, list[int]]]:
  """Returns [offset, size] of each member, by sample and extension."""
  status = path.stat()
  stamp = [status.st_size, status.st_mtime_ns]
  saved = path.with_name(path.name + ".index.json")
  try:
    values = json.loads(saved.read_text())
    if values["stamp"] == stamp:
      return values["samples"]
  except (OSError, ValueError, KeyError, TypeError):
    pass  # The index is missing or damaged.
  samples: dict[str, dict[str, list[int]]] = {}
  try:
    with tarfile.open(path, "r:") as tar:
      for member in tar:
        if member.isfile():
          folder, _, name = member.name.rpartition("/")
          key, _, extension = name.partition(".")
          parts = samples.setdefault(f"{folder}/{key}" if folder else key, {})
          parts[extension.lower()] = [member.offset_data, member.size]
  except (tarfile.TarError, OSError) as error:
    raise ValueError(f"{path} is not a complete tar file ({error}); create it again") from error
  # In a read-only folder, the next run has to scan the tar file again.
  with contextlib.suppress(OSError):
    write_text(saved, json.dumps({"stamp": stamp, "samples": samples}))
  return samples


class RecordShard:
  """Random access to the samples of an ArrayRecord file.

  Raises:
    ValueError: the file is damaged.
  """

  def __init__(self, path: Path):
    self._records = records.open_shards([path])
    self.keys = [str(position) for position in range(len(self._records))]
    note = path.with_suffix(".json")
    if note.is_file():
      facts = json.loads(note.read_text())
      self.keys, self.aspect_ratios = facts["keys"], facts["aspect_ratios"]
      if len(self.keys) != len(self._records):
        raise ValueError(
          f"{path} has {len(self._records)} samples, but {note.name} names {len(self.keys)}; "
          "prepare them again"
        )

  def read(self, position: int) -> tuple[dict, bytes]:
    """Returns a sample's metadata and media file."""
    try:
      return records.unpack(self._records[position])
    except RuntimeError as error:  # Raised by Riegeli for damaged data.
      raise ValueError("the record is damaged") from error


def open_shards(path: Path) -> dict[str, Shard]:
  """Returns the shards of a folder by file name.

  Raises:
    ValueError: there are no shards, or one is damaged.
  """
  if not path.is_dir():
    raise ValueError(f"data.path is {str(path)!r}, which is not a folder.")
  kinds = {".tar": TarShard, records.SUFFIX: RecordShard}
  _check_is_whole(path)
  files = sorted(file for file in path.iterdir() if file.suffix in kinds)
  if not files:
    raise ValueError(f"There are no shards in {str(path)!r}: no file ends in {' or '.join(kinds)}.")
  return {file.name: kinds[file.suffix](file) for file in files}


def _check_is_whole(folder: Path) -> None:
  """Raises ValueError if `prepare.py` has not finished a folder."""
  if not (folder / PREPARED).is_file():
    return
  num_shards = json.loads((folder / PREPARED).read_text())["num_shards"]
  paths = [folder / prepared_name(shard, num_shards) for shard in range(num_shards)]
  missing = [path for path in paths if not _is_whole(path)]
  if missing:
    raise ValueError(
      f"{folder} lacks {len(missing)} of {num_shards} shards, such as {missing[0].name}; run the "
      "same `python -m videoar_jax.prepare` command again to make them"
    )


def _is_whole(path: Path) -> bool:
  note = path.with_suffix(".json")
  return note.is_file() and (path.is_file() or not json.loads(note.read_text())["keys"])


def _video_of(file: str) -> str:
  """Returns the name of a prepared clip's video; for any other sample, its own name."""
  video = file.rpartition("#")[0]
  return video.partition("/")[2] if video else file


class ShardsSource(ClipSource):
  """Random access to clips of the samples in a folder's shards.

  A sample without a caption, or whose video is too short, is replaced like a damaged one. Captions
  are checked as they are read, because checking them all first would mean reading all the data.

  Args:
    path: the folder, or a URL whose shards are copied once.
    split: "train" or "test"; a tenth of the videos is for testing, if there are at least 20.
    max_bad_share: largest allowed share of unusable samples.
    **clip: see `ClipSource`.

  Attributes:
    files: the samples in use, as SHARD/KEY.
    has_test_split: False if there are too few videos; then both splits have all of them.

  Raises:
    ValueError: there are no shards, or one is damaged.
  """

  def __init__(self, path: str | Path, split: str, *, max_bad_share: float = 1.0, **clip):
    self.path = remote.local_folder(path, (".tar", records.SUFFIX, ".json"))
    self._shards = open_shards(self.path)
    self._places = {
      f"{name}/{key}": (name, position)
      for name, shard in self._shards.items()
      for position, key in enumerate(shard.keys)
    }
    keys = files = list(self._places)
    videos = list(dict.fromkeys(map(_video_of, keys)))
    self.has_test_split = len(videos) >= MIN_FILES_TO_SPLIT
    if self.has_test_split:
      chosen = set(splits.split_by_hash(videos, split))
      files = [key for key in keys if _video_of(key) in chosen]
    bad_samples = BadSamples(str(path), len(keys), max_bad_share)
    super().__init__(files, split, bad_samples=bad_samples, **clip)

  def longest_captions(self) -> list[str]:
    """Returns an empty list: captions are checked as they are read."""
    return []

  def aspect_ratios(self) -> list[float]:
    """Returns height / width of each sample, in the order of `files`; for prepared shards only."""
    ratios = []
    for file in self.files:
      name, position = self._places[file]
      known = getattr(self._shards[name], "aspect_ratios", ())
      if not known:
        return super().aspect_ratios()
      ratios.append(known[position])
    return ratios

  def _read(self, position: int, params: ClipParams) -> dict:
    shard, place = self._places[self.files[position]]
    facts, data = self._shards[shard].read(place)
    return self._item(lambda: io.BytesIO(data), facts, params)
