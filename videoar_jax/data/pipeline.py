"""From a config to batches: which clips, in which order, in which process.

Clips have one global order, which is cut into global batches; process p of n reads the p-th of n
equal parts of each batch. So batches do not depend on the number of processes, and the iterator's
state is the number of batches taken.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from videoar_jax.data.mixture import ENDLESS
from videoar_jax.data.sources.base import ClipSource, EncodedSource
from videoar_jax.data.sources.folder import FolderSource
from videoar_jax.data.sources.index import IndexSource
from videoar_jax.data.sources.shards import ShardsSource
from videoar_jax.data.sources.tfds import TfdsSource
from videoar_jax.data.synthetic.sprites import RADIUS, SPLITS, SpritesSource
from videoar_jax.data.windows import Windows

SOURCES = ("sprites", "folder", "shards", "index", "tfds")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The clips.

  Attributes:
    source: "sprites" (drawn on the fly), "folder" (videos and images), "shards" (tar or ArrayRecord
      files), "index" (a list of files, as JSON lines or Parquet) or "tfds" (a prepared TensorFlow
      dataset).
    path: the folder, the folder of shards, the index file, or the dataset's version, such as
      `DATA/ucf101/ucf101_1/2.0.0`. All but "folder" may be URLs. None for sprites.
    filter: which entries of an index to use, such as "duration >= 2 and width > height"; None for
      all.
    split_file: list of a folder's videos to train on, such as UCF-101's `trainlist01.txt`; None
      keeps a tenth of the videos for testing.
    num_frames: frames per clip.
    frame_rate: frames per second at which clips are read.
    resolution: (height, width) in pixels; frames are resized and cropped to it.
    crop_from: (height, width) at which clips are read to train a tokenizer on windows of
      `resolution`; None for whole frames.
    num_crops: windows to draw of each clip, of which the one with the most contrast is taken.
    num_objects: objects in a sprites clip: 1, 2, or (1, 2) for either.
    version: of the sprites: 1, or 2 with larger objects, whose shapes 64x64 pixels can show.
    seed: seed of the sprites, and of where in a video each clip begins.
    clips_per_file: clips per video in an epoch.
    stored_frame_rate: frames per second that a TensorFlow dataset has stored; None for what the
      dataset says, or else as many as clips have.
    cache_bytes: memory for a folder's decoded frames; a folder that needs more is decoded at every
      read.
    max_bad_share: largest allowed share of unusable samples, such as damaged files; the run stops
      when there are more. One is always allowed, unless the share is 0.
    frame_rates: rates to draw from in training, among those at which a video is long enough; () for
      `frame_rate` alone.
    is_flipped: mirror half of the training clips, left to right.
    is_randomly_cropped: train on random instead of center crops where a video's aspect ratio is not
      the resolution's.
    background: RGB colour behind the transparent pixels of files.
    p_drop_caption: share of the training captions that are replaced by the empty one.
    p_short_caption: share of the training captions that are cut to their first sentence, of samples
      that have one caption alone; of several, one is drawn as it is.
    num_threads: threads that read clips; 0 reads them in the training loop itself.
    prefetch: batches to read ahead.
  """

  source: str = "sprites"
  path: str | None = None
  filter: str | None = None
  split_file: str | None = None
  num_frames: int = 17
  frame_rate: float = 8.0
  resolution: tuple[int, int] = (64, 64)
  crop_from: tuple[int, int] | None = None
  num_crops: int = 1
  num_objects: int | tuple[int, ...] = 1
  version: int = 1
  seed: int = 0
  clips_per_file: int = 1
  stored_frame_rate: float | None = None
  cache_bytes: int = 2**30
  max_bad_share: float = 0.1
  frame_rates: tuple[float, ...] = ()
  is_flipped: bool = False
  is_randomly_cropped: bool = False
  background: tuple[int, int, int] = (255, 255, 255)
  p_drop_caption: float = 0.0
  p_short_caption: float = 0.0
  num_threads: int = 4
  prefetch: int = 4

  def __post_init__(self):
    self._check_numbers()
    object.__setattr__(self, "frame_rates", tuple(self.frame_rates))
    object.__setattr__(self, "resolution", _as_tuple("resolution", self.resolution))
    object.__setattr__(self, "background", _as_tuple("background", self.background))
    if len(self.background) != 3 or not all(0 <= value < 256 for value in self.background):
      raise ValueError(
        f"data.background is {self.background}; set it to (red, green, blue), each 0 to 255."
      )
    if not isinstance(self.num_objects, int):
      object.__setattr__(self, "num_objects", _as_tuple("num_objects", self.num_objects))
    if self.source not in SOURCES:
      raise ValueError(f"data.source is {self.source!r}; set it to one of {', '.join(SOURCES)}.")
    if self.source != "sprites" and not self.path:
      raise ValueError("data.path is not set; set it to the folder of videos, shards or index.")
    if not 0 <= self.max_bad_share <= 1:
      raise ValueError(f"data.max_bad_share is {self.max_bad_share}; set it between 0 and 1.")
    if self.source == "sprites" and self.path:
      raise ValueError(
        f"data.path is {self.path!r}, but sprites read no files; set data.source = 'folder' to "
        "read it, or leave data.path unset."
      )
    if self.filter and self.source != "index":
      raise ValueError(f"data.filter applies to an index, not to {self.source}; leave it unset.")
    if self.split_file and self.source != "folder":
      raise ValueError(
        f"data.split_file applies to a folder, not to {self.source}; leave it unset."
      )
    if self.stored_frame_rate is not None and self.source != "tfds":
      raise ValueError(
        f"data.stored_frame_rate applies to tfds, not to {self.source}; leave it unset."
      )
    for name, least in (
      ("num_frames", 1),
      ("clips_per_file", 1),
      ("cache_bytes", 0),
      ("seed", 0),
      ("num_threads", 0),
      ("prefetch", 1),
      ("num_crops", 1),
    ):
      if getattr(self, name) < least:
        raise ValueError(f"data.{name} is {getattr(self, name)}; set it to {least} or more.")
    if not all(rate > 0 for rate in self.frame_rates):
      raise ValueError(f"data.frame_rates is {self.frame_rates}; set them to more than 0.")
    shares = ("p_drop_caption", "p_short_caption")
    for name in shares:
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"data.{name} is {getattr(self, name)}; set it between 0 and 1.")
    options = ("frame_rates", "is_flipped", "is_randomly_cropped", *shares)
    used = [name for name in options if getattr(self, name)]
    if used and self.source == "sprites":
      raise ValueError(f"data.{used[0]} applies to files, not to sprites; leave it unset.")
    for name in ("frame_rate", "stored_frame_rate"):
      rate = getattr(self, name)
      if rate is not None and not rate > 0:
        raise ValueError(f"data.{name} is {rate}; set it to more than 0.")
    if len(self.resolution) != 2 or min(self.resolution) < 1:
      raise ValueError(
        f"data.resolution is {self.resolution}; set it to (height, width), both positive."
      )
    if self.crop_from is not None:
      object.__setattr__(self, "crop_from", _as_tuple("crop_from", self.crop_from))
      if len(self.crop_from) != 2 or any(
        whole < part for whole, part in zip(self.crop_from, self.resolution, strict=True)
      ):
        raise ValueError(
          f"data.crop_from is {self.crop_from}, smaller than data.resolution {self.resolution}, "
          "which is cut out of it; set a smaller resolution, or leave crop_from unset."
        )
    elif self.num_crops > 1:
      raise ValueError(
        f"data.num_crops is {self.num_crops}, but data.crop_from is not set; set it, or leave both."
      )
    objects = (self.num_objects,) if isinstance(self.num_objects, int) else self.num_objects
    if not objects or not set(objects) <= {1, 2}:
      raise ValueError(f"data.num_objects is {self.num_objects}; set it to 1, 2 or (1, 2).")
    if self.version not in RADIUS:
      raise ValueError(
        f"data.version is {self.version}; set it to {' or '.join(map(str, RADIUS))}."
      )

  def _check_numbers(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type == "int" and not (_is_number(value) and isinstance(value, numbers.Integral)):
        raise ValueError(f"data.{field.name} is {value!r}; set it to an integer.")
      is_optional = field.type == "float | None" and value is None
      if field.type in ("float", "float | None") and not (is_optional or _is_number(value)):
        raise ValueError(f"data.{field.name} is {value!r}; set it to a number.")
    rates = self.frame_rates
    if not isinstance(rates, list | tuple) or not all(map(_is_number, rates)):
      raise ValueError(f"data.frame_rates is {rates!r}; set it to a tuple of numbers.")


def _is_number(value) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _as_tuple(name: str, value) -> tuple:
  try:
    return tuple(int(item) for item in value)
  except (TypeError, ValueError) as error:
    raise ValueError(f"data.{name} is {value!r}; set it to a tuple of integers.") from error


def make_source(data: DataConfig, split: str) -> SpritesSource | ClipSource:
  """Opens the source of a config.

  Args:
    data: what to read.
    split: "train" or "test".
  Returns:
    Random access to items {video: uint8 [f, H, W, 3], caption, class_id, flow, attributes, id}.
  Raises:
    ValueError: the split is unknown, or the folder has no usable video.
  """
  if split not in SPLITS:
    raise ValueError(f"split is {split!r}; the splits are {', '.join(SPLITS)}.")
  size = data.crop_from or data.resolution
  clip = {"num_frames": data.num_frames, "resolution": size, "seed": data.seed}
  if data.source == "sprites":
    return SpritesSource(
      split,
      frame_rate=data.frame_rate,
      num_objects=data.num_objects,
      version=data.version,
      **clip,
    )
  clip |= {
    "frame_rate": data.frame_rates if split == "train" and data.frame_rates else data.frame_rate,
    "is_flipped": data.is_flipped,
    "is_randomly_cropped": data.is_randomly_cropped,
    "background": data.background,
    "p_drop_caption": data.p_drop_caption,
    "p_short_caption": data.p_short_caption,
    "clips_per_file": data.clips_per_file,
    "max_bad_share": data.max_bad_share,
  }
  if data.source == "shards":
    return ShardsSource(data.path, split, **clip)
  if data.source == "tfds":
    return TfdsSource(data.path, split, stored_frame_rate=data.stored_frame_rate, **clip)
  if data.source == "index":
    return IndexSource(data.path, split, filter=data.filter, **clip)
  assert data.source == "folder", f"make_source has no branch for {data.source!r}"
  return FolderSource(
    data.path, split, cache_bytes=data.cache_bytes, split_file=data.split_file, **clip
  )


def open_data(
  path: str | Path | None,
  source: str = "folder",
  split: str = "train",
  num_frames: int = 9,
  frame_rate: float = 8.0,
  resolution: tuple[int, int] = (64, 64),
  **fields,
) -> SpritesSource | ClipSource:
  """Opens a data set as training does.

  Args:
    path: the folder of videos, shards or a TensorFlow dataset, or the index; None for sprites.
    source: "folder", "shards", "index", "tfds" or "sprites".
    split: "train" or "test".
    num_frames, frame_rate, resolution: of a clip; resolution is (H, W).
    **fields: further fields of `DataConfig`.
  Returns:
    A source: `len(source)` clips; `source[i]` is {video: uint8 [f, H, W, 3], caption, class_id, id,
    ...}. Sources of files also have `files`, `class_names`, and `skipped`: (file, reason) of each
    sample found to be unusable so far.
  Raises:
    ValueError: a field is unknown or wrong, or there is no usable sample.
  """
  unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(DataConfig)})
  if unknown:
    known = ", ".join(field.name for field in dataclasses.fields(DataConfig))
    raise ValueError(f"{unknown[0]} is not a field of DataConfig; its fields are {known}")
  data = DataConfig(
    source=source,
    path=None if path is None else str(path),
    num_frames=num_frames,
    frame_rate=frame_rate,
    resolution=resolution,
    **fields,
  )
  return make_source(data, split)


def windows_of(data: DataConfig) -> Windows | None:
  """Returns the windows that are cut out of the clips of `make_source`; None for whole frames."""
  if data.crop_from is None:
    return None
  return Windows(data.resolution, data.num_crops, data.seed)


# Fields that affect how clips are read, but not what they contain.
READING_FIELDS = ("cache_bytes", "max_bad_share", "num_threads", "prefetch")


def make_iterator(
  source,
  *,
  batch_size: int,
  seed: int,
  tokenize: Callable[[str], np.ndarray],
  fields: tuple[str, ...] = (),
  windows: Windows | None = None,
  shuffle: bool = True,
  num_epochs: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 4,
  prefetch: int = 4,
) -> Iterator[dict]:
  """Returns an iterator over this process's shard of each global batch.

  Args:
    source: from `make_source`, or a `LatentsSource`. In epoch e, item `i + n * e` of a source of
      length n takes the place of item i, so that each epoch cuts different clips from a video.
    batch_size: clips in a global batch.
    seed: seed of the shuffling; each epoch has its own order.
    tokenize: maps a caption to an array of fixed shape, see `CutCaptions.fit`. If it raises
      ValueError, another sample takes the place of this one.
    fields: further fields of items to put into batches, beside clips, texts and ids, such as
      "class_id".
    windows: to cut out of clips; None for whole frames.
    shuffle: visit an epoch's items in random order. Sprites are independent without it.
    num_epochs: None for endless; else an incomplete last batch is dropped.
    process_index, process_count: this process, and the number of processes.
    num_threads: threads that make batches; 0 makes them on demand in the caller's thread.
    prefetch: batches to make ahead, if there are threads.
  Returns:
    Iterator over {video: uint8 [b, f, H, W, 3], text: int32 [b, P], id: int64 [b]} and `fields`,
    b = batch_size / process_count; a source of latents gives latents: [b, t, h, w, d] in
    place of video. `get_state` and `set_state` use a small JSON dict; after a restore, the same
    batches follow as without it. `close` ends the threads.
  Raises:
    ValueError: the processes do not divide the batch, or there is no full batch.
  """
  import grain  # Imported late: it takes half a second, and only training reads batches.

  if batch_size % process_count:
    raise ValueError(
      f"batch_size is {batch_size}, which does not divide over {process_count} processes; set it "
      f"to a multiple of {process_count}."
    )
  if isinstance(source, ClipSource):
    source.bad_samples.num_parts = process_count
  length, encoded = len(source), EncodedSource(source, tokenize, windows)
  dataset = grain.MapDataset.range(length)
  dataset = dataset.shuffle(seed % 2**32) if shuffle else dataset
  dataset = dataset.repeat(num_epochs)
  num_batches = min(len(dataset) // batch_size, ENDLESS)
  if num_batches == 0:
    raise ValueError(
      f"There are {len(dataset)} clips, fewer than one batch of {batch_size}; set a smaller "
      "batch_size or more epochs."
    )

  def read(position: int, index: int) -> dict:
    item = encoded[index + position // length * length]
    clip = "latents" if "latents" in item else "video"
    return {
      clip: item[clip],
      "text": item["text"],
      "id": np.int64(item["id"]),
      **{name: np.asarray(item[name]) for name in fields},
    }

  dataset = dataset[: num_batches * batch_size].map_with_index(read)
  # Local batches in global order: the p-th of every process_count belongs to process p.
  dataset = dataset.batch(batch_size // process_count)[process_index::process_count]
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0
  )
  return iter(dataset.to_iter_dataset(options))
