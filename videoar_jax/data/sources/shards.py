"""Encoded videos and images in shards: tar files as in WebDataset, or ArrayRecord files.

In a tar file, see `tar.py`, a sample is a media file and the members of the same name: its caption
in `.txt`, or in `.json` as {"caption": "...", "class_id": 3}; also a `flow`, see `motion.py`.

In an ArrayRecord file, a sample is a record as in `records.py`: {"caption": "...", "class_id": 3},
then the bytes of the media file. Beside files from `prepare.py` is a .json file with the samples'
names, FILE#CLIP, which keeps all clips of a video in the same split.
"""

import io
from pathlib import Path
from typing import Protocol, runtime_checkable

from videoar_jax.data.bad_samples import BadSamples
from videoar_jax.data.sources import records, remote, splits
from videoar_jax.data.sources.base import ClipParams, ClipSource, Sample
from videoar_jax.data.sources.captions import captions_of, class_id_of, parse_json
from videoar_jax.data.sources.media_files import is_hidden
from videoar_jax.data.sources.motion import flow_of
from videoar_jax.data.sources.tar import TarShard

PREPARED = "prepared.json"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def prepared_name(shard: int, num_shards: int) -> str:
  """Returns the file name of a shard that `prepare.py` makes."""
  return f"clips-{shard:05d}-of-{num_shards:05d}{records.SUFFIX}"


def clip_name(sample: str, file: str, number: int) -> str:
  """Returns the name of a prepared clip, FILE#CLIP, or FILE#START-END.CLIP for a segment's.

  Args:
    sample: name of the sample, from `index.sample_name`.
    file: path of its file.
    number: number of the clip.
  """
  segment = sample.removeprefix(file)
  return f"{file}{segment}.{number}" if segment else f"{file}#{number}"


@runtime_checkable
class Shard(Protocol):
  """A file of samples, and the name of the video that each belongs to."""

  keys: list[str]
  videos: list[str]

  def read(self, position: int) -> tuple[dict, bytes]:
    """Returns a sample's metadata and media file; raises ValueError if it cannot be read."""


class RecordShard:
  """Random access to the samples of an ArrayRecord file.

  Raises:
    ValueError: the file is damaged.
  """

  def __init__(self, path: Path):
    self._records = records.open_shards([path])
    self.keys = [str(position) for position in range(len(self._records))]
    self.videos = [f"{path.name}/{key}" for key in self.keys]
    note = path.with_suffix(".json")
    if note.is_file():
      facts = _read_note(note)
      self.keys, self.aspect_ratios = facts["keys"], facts["aspect_ratios"]
      self.videos = [key.rpartition("#")[0] for key in self.keys]
      if len(self.keys) != len(self._records):
        raise ValueError(
          f"{path} has {len(self._records)} samples, but {note.name} names {len(self.keys)}; "
          "prepare them again"
        )

  def read(self, position: int) -> tuple[dict, bytes]:
    """Returns a sample's metadata and media file.

    Raises:
      ValueError: the record is damaged.
    """
    try:
      return records.unpack(self._records[position])
    except RuntimeError as error:  # Raised by Riegeli for damaged data.
      raise ValueError("the record is damaged") from error


def _read_note(path: Path) -> dict:
  """Returns what `prepare.py` has noted of a shard.

  Raises:
    ValueError: the note is damaged.
  """
  try:
    facts = parse_json(path.read_bytes())
    keys, ratios = facts["keys"], [float(ratio) for ratio in facts["aspect_ratios"]]
    if not all(isinstance(key, str) for key in keys) or len(keys) != len(ratios):
      raise TypeError("keys and aspect_ratios do not fit")
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is damaged ({error!r}); prepare the shards again") from error
  return facts | {"aspect_ratios": ratios}


def open_shards(path: Path) -> dict[str, Shard]:
  """Returns the shards of a folder by file name.

  Raises:
    ValueError: there are no shards, or one is damaged.
  """
  if not path.is_dir():
    raise ValueError(f"data.path is {str(path)!r}, which is not a folder.")
  kinds = {".tar": TarShard, records.SUFFIX: RecordShard}
  _check_is_whole(path)
  found = (file for file in path.iterdir() if not is_hidden(file.name))
  files = sorted(file for file in found if file.suffix in kinds)
  if not files:
    message = f"There are no shards in {str(path)!r}: no file ends in {' or '.join(kinds)}."
    packed = sorted(file.name for file in path.iterdir() if file.name.endswith(_COMPRESSED))
    if packed:
      message += f" {packed[0]} is compressed, which cannot be read at random places; unpack it."
    raise ValueError(message)
  return {file.name: kinds[file.suffix](file) for file in files}


def _check_is_whole(folder: Path) -> None:
  """Raises ValueError if `prepare.py` has not finished a folder."""
  if not (folder / PREPARED).is_file():
    return
  try:
    num_shards = int(parse_json((folder / PREPARED).read_bytes())["num_shards"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{folder / PREPARED} is damaged ({error!r}); prepare it again") from error
  paths = [folder / prepared_name(shard, num_shards) for shard in range(num_shards)]
  missing = [path for path in paths if not _is_whole(path)]
  if missing:
    raise ValueError(
      f"{folder} lacks {len(missing)} of {num_shards} shards, such as {missing[0].name}; run the "
      "same `python -m videoar_jax.prepare` command again to make them"
    )


def _is_whole(path: Path) -> bool:
  note = path.with_suffix(".json")
  return note.is_file() and (path.is_file() or not _read_note(note)["keys"])


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
    videos = {
      f"{name}/{key}": video
      for name, shard in self._shards.items()
      for key, video in zip(shard.keys, shard.videos, strict=True)
    }
    parts = splits.parts_by_hash(list(dict.fromkeys(videos.values())))
    files, self.has_test_split = splits.choose(parts, videos, split)
    bad_samples = BadSamples(str(path), len(videos), max_bad_share)
    super().__init__(files, split, bad_samples=bad_samples, **clip)

  def _file_of(self, position: int) -> str:
    return str(self.path / self._places[self.files[position]][0])

  def aspect_ratios(self) -> list[float]:
    """Returns height / width of each sample, in the order of `files`.

    Raises:
      ValueError: a shard is not one of `prepare.py`, which alone know them.
    """
    ratios = []
    for file in self.files:
      name, position = self._places[file]
      known = getattr(self._shards[name], "aspect_ratios", ())
      if not known:
        return super().aspect_ratios()
      ratios.append(known[position])
    return ratios

  def _find(self, position: int) -> Sample:
    shard, place = self._places[self.files[position]]
    facts, data = self._shards[shard].read(place)

    def read(params: ClipParams):
      return self._clip(lambda: io.BytesIO(data), params)

    return Sample(captions_of(facts), class_id_of(facts), read, flow_of(facts))
