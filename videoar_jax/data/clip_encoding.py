"""Encodes a file's clips at a bounded size: H.264 with frequent key frames, or JPEG."""

import dataclasses
import io
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from videoar_jax.data.media import clips, colour
from videoar_jax.data.sources.index import open_media


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
    background: RGB colour behind transparent pixels.
  """

  clip_s: float = 10.0
  min_s: float = 2.0
  short_side: int = 256
  frame_rate: float | None = None
  keyframe_every: int = 12
  quality: int = 18
  files_per_shard: int = 64
  background: colour.Colour = colour.WHITE

  def __post_init__(self):
    for name in ("clip_s", "short_side", "frame_rate", "keyframe_every", "files_per_shard"):
      value = getattr(self, name)
      if value is not None and not 0 < value < math.inf:
        raise ValueError(f"--{name}={value} must be positive and finite")
    if not 0 <= self.min_s <= self.clip_s:
      raise ValueError(f"--min_s={self.min_s} must be between 0 and --clip_s={self.clip_s}")
    if not 0 <= self.quality <= 51:
      raise ValueError(f"--quality={self.quality} must be between 0 and 51")


def encode_clips(
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
    yield _encode_image(media, settings)
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
      small = colour.to_frame(clips.resize_and_crop(frame, size, background=settings.background))
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


def _encode_image(media: clips.Media, settings: Settings) -> tuple[bytes, dict]:
  image = clips.read_image(media, settings.background)
  height, width = _bounded(image.height, image.width, settings.short_side)
  if (height, width) != (image.height, image.width):
    image = image.resize((width, height), Image.Resampling.BICUBIC)
  buffer = io.BytesIO()
  image.save(buffer, "jpeg", quality=95, subsampling=0)
  return buffer.getvalue(), _size_facts(height, width)
