"""Clips from a folder of video files and images."""

import dataclasses
import json
import logging
import posixpath
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np

from videoar_jax.data.bad_samples import BadSamples
from videoar_jax.data.media import clips
from videoar_jax.data.sources import remote, splits
from videoar_jax.data.sources.base import ClipParams, ClipSource, choose

log = logging.getLogger(__name__)

EXTENSIONS = (".mp4", ".webm", ".mov", ".mkv", ".avi")
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
CAPTIONS = "captions.jsonl"
MIN_FILES_TO_SPLIT = 20
_PROBE_THREADS = 4


@dataclasses.dataclass(frozen=True)
class _Video:
  """A usable file; `file` is its path relative to the folder."""

  file: str
  info: clips.VideoInfo
  captions: list[str]
  class_id: int


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

  Captions come from `captions.jsonl` in the folder, with a line `{"file": "a/b.mp4", "caption":
  "..."}` per file; with `"captions": ["...", "..."]`, each clip draws one. A file without a line
  has the name of its own folder as caption. That name is also its class.

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
    has_test_split: False if the folder is too small; then both splits have all of its videos.

  Raises:
    ValueError: the folder has no usable video, or `captions.jsonl` is wrong.
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
    self._find_files(split_file)
    bad_samples = BadSamples(str(self.path), len(self._found), max_bad_share)
    super().__init__([], split, bad_samples=bad_samples, **clip)
    usable = self._open_folder()
    # Split all files, usable or not: which are usable depends on the clip length, and the split
    # must not.
    names = self._official.files[split] if split_file else splits.split_by_hash(self._found, split)
    chosen = [file for file in names if file in usable]
    self.has_test_split = bool(split_file) or (
      len(self._found) >= MIN_FILES_TO_SPLIT and bool(chosen)
    )
    if not self.has_test_split:
      chosen = list(usable)
    if not chosen:
      raise ValueError(f"{split_file}: no video of the split {split!r} can be used; see the log")
    self._videos = [usable[file] for file in chosen]
    self.files = chosen
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
    self._cache_locks = {file: threading.Lock() for file in self.files}

  @property
  def is_cached(self) -> bool:
    """Whether decoded frames are kept."""
    with self._lock:
      if self._is_cached is None:
        num_frames = sum(video.info.num_frames for video in self._videos)
        size = num_frames * 3 * int(np.prod(self.resolution))
        self._is_cached = not self.is_randomly_cropped and self._budget.take(self, size)
      return self._is_cached

  def longest_captions(self) -> list[str]:
    """Returns every caption, to check that they fit the prompt's length."""
    return [caption for video in self._videos for caption in video.captions]

  def _read(self, position: int, params: ClipParams) -> dict:
    video = self._videos[position]
    return {
      "video": self._frames(video, params),
      "caption": choose(video.captions, params.caption or 0.0),
      "class_id": video.class_id,
    }

  def _frames(self, video: _Video, params: ClipParams) -> np.ndarray:
    path = self.path / video.file
    start_s, rate = self._place(video.info.last_s, params)
    if not self.is_cached:
      return clips.read_clip(path, start_s, self.num_frames, rate, self.resolution, params.crop)
    with self._cache_locks[video.file]:
      if video.file not in self._cache:
        self._cache[video.file] = clips.decode_video(path, self.resolution)
    return clips.clip_of(self._cache[video.file], start_s, self.num_frames, rate)

  def _find_files(self, split_file: str | None) -> None:
    """Finds the files; with an official split, only those in its lists."""
    if not self.path.is_dir():
      raise ValueError(f"data.path is {str(self.path)!r}, which is not a folder.")
    self._found = find_media(self.path)
    self._official, self._below = None, set(self._found)
    if split_file:
      self._official = splits.read_official_split(split_file, self._found)
      self._found = sorted(file for files in self._official.files.values() for file in files)

  def _open_folder(self) -> dict[str, _Video]:
    """Probes the files; returns the usable ones."""
    files = self._found
    captions = read_captions(self.path / CAPTIONS, self._below)
    folder_names = {file: folder_name(self.path, file) for file in files}
    self.class_names = sorted(set(folder_names.values()))
    if self._official is not None:
      self.class_names = self._official.class_names
    if self.num_frames > 1:
      # Images beside videos are not bad samples; they are just not clips of several frames.
      files = [file for file in files if not _is_image_name(file)]
    with ThreadPoolExecutor(_PROBE_THREADS) as pool:
      results = list(pool.map(self._probe, files))
    self.bad_samples.num_reads += len(files)
    usable = {}
    for file, result in zip(files, results, strict=True):
      if isinstance(result, str):
        self.bad_samples.add(file, result)
      else:
        name = folder_names[file]
        variants = captions.get(file, [name])
        usable[file] = _Video(file, result, variants, self.class_names.index(name))
    if not usable:
      raise ValueError(self._nothing_left(len(files)))
    if self.skipped:
      reasons = self.bad_samples.causes()
      log.warning(
        "%s: %d of %d videos are skipped: %s", self.path, len(self.skipped), len(files), reasons
      )
    return usable

  def _probe(self, file: str) -> clips.VideoInfo | str:
    """Returns a video's info, or why it cannot be used."""
    path = self.path / file
    if path.stat().st_size == 0:
      return "empty file"
    try:
      info = clips.probe(path)
    except ValueError as error:
      return str(error)
    if info.last_s < self.span_s - 1e-3:
      return self._too_short()
    return info

  def _nothing_left(self, num_files: int) -> str:
    found = f"{num_files} videos were found" if num_files else "no video was found"
    reasons = f", and none can be used: {self.bad_samples.causes()}" if num_files else ""
    images = sum(map(_is_image_name, self._found))
    if images and self.num_frames > 1:
      reasons += f"; {images} images are there, which are clips of one frame: set num_frames=1"
    return (
      f"There is no usable video in {str(self.path)!r}: looking for {', '.join(EXTENSIONS)} in it "
      f"and its subfolders, {found}{reasons}."
    )


def find_media(folder: Path) -> list[str]:
  """Returns the videos and images below a folder, sorted, by their paths below it."""
  return sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if path.suffix.lower() in EXTENSIONS + IMAGE_EXTENSIONS and path.is_file()
  )


def class_names(folder: Path, split_file: str | None) -> list[str]:
  """Returns the classes of a `FolderSource` without opening its files.

  Raises:
    ValueError: a list of the official split is missing or wrong.
  """
  found = find_media(folder)
  if split_file:
    return splits.read_official_split(split_file, found).class_names
  return sorted({folder_name(folder, file) for file in found})


def folder_name(folder: Path, file: str) -> str:
  """Returns the name of a file's own folder, which is its class."""
  return Path(file).parent.name or folder.resolve().name


def _is_image_name(file: str) -> bool:
  return file.lower().endswith(IMAGE_EXTENSIONS)


def read_captions(path: Path, files: set[str]) -> dict[str, list[str]]:
  """Reads `captions.jsonl`, if there is one.

  Raises:
    ValueError: a line is wrong; the message names the file and line, and how to fix it.
  """
  if not path.exists():
    return {}
  captions = {}
  for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
    if not line.strip():
      continue
    place = f"{path}, line {number}"
    try:
      entry = json.loads(line)
      file, variants = entry["file"], entry.get("captions") or [entry["caption"]]
      if not isinstance(variants, list) or not all(isinstance(x, str) for x in (file, *variants)):
        raise TypeError("both must be strings")
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f'{place}: expected {{"file": "a/b.mp4", "caption": "..."}}, found {line[:80]!r} '
        f"({type(error).__name__}: {error})."
      ) from error
    file = posixpath.normpath(file)
    if file not in files:
      raise ValueError(
        f"{place}: there is no video {file!r} below {str(path.parent)!r}; fix the path, which is "
        "relative to that folder, or remove the line."
      )
    if file in captions:
      raise ValueError(f"{place}: {file!r} has a caption already; remove one of the lines.")
    captions[file] = variants
  return captions
