"""Clips from a folder of video files and images."""

import dataclasses
import functools
import logging
import posixpath
import threading
import unicodedata
import weakref
from pathlib import Path
from typing import Self

import numpy as np

from videoar_jax.data.bad_samples import BadSamples, count_causes
from videoar_jax.data.media import clips
from videoar_jax.data.sources import remote, splits
from videoar_jax.data.sources.base import ClipParams, ClipSource, Sample
from videoar_jax.data.sources.captions import read_captions
from videoar_jax.data.sources.media_files import (
  IMAGE_EXTENSIONS,
  VIDEO_EXTENSIONS,
  Listing,
  find_media,
  is_image_name,
  list_files,
)
from videoar_jax.data.sources.motion import UNKNOWN, read_flows
from videoar_jax.data.sources.probes import probe_files

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Video:
  """A usable file; `file` is its path relative to the folder."""

  file: str
  info: clips.VideoInfo
  captions: list[str]
  class_id: int
  flow: float


class _Budget:
  """Cache memory, in bytes, that is shared by the sources of a folder, one per clip shape."""

  def __init__(self, num_bytes: int):
    self._num_bytes, self._lock = num_bytes, threading.Lock()
    self._holders = weakref.WeakKeyDictionary()  # Bytes of each source, as long as it is in use.

  def take(self, holder, num_bytes: int) -> bool:
    """Reserves bytes for a source, if enough are left; returns whether they were."""
    with self._lock:
      is_given = sum(self._holders.values()) + num_bytes <= self._num_bytes
      if is_given:
        self._holders[holder] = num_bytes
      return is_given


class FolderSource(ClipSource):
  """Random access to clips of the videos below a folder; images are clips of one frame.

  Captions come from lists or from text files, see `captions.read_captions`. A file for which there
  is none has the name of its own folder as caption. That name is also its class. A line of
  `captions.jsonl` may also say how much moves, see `motion.py`.

  Args:
    path: the folder.
    split: "train" or "test"; a tenth of the videos is for testing, if there are at least 20.
    split_file: UCF-101's `trainlist01.txt`, or a list like it, which defines the splits and the
      classes instead; see `splits.read_official_split`.
    cache_bytes: keep all decoded frames in memory if they fit in this many bytes, over all clip
      shapes.
    max_bad_share: largest allowed share of unusable files.
    **clip: see `ClipSource`.

  Attributes:
    files: the videos in use, as paths relative to the folder.
    class_names: sorted; an item's class_id is an index into them.
    skipped: (file, reason) of each video found to be unusable so far.
    has_test_split: False if the folder is too small, or no test video can be used; then both splits
      have all other videos.

  Raises:
    ValueError: the folder has no usable video, too many that cannot be used, or a list of captions
      is wrong.
  """

  def __init__(
    self,
    path: str | Path,
    split: str,
    *,
    cache_bytes: int = 2**30,
    split_file: str | None = None,
    max_bad_share: float = 1.0,
    **clip,
  ):
    if remote.is_url(path):
      raise ValueError(
        f"data.path is {str(path)!r}, but data.source='folder' reads local folders; use 'shards' "
        "or 'index', which read URLs."
      )
    self.path = Path(path).expanduser()
    if not self.path.is_dir():
      raise ValueError(f"data.path is {str(self.path)!r}, which is not a folder.")
    listing = list_files(self.path)
    # Split all files, usable or not: which are usable depends on the clip length, and the split
    # must not.
    parts, classes = splits.parts_by_hash(listing.media), None
    files = listing.media
    if split_file:
      official = splits.read_official_split(split_file, listing.media)
      parts, classes = official.files, official.class_names
      files = official.files["train"] + official.files["test"]
    if clip["num_frames"] > 1:
      # Images beside videos are not bad samples; they are just not clips of several frames.
      files = [file for file in files if not is_image_name(file)]
    super().__init__(
      [], split, bad_samples=BadSamples(str(self.path), len(files), max_bad_share), **clip
    )
    names = folder_names(self.path, listing.media)
    self.class_names = classes or sorted(set(names.values()))
    usable, bad = self._open_files(files, read_captions(self.path, listing), names)
    if not usable:
      raise ValueError(self._no_video(listing, [cause for _, cause in bad]))
    self._list_bad(bad)
    self.files, self.has_test_split = splits.choose(parts, {file: file for file in usable}, split)
    self._videos = [usable[file] for file in self.files]
    self._budget = _Budget(cache_bytes)
    self._begin_cache()

  def reshaped(self, num_frames: int, resolution: tuple[int, int]) -> Self:
    """Returns the same videos as clips of another shape, which share the cache memory."""
    other = super().reshaped(num_frames, resolution)
    other._begin_cache()
    return other

  def aspect_ratios(self) -> list[float]:
    """Returns height / width of each video, in the order of `files`."""
    return [video.info.aspect_ratio for video in self._videos]

  def _begin_cache(self) -> None:
    # None until the first clip is read: some sources are only opened to be reshaped.
    self._is_cached: bool | None = None
    self._lock = threading.Lock()
    self._cache: dict[str, clips.DecodedVideo] = {}
    self._cache_locks: dict[str, threading.Lock] = {}

  @property
  def is_cached(self) -> bool:
    """Whether decoded frames are kept."""
    with self._lock:
      if self._is_cached is None:
        num_frames = sum(video.info.num_frames for video in self._videos)
        size = num_frames * 3 * int(np.prod(self.resolution))
        self._is_cached = not self.is_randomly_cropped and self._budget.take(self, size)
      return self._is_cached

  def _known_captions(self, position: int) -> list[str]:
    return self._videos[position].captions

  def _known_flow(self, position: int) -> float:
    return self._videos[position].flow

  def _file_of(self, position: int) -> str:
    return str(self.path / self.files[position])

  def _find(self, position: int) -> Sample:
    video = self._videos[position]
    read = functools.partial(self._frames, video)
    return Sample(video.captions, video.class_id, read, video.flow)

  def _frames(self, video: _Video, params: ClipParams) -> np.ndarray:
    path = self.path / video.file
    start_s, rate = self._place(video.info.last_s, params)
    if not self.is_cached:
      size = self.num_frames, rate, self.resolution
      return clips.read_clip(path, start_s, *size, params.crop, self.background)
    with self._lock:
      lock = self._cache_locks.setdefault(video.file, threading.Lock())
    with lock:
      if video.file not in self._cache:
        self._cache[video.file] = clips.decode_video(
          path, self.resolution, background=self.background
        )
    return clips.clip_of(self._cache[video.file], start_s, self.num_frames, rate)

  def _open_files(
    self, files: list[str], captions: dict[str, list[str]], names: dict[str, str]
  ) -> tuple[dict[str, _Video], list[tuple[str, str]]]:
    """Probes the files; returns the usable ones, and (file, reason) of each other one."""
    numbers = {name: number for number, name in enumerate(self.class_names)}
    flows = read_flows(self.path, files)
    self.bad_samples.num_reads += len(files)
    usable, bad = {}, []
    for file, found in zip(files, probe_files(self.path, files), strict=True):
      variants = captions.get(file, [names[file]])
      if isinstance(found, str):
        bad.append((file, found))
      elif found.last_s < self.span_s - 1e-3:
        bad.append((file, self._too_short()))
      elif not variants:
        bad.append((file, "no caption"))
      else:
        number, flow = numbers[names[file]], flows.get(file, UNKNOWN)
        usable[file] = _Video(file, found, variants, number, flow)
    return usable, bad

  def _list_bad(self, bad: list[tuple[str, str]]) -> None:
    """Raises ValueError if too many files are bad."""
    if bad:
      self.bad_samples.add_all(bad)
      log.warning(
        "%s: %d of %d videos are skipped: %s",
        *(self.path, len(bad), self.bad_samples.num_samples, self.bad_samples.causes()),
      )

  def _no_video(self, listing: Listing, causes: list[str]) -> str:
    found = f"{len(causes)} videos were found" if causes else "no video was found"
    reasons = f", and none can be used: {count_causes(causes)}" if causes else ""
    images = sum(map(is_image_name, listing.media))
    if images and self.num_frames > 1:
      reasons += f"; {images} images are there, which are clips of one frame: set num_frames=1"
    if listing.others and not causes:
      reasons += f"; other files are there: {listing.other_kinds()}"
    extensions = VIDEO_EXTENSIONS + (IMAGE_EXTENSIONS if self.num_frames == 1 else ())
    return (
      f"There is no usable video in {str(self.path)!r}: looking for {', '.join(extensions)} in it "
      f"and its subfolders, {found}{reasons}."
    )


def describe_files(folder: Path) -> list[tuple[str, dict]]:
  """Returns each video and image below a folder, with its `captions`, `class_id` and any `flow`.

  Raises:
    ValueError: a list of captions is wrong.
  """
  listing = list_files(folder)
  files = describe(folder, listing.media, read_captions(folder, listing))
  flows = read_flows(folder, listing.media)
  return [(file, facts | ({"flow": flows[file]} if file in flows else {})) for file, facts in files]


def describe(
  folder: Path, files: list[str], captions: dict[str, list[str]]
) -> list[tuple[str, dict]]:
  """Returns each file with its `captions`, otherwise its folder's name, and its `class_id`."""
  names = folder_names(folder, files)
  numbers = {name: number for number, name in enumerate(sorted(set(names.values())))}
  return [
    (file, {"captions": captions.get(file, [names[file]]), "class_id": numbers[names[file]]})
    for file in files
  ]


def class_names(folder: Path, split_file: str | None) -> list[str]:
  """Returns the classes of a `FolderSource` without opening its files.

  Raises:
    ValueError: a list of the official split is missing or wrong.
  """
  found = find_media(folder)
  if split_file:
    return splits.read_official_split(split_file, found).class_names
  return sorted(set(folder_names(folder, found).values()))


def folder_names(folder: Path, files: list[str]) -> dict[str, str]:
  """Returns the name of each file's own folder, its class; "?" stands for bytes beyond UTF-8."""

  @functools.cache
  def name_of(parent: str) -> str:
    name = posixpath.basename(parent) or folder.resolve().name
    return unicodedata.normalize("NFC", name).encode("utf-8", "replace").decode()

  return {file: name_of(posixpath.dirname(file)) for file in files}
