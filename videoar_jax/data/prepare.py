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
import math
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image
from tqdm import tqdm

from videoar_jax.data.bad_samples import cause_of
from videoar_jax.data.media import clips, colour
from videoar_jax.data.sources import records, remote, shards
from videoar_jax.data.sources.captions import captions_of
from videoar_jax.data.sources.filters import parse_filter
from videoar_jax.data.sources.folder import describe_files
from videoar_jax.data.sources.index import (
  file_name,
  open_media,
  read_entries,
  sample_name,
  segment_of,
)
from videoar_jax.data.sources.media_files import printable
from videoar_jax.interop.atomic import remove_partials, write_text

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


def prepare(
  path: str, out: Path, settings: Settings, num_processes: int, filter: str | None = None
) -> str:
  """Prepares the shards of a folder or an index that are still missing; returns a report.

  Raises:
    ValueError: there is nothing to prepare, or `out` holds shards of other files or settings.
  """
  if num_processes < 1:
    raise ValueError(f"--num_processes={num_processes} must be at least 1")
  root, files = _list_files(Path(path).expanduser(), filter)
  size = settings.files_per_shard
  groups = [files[start : start + size] for start in range(0, len(files), size)]
  _check_same(out, settings, files, len(groups))
  remove_partials(out)  # Large. Safe, because only one command at a time writes to a folder.
  paths = [out / shards.prepared_name(i, len(groups)) for i in range(len(groups))]
  missing = [(path, group) for path, group in zip(paths, groups, strict=True) if not _is_done(path)]
  with tqdm(total=len(files), desc="prepare", unit="file", dynamic_ncols=True) as bar:
    bar.update(len(files) - sum(len(group) for _, group in missing))
    for num_files in _work(functools.partial(_write_shard, root, settings), missing, num_processes):
      bar.update(num_files)
  return _report(out, paths, len(files))


def _list_files(path: Path, filter: str | None) -> tuple[Path, list[tuple[str, dict]]]:
  """Returns the root folder, and each file's path relative to it with its metadata."""
  if path.is_dir():
    if filter:
      raise ValueError("--filter applies to an index; leave it out for a folder")
    files = describe_files(path)
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


def _check_same(out: Path, settings: Settings, files: list, num_shards: int) -> None:
  """Records the settings and files in `out`, or checks that they equal those recorded there."""
  names = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
  wanted = dataclasses.asdict(settings) | {"files": names, "num_shards": num_shards}
  noted = out / shards.PREPARED
  if noted.is_file():
    found = json.loads(noted.read_text())
    different = sorted(name for name in wanted if found.get(name) != wanted[name])
    if different:
      changes = ", ".join(f"{name} {found.get(name)} -> {wanted[name]}" for name in different)
      raise ValueError(
        f"--out={out} was prepared from other files or settings: {changes}. Use another folder, or "
        "remove this one"
      )
    return
  out.mkdir(parents=True, exist_ok=True)
  write_text(noted, json.dumps(wanted, indent=2) + "\n")


def _is_done(path: Path) -> bool:
  return path.with_suffix(".json").is_file()


def _work(write, missing: list, num_processes: int) -> Iterator[int]:
  """Yields the number of files of each shard once it is written."""
  if num_processes == 1:
    yield from map(write, missing)
    return
  # A forked child could inherit a lock that a thread of the parent holds.
  context = multiprocessing.get_context("spawn")
  with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
    yield from pool.map(write, missing)


def _write_shard(root: Path, settings: Settings, job: tuple[Path, list]) -> int:
  """Writes a shard, then the .json file that marks it as done; returns its number of files."""
  path, files = job
  keys, ratios, dropped = [], [], []

  def samples() -> Iterator[bytes]:
    for path, facts in files:
      entry = facts | {"path": path}
      sample, file = sample_name(entry), file_name(entry)
      kept = {name: value for name, value in facts.items() if name not in ("path", "start", "end")}
      try:
        captions_of(facts)  # Raises for a sample without a caption, which is then dropped.
        found = _prepare_file(remote.join(root, path), settings, segment_of(entry))
        for number, (data, added) in enumerate(found):
          yield records.pack(kept | added, data)
          keys.append(printable(shards.clip_name(sample, file, number)))
          ratios.append(added["height"] / added["width"])
      except MemoryError:
        raise
      except Exception as error:
        # The clips before the damage are complete and stay.
        dropped.append({"key": printable(sample), "cause": cause_of(error)[0]})

  found = samples()
  first = next(found, None)
  if first is not None:
    records.write_shard(path, itertools.chain([first], found))
  note = json.dumps({"keys": keys, "aspect_ratios": ratios, "dropped": dropped}, ensure_ascii=False)
  write_text(path.with_suffix(".json"), note + "\n")
  return len(files)


def _prepare_file(
  path: str, settings: Settings, segment: tuple[float, float] = (0.0, math.inf)
) -> Iterator[tuple[bytes, dict]]:
  """Yields each clip of a file's segment, encoded, with its metadata.

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
  frames = _frames_of(media, rate, *segment)
  num_frames = max(round(settings.clip_s * rate), 1)
  for first in frames:
    clip = itertools.chain([first], itertools.islice(frames, num_frames - 1))
    data, count, size = _encode_video(clip, rate, settings)
    if count < settings.min_s * rate:
      raise ValueError(f"the file, or what is left after its clips, is under {settings.min_s:g} s")
    yield data, {"duration": count / float(rate), "frame_rate": float(rate)} | _size_facts(*size)


def _frames_of(
  media: clips.Media, rate: Fraction, start_s: float, end_s: float
) -> Iterator[av.VideoFrame]:
  """Yields the frames of a segment; raises ValueError if there are none."""
  first, last = (math.ceil(s * rate - 1e-6) if s < math.inf else None for s in (start_s, end_s))
  frames = itertools.islice(clips.read_frames(media, float(rate)), first, last)
  frame = next(frames, None)
  if frame is None:
    raise ValueError("ends before its segment begins" if start_s else "no frame could be decoded")
  yield from itertools.chain([frame], frames)


def _bounded(height: int, width: int, short_side: int) -> tuple[int, int]:
  scale = min(1.0, short_side / min(height, width))
  return round(height * scale), round(width * scale)


def _size_facts(height: int, width: int) -> dict:
  return {"width": width, "height": height, "aspect_ratio": width / height}


def _encode_video(
  frames: Iterator[clips.Picture], rate: Fraction, settings: Settings
) -> tuple[bytes, int, tuple[int, int]]:
  """Returns the frames as mp4, their number, and their size (H, W), with even sides."""
  buffer, count, stream = io.BytesIO(), 0, None
  with av.open(buffer, "w", format="mp4") as container:
    for frame in frames:
      if stream is None:
        size = _bounded(*frame.size, settings.short_side)
        size = tuple(max(side // 2 * 2, 2) for side in size)  # yuv420p needs even sides.
        stream = _add_stream(container, size, rate, settings)
      small = colour.to_frame(clips.resize_and_crop(frame, size))
      small.pts, small.time_base = count, 1 / rate
      container.mux(stream.encode(small))
      count += 1
    container.mux(stream.encode())
  return buffer.getvalue(), count, size


def _add_stream(container, size: tuple[int, int], rate: Fraction, settings: Settings):
  stream = container.add_stream("libx264", rate=rate)
  stream.height, stream.width = size
  stream.pix_fmt = "yuv420p"
  colour.tag(stream.codec_context)
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


def _report(out: Path, paths: list[Path], num_files: int) -> str:
  """Writes the list of everything that was dropped; returns a summary."""
  notes = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
  dropped = [entry for note in notes for entry in note["dropped"]]
  num_clips = sum(len(note["keys"]) for note in notes)
  text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in dropped)
  write_text(out / DROPPED, text)
  size = sum(path.stat().st_size for path in paths if path.is_file())
  lines = [f"{num_clips} samples of {num_files} files, {size / 2**20:.1f} MiB, in {out}"]
  causes = Counter(entry["cause"] for entry in dropped).most_common()
  lines += [f"dropped: {count} x {cause}" for cause, count in causes]
  if num_clips == 0:
    raise ValueError(f"nothing could be prepared: {'; '.join(lines[1:])}")
  if dropped:
    lines.append(f"{out / DROPPED} lists the dropped files")
  return "\n".join(lines)
