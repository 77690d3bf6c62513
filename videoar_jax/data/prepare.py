"""Prepares videos and images for training: short clips of bounded size, in shards.

A run that was killed resumes after its last complete shard. The output folder has

  prepared.json                        settings, and a hash of the files to prepare
  clips-00000-of-00004.array_record    samples, see `sources/shards.py`; absent if all were dropped
  clips-00000-of-00004.json            names (FILE#CLIP), height / width, and what was dropped
  dropped.jsonl                        everything that was dropped: {"key": ..., "cause": ...}
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image
from tqdm import tqdm

from videoar_jax.data import video as clips
from videoar_jax.data.output_folder import OutputFolder
from videoar_jax.data.sources import folder as sources
from videoar_jax.data.sources import listing, records, remote, shards
from videoar_jax.data.sources.base import captions_of
from videoar_jax.data.sources.filters import parse_filter
from videoar_jax.data.sources.index import CANNOT_BE_FETCHED, open_media, read_entries

log = logging.getLogger(__name__)

DROPPED = "dropped.jsonl"


@dataclasses.dataclass(frozen=True)
class Settings:
  """How media are prepared.

  Attributes:
    clip_s: length of a clip, in seconds.
    min_s: length of the shortest clip to keep, in seconds.
    short_side: largest short side, in pixels; larger frames are downscaled, smaller ones kept.
    frame_rate: frames per second to store; None for each file's own rate.
    keyframe_every: frames from one key frame to the next.
    quality: constant rate factor of H.264; lower is better.
    files_per_shard: source files per shard.
  """

  clip_s: float = 10.0
  min_s: float = 2.0
  short_side: int = 256
  frame_rate: float | None = None
  keyframe_every: int = 12
  quality: int = 18
  files_per_shard: int = 64

  def __post_init__(self):
    for name in ("clip_s", "short_side", "frame_rate", "keyframe_every", "files_per_shard"):
      value = getattr(self, name)
      if value is not None and not 0 < value < math.inf:
        raise ValueError(f"--{name}={value} must be positive and finite")
    if not 0 <= self.min_s <= self.clip_s:
      raise ValueError(f"--min_s={self.min_s} must be between 0 and --clip_s={self.clip_s}")
    if not 0 <= self.quality <= 51:
      raise ValueError(f"--quality={self.quality} must be between 0 and 51")


Job = tuple[str, list]  # The name of a shard, and its files with their metadata.
Write = Callable[[Job], int]  # Writes a shard; returns its number of files.
# Writes the shards of some jobs in any order; yields the number of files of each finished one.
Runner = Callable[[Write, list[Job], OutputFolder], Iterable[int]]


def prepare(
  path: str, out: str | Path, settings: Settings, runner: Runner, filter: str | None = None
) -> str:
  """Prepares the shards that are still missing; returns a report.

  Args:
    path: a folder, an index, or a pattern of files, local or at a URL.
    out: folder for the shards, local or at a URL.
    settings: how to prepare them.
    runner: does the work: `local_runner`, or one of `beam.py`.
    filter: selects entries of an index.
  Raises:
    ValueError: there is nothing to prepare, or `out` holds shards of other files or settings.
  """
  folder = OutputFolder(out)
  found = folder.sizes()
  root, files = _list_input(path, filter)
  size = settings.files_per_shard
  groups = [files[start : start + size] for start in range(0, len(files), size)]
  names = [shards.prepared_name(i, len(groups)) for i in range(len(groups))]
  _check_same(folder, settings, files, len(groups))
  folder.remove_partials()  # Large. Safe, because only one command at a time writes to a folder.
  missing = [job for job in zip(names, groups, strict=True) if _note_name(job[0]) not in found]
  write = functools.partial(write_shard, root, folder.place, settings)
  with tqdm(total=len(files), desc="prepare", unit="file", dynamic_ncols=True) as bar:
    bar.update(len(files) - sum(len(group) for _, group in missing))
    for num_files in runner(write, missing, folder) if missing else ():
      bar.update(num_files)
  return _report(folder, names, len(files))


def _list_input(path: str, filter: str | None) -> tuple[str, list[tuple[str, dict]]]:
  """Returns the root folder or URL, and each file's path relative to it with its metadata."""
  if not listing.is_listed(path):
    root, files = _list_files(remote.local_file(path), filter)
    # Paths are relative to the original index, not to a local copy of it.
    return path.rpartition("/")[0] if remote.is_url(path) else str(root.absolute()), files
  if filter:
    raise ValueError("--filter applies to an index; leave it out for a folder or a pattern")
  root, files = listing.list_media(path)
  if not files:
    raise ValueError(f"{path} has nothing to prepare: no video or image")
  return root, files


def _list_files(path: Path, filter: str | None) -> tuple[Path, list[tuple[str, dict]]]:
  """Returns the root folder, and each file's path relative to it with its metadata."""
  if path.is_dir():
    if filter:
      raise ValueError("--filter applies to an index; leave it out for a folder")
    found = sources.find_media(path)
    captions = sources.read_captions(path / sources.CAPTIONS, set(found))
    classes = {file: sources.folder_name(path, file) for file in found}
    numbers = {name: number for number, name in enumerate(sorted(set(classes.values())))}
    files = [
      (file, {"captions": captions.get(file, [classes[file]]), "class_id": numbers[classes[file]]})
      for file in found
    ]
  else:
    entries = read_entries(path)
    keep = parse_filter(filter) if filter else lambda entry: True
    # Parquet has types that JSON lacks, such as dates.
    files = [
      (entry["path"], json.loads(json.dumps(entry, default=str)))
      for place, entry in entries
      if _is_kept(keep, place, entry)
    ]
  if not files:
    raise ValueError(f"{path} has nothing to prepare: no video or image, or the filter keeps none")
  return (path if path.is_dir() else path.parent), files


def _is_kept(keep, place: str, entry: dict) -> bool:
  try:
    return keep(entry)
  except ValueError as error:
    raise ValueError(f"{place}: {error}") from None


def _check_same(out: OutputFolder, settings: Settings, files: list, num_shards: int) -> None:
  """Records the settings and files in `out`, or checks that they equal those recorded there."""
  names = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
  wanted = dataclasses.asdict(settings) | {"files": names, "num_shards": num_shards}
  if not out.has(shards.PREPARED):
    out.write(shards.PREPARED, json.dumps(wanted, indent=2) + "\n")
    return
  found = json.loads(out.read([shards.PREPARED])[0])
  different = sorted(name for name in wanted if found.get(name) != wanted[name])
  if different:
    changes = ", ".join(f"{name} {found.get(name)} -> {wanted[name]}" for name in different)
    raise ValueError(
      f"--out={out} was prepared from other files or settings: {changes}. Use another folder, or "
      "remove this one"
    )


def _note_name(shard: str) -> str:
  return shard.removesuffix(records.SUFFIX) + ".json"


def local_runner(num_processes: int) -> Runner:
  """Returns a runner that uses processes on this machine.

  Raises:
    ValueError: there is no process.
  """
  if num_processes < 1:
    raise ValueError(f"--num_processes={num_processes} must be at least 1")

  def run(write: Write, jobs: list[Job], out: OutputFolder) -> Iterator[int]:
    if num_processes == 1:
      yield from map(write, jobs)
      return
    # A forked child could inherit a lock that a thread of the parent holds.
    context = multiprocessing.get_context("spawn")
    try:
      with ProcessPoolExecutor(num_processes, context, _end_with_parent) as pool:
        yield from pool.map(write, jobs)
    except BrokenProcessPool as error:
      raise ValueError(
        "a process was killed, perhaps for want of memory; the same command resumes, with fewer "
        "--num_processes if need be"
      ) from error

  return run


def _end_with_parent() -> None:
  # Otherwise the processes of a command that was killed wait for work forever.
  def wait() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def write_shard(root: str, out: str, settings: Settings, job: Job) -> int:
  """Writes a shard, then the .json file that marks it as done; returns its number of files.

  It runs in other processes and on other machines, where it may run again for the same job: a
  shard that is done is left as it is.

  Raises:
    ValueError: none of several files can be fetched, which is a fault of the storage.
  """
  name, files = job
  folder = OutputFolder(out)
  if folder.has(_note_name(name)):
    return len(files)
  keys, ratios, dropped = [], [], []
  num_unreachable = 0

  def samples() -> Iterator[bytes]:
    nonlocal num_unreachable
    for file, facts in files:
      try:
        captions_of(facts)  # Raises for a sample without a caption, which is then dropped.
        for number, (data, added) in enumerate(_prepare_file(remote.join(root, file), settings)):
          header = {name: value for name, value in facts.items() if name != "path"} | added
          yield records.pack(header, data)
          keys.append(f"{file}#{number}")
          ratios.append(added["height"] / added["width"])
      except Exception as error:
        # The clips before the damage are complete and stay.
        dropped.append({"key": file, "cause": _cause(file, error)})
        num_unreachable += str(error) == CANNOT_BE_FETCHED

  found = samples()
  first = next(found, None)
  if num_unreachable == len(files) > 1:
    raise ValueError(f"{name}: none of {len(files)} files can be fetched, such as {files[0][0]}")
  if first is not None:
    with folder.writing(name) as path:
      records.write_shard(path, itertools.chain([first], found))
  note = {"keys": keys, "aspect_ratios": ratios, "dropped": dropped}
  folder.write(_note_name(name), _as_line(note))
  return len(files)


def _cause(file: str, error: Exception) -> str:
  """Returns why a file was dropped; logs what nobody foresaw, which is a fault of this code."""
  if isinstance(error, ValueError | OSError):
    return getattr(error, "strerror", None) or str(error)
  log.warning("%s is dropped", file, exc_info=error)
  return f"{type(error).__name__}: {error}"


def _as_line(value: dict) -> str:
  """Returns a line of JSON; names that are no UTF-8 are escaped."""
  line = json.dumps(value, ensure_ascii=False) + "\n"
  try:
    line.encode()
  except UnicodeEncodeError:
    return json.dumps(value) + "\n"
  return line


def _prepare_file(path: str, settings: Settings) -> Iterator[tuple[bytes, dict]]:
  """Yields each clip of a file, encoded, with its metadata.

  Raises:
    ValueError: the rest of the file cannot be decoded, or is too short.
  """
  media = open_media(path)
  if isinstance(media, str) and Path(media).stat().st_size == 0:
    raise ValueError("empty file")
  if clips.is_image(media):
    yield _encode_image(media, settings.short_side)
    return
  rate = Fraction(settings.frame_rate or clips.probe(media).frame_rate).limit_denominator(1001)
  frames = clips.read_frames(media, float(rate))
  num_frames = max(round(settings.clip_s * rate), 1)
  for first in frames:
    clip = itertools.chain([first], itertools.islice(frames, num_frames - 1))
    data, count, size = _encode_video(clip, rate, settings)
    if count < settings.min_s * rate:
      raise ValueError(f"the file, or what is left after its clips, is under {settings.min_s:g} s")
    yield data, {"duration": count / float(rate), "frame_rate": float(rate)} | _size_facts(*size)


def _bounded(height: int, width: int, short_side: int) -> tuple[int, int]:
  scale = min(1.0, short_side / min(height, width))
  return round(height * scale), round(width * scale)


def _size_facts(height: int, width: int) -> dict:
  return {"width": width, "height": height, "aspect_ratio": width / height}


def _encode_video(
  frames: Iterator[av.VideoFrame], rate: Fraction, settings: Settings
) -> tuple[bytes, int, tuple[int, int]]:
  """Returns the frames as mp4, their number, and their size (H, W), with even sides."""
  buffer, count, stream = io.BytesIO(), 0, None
  with av.open(buffer, "w", format="mp4") as container:
    for frame in frames:
      if stream is None:
        size = _bounded(frame.height, frame.width, settings.short_side)
        size = tuple(max(side // 2 * 2, 2) for side in size)  # yuv420p needs even sides.
        stream = _add_stream(container, size, rate, settings)
      # RGB input makes the colour conversion unambiguous.
      small = av.VideoFrame.from_ndarray(clips.resize_and_crop(frame, size), format="rgb24")
      small.pts, small.time_base = count, 1 / rate
      container.mux(stream.encode(small))
      count += 1
    container.mux(stream.encode())
  return buffer.getvalue(), count, size


def _add_stream(container, size: tuple[int, int], rate: Fraction, settings: Settings):
  stream = container.add_stream("libx264", rate=rate)
  stream.height, stream.width = size
  stream.pix_fmt = "yuv420p"
  # No reordered frames, cheap decoding, and key frames exactly as often as configured.
  stream.options = {
    "crf": str(settings.quality),
    "preset": "fast",
    "tune": "fastdecode",
    "bf": "0",
    "g": str(settings.keyframe_every),
    "sc_threshold": "0",
    # Macroblock-tree rate control is not deterministic, and gains little here.
    "x264-params": "mbtree=0",
  }
  stream.codec_context.time_base = 1 / rate
  # Each process of the pool encodes its own file.
  stream.codec_context.thread_count = 1
  return stream


def _encode_image(media: clips.Media, short_side: int) -> tuple[bytes, dict]:
  image = clips.read_image(media)
  height, width = _bounded(image.height, image.width, short_side)
  if (height, width) != (image.height, image.width):
    image = image.resize((width, height), Image.Resampling.BICUBIC)
  buffer = io.BytesIO()
  image.save(buffer, "jpeg", quality=95, subsampling=0)
  return buffer.getvalue(), _size_facts(height, width)


def _report(out: OutputFolder, names: list[str], num_files: int) -> str:
  """Writes the list of everything that was dropped; returns a summary.

  Raises:
    ValueError: shards are missing, or nothing could be prepared.
  """
  sizes = out.sizes()
  missing = [name for name in names if _note_name(name) not in sizes]
  if missing:
    raise ValueError(
      f"{out} lacks {len(missing)} of {len(names)} shards, such as {missing[0]}; it must be a "
      "folder or a URL that all workers write to"
    )
  notes = [json.loads(text) for text in out.read(list(map(_note_name, names)))]
  dropped = [entry for note in notes for entry in note["dropped"]]
  num_clips = sum(len(note["keys"]) for note in notes)
  out.write(DROPPED, "".join(map(_as_line, dropped)))
  size = sum(sizes.get(name, 0) for name in names)
  lines = [f"{num_clips} samples of {num_files} files, {size / 2**20:.1f} MiB, in {out}"]
  causes = Counter(entry["cause"] for entry in dropped).most_common()
  lines += [f"dropped: {count} x {cause}" for cause, count in causes]
  if num_clips == 0:
    raise ValueError(f"nothing could be prepared: {'; '.join(lines[1:])}")
  if dropped:
    lines.append(f"{out}/{DROPPED} lists the dropped files")
  return "\n".join(lines)
