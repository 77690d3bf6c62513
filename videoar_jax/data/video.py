"""Frame-accurate clips from video files, and from images as videos of one frame.

A clip's frame at time t is the one that a player shows at t: the last frame that does not begin
after t. Times count from the first frame of the file, whatever its time stamp. Some formats round
time stamps to milliseconds, so the comparison allows an error of one tick of such a fine time base:
else a clip at the file's own rate would show some frames twice and skip others.
"""

import dataclasses
import io
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps

from videoar_jax.data.bad_samples import bad_sample

# A path, or the bytes of a file.
Media = str | Path | io.BytesIO


@dataclasses.dataclass(frozen=True)
class VideoInfo:
  """What a file's headers say about its video stream.

  Attributes:
    last_s: time of the last frame, in seconds.
    num_frames: approximate number of frames.
    frame_rate: average frames per second; 1 for an image.
    aspect_ratio: height / width.
  """

  last_s: float
  num_frames: int
  frame_rate: Fraction
  aspect_ratio: float


@dataclasses.dataclass(frozen=True)
class _Clock:
  """A stream's time base: converts seconds and frames to ticks."""

  seconds_per_tick: float
  ticks_per_frame: float

  @property
  def _slack(self) -> float:
    # A coarse time base counts frames exactly, so only our own rounding needs slack.
    return 1 if self.ticks_per_frame > 8 else 1e-3

  def wanted(self, start_s: float, num_frames: int, frame_rate: float) -> np.ndarray:
    """Returns the latest tick at which each of a clip's frames may begin."""
    ticks = (start_s + np.arange(num_frames) / frame_rate) / self.seconds_per_tick
    return np.floor(ticks + self._slack).astype(np.int64)

  def count(self, last: int | np.integer, frame_rate: float) -> int:
    """Returns how many frames at a rate begin from tick 0 up to tick `last`."""
    return 1 + int((last + self._slack) * self.seconds_per_tick * frame_rate)

  def check_end(self, wanted: int | np.integer, last: int | np.integer):
    """Raises ValueError if the last frame, at tick `last`, has ended by tick `wanted`."""
    if wanted > last + 1.5 * self.ticks_per_frame:
      times_s = [ticks * self.seconds_per_tick for ticks in (last, wanted)]
      raise bad_sample("ends before the clip does", "at {:.2f} s, not {:.2f} s".format(*times_s))


@dataclasses.dataclass(frozen=True)
class DecodedVideo:
  """All frames of a file, resized. Times are in ticks, from the first frame."""

  frames: UInt8[np.ndarray, "n H W 3"]
  ticks: Int64[np.ndarray, "n"]
  clock: _Clock


def is_image(path: Media) -> bool:
  """Returns whether a file has the signature of a JPEG, PNG or WebP image."""
  if isinstance(path, io.BytesIO):
    start = path.getvalue()[:12]
  else:
    try:
      with open(path, "rb") as file:
        start = file.read(12)
    except OSError:  # Reading it as a video will report the error.
      return False
  is_webp = start[:4] == b"RIFF" and start[8:] == b"WEBP"
  return is_webp or start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


def probe(path: Media) -> VideoInfo:
  """Opens a video and decodes its first frame.

  Raises:
    ValueError: the file cannot be read, or has no video stream; the message says which.
  """
  if is_image(path):
    image = read_image(path)
    return VideoInfo(0.0, 1, Fraction(1), image.height / image.width)
  with _open(path) as container:
    stream = _video_stream(container)
    first = next(_decode(container, stream), None)
    if first is None:
      raise ValueError("no frame could be decoded")
    frame_s = _frame_s(stream)
    if stream.duration:
      duration_s = float(stream.duration * stream.time_base)
    else:
      duration_s = _measure_duration(container, stream)
  # Some files include time before the first frame in the duration; reading detects that.
  last_s, num_frames = max(duration_s - frame_s, 0.0), max(round(duration_s / frame_s), 1)
  return VideoInfo(last_s, num_frames, _frame_rate(stream), first.height / first.width)


def read_clip(
  path: Media,
  start_s: float,
  num_frames: int,
  frame_rate: float,
  resolution: tuple[int, int],
  crop: tuple[float, float] = (0.5, 0.5),
) -> UInt8[np.ndarray, "f H W 3"]:
  """Reads the frames at start_s, start_s + 1 / frame_rate, and so on.

  Args:
    path: the video file, or its bytes.
    start_s: seconds after the file's first frame.
    num_frames: how many frames to read.
    frame_rate: frames per second of the clip; the file may have any rate.
    resolution: (H, W) that each frame is resized to cover, and then cropped to.
    crop: (y, x) position of the crop, from 0 (top, left) to 1; by default the center.
  Raises:
    ValueError: the file cannot be decoded, or ends before the clip does.
  """
  if is_image(path):
    return clip_of(_decode_image(path, resolution, crop), start_s, num_frames, frame_rate)
  with _open(path) as container:
    stream = _video_stream(container)
    clock = _clock(stream)
    wanted = clock.wanted(start_s, num_frames, frame_rate)
    clip, resized, previous = [], None, None
    for tick, frame in _frames_from(container, stream, int(wanted[0])):
      while len(clip) < num_frames and wanted[len(clip)] < tick:
        resized = resize_and_crop(previous, resolution, crop) if resized is None else resized
        clip.append(resized)
      if len(clip) == num_frames:
        return np.stack(clip)
      previous, previous_tick, resized = frame, tick, None
    # The file's last frame fills the rest of the clip, if it lasts long enough.
    clock.check_end(wanted[-1], previous_tick)
    resized = resize_and_crop(previous, resolution, crop)
    return np.stack(clip + [resized] * (num_frames - len(clip)))


def read_frames(path: Media, frame_rate: float) -> Iterator[av.VideoFrame]:
  """Yields all frames of a video, at 0, 1 / frame_rate, and so on, to its end.

  Args:
    path: the video file, or its bytes.
    frame_rate: frames per second to read at; the file may have any rate.
  Raises:
    ValueError: the rest of the file cannot be decoded.
  """
  with _open(path) as container:
    stream = _video_stream(container)
    clock = _clock(stream)
    count, previous = 0, None
    for tick, frame in _frames_from(container, stream, 0):
      while previous is not None and clock.wanted(count / frame_rate, 1, frame_rate)[0] < tick:
        yield previous
        count += 1
      previous, previous_tick = frame, tick
    # The last frame is yielded at most once, even if it lasts longer.
    if previous is not None and count / frame_rate < (
      (previous_tick + clock.ticks_per_frame) * clock.seconds_per_tick - 1e-3
    ):
      yield previous


def decode_video(path: Media, resolution: tuple[int, int], end_s: float = math.inf) -> DecodedVideo:
  """Decodes a file for `clip_of`, up to the first damaged frame or the first at `end_s` seconds."""
  if is_image(path):
    return _decode_image(path, resolution)
  frames, ticks = [], []
  with _open(path) as container:
    stream = _video_stream(container)
    clock = _clock(stream)
    try:
      for tick, frame in _frames_from(container, stream, 0):
        frames.append(resize_and_crop(frame, resolution))
        ticks.append(tick)
        if tick * clock.seconds_per_tick >= end_s:
          break
    except ValueError:
      if not frames:
        raise
    return DecodedVideo(np.stack(frames), np.array(ticks), clock)


def clip_of(
  video: DecodedVideo, start_s: float, num_frames: int, frame_rate: float
) -> UInt8[np.ndarray, "f H W 3"]:
  """Returns what `read_clip` reads from the same file."""
  wanted = video.clock.wanted(start_s, num_frames, frame_rate)
  video.clock.check_end(wanted[-1], video.ticks[-1])
  return video.frames[np.searchsorted(video.ticks, wanted, side="right") - 1]


def resize_and_crop(
  frame: av.VideoFrame, resolution: tuple[int, int], crop: tuple[float, float] = (0.5, 0.5)
) -> UInt8[np.ndarray, "H W 3"]:
  """Resizes a frame to cover (H, W), with anti-aliasing, and crops it; see `read_clip`."""
  return resize_and_crop_image(Image.fromarray(frame.to_ndarray(format="rgb24")), resolution, crop)


def resize_and_crop_image(
  image: Image.Image, resolution: tuple[int, int], crop: tuple[float, float] = (0.5, 0.5)
) -> UInt8[np.ndarray, "H W 3"]:
  """Resizes an image to cover (H, W) and crops it, as `resize_and_crop` does a frame."""
  height, width = resolution
  scale = min(image.width / width, image.height / height)
  top, left = (image.height - height * scale) * crop[0], (image.width - width * scale) * crop[1]
  box = (left, top, left + width * scale, top + height * scale)
  return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def read_image(path: Media) -> Image.Image:
  """Reads an image as RGB, rotated as its EXIF orientation says.

  Raises:
    ValueError: the image cannot be decoded.
  """
  try:
    with Image.open(path) as image:
      return ImageOps.exif_transpose(image).convert("RGB")
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    # Without Pillow's message, which has the file's name: bad samples are counted by their text.
    raise ValueError(f"cannot be decoded as an image ({type(error).__name__})") from error


def _decode_image(
  path: Media, resolution: tuple[int, int], crop: tuple[float, float] = (0.5, 0.5)
) -> DecodedVideo:
  frame = resize_and_crop_image(read_image(path), resolution, crop)
  return DecodedVideo(frame[None], np.zeros(1, np.int64), _Clock(1.0, 1.0))


def _open(path: Media):
  if isinstance(path, io.BytesIO):
    path.seek(0)  # It may have been read before.
  try:
    return av.open(path if isinstance(path, io.BytesIO) else str(path))
  except (av.FFmpegError, OSError) as error:
    raise ValueError(f"cannot be opened as a video ({error.strerror})") from error


def _video_stream(container):
  if not container.streams.video:
    raise ValueError("no video stream")
  stream = container.streams.video[0]
  # Each pipeline thread reads its own file; more threads inside the decoders would only compete.
  stream.codec_context.thread_count = 1
  return stream


def _decode(container, stream) -> Iterator[av.VideoFrame]:
  try:
    for frame in container.decode(stream):
      if frame.pts is not None:
        yield frame
  except av.FFmpegError as error:
    raise ValueError(f"cannot be decoded ({error.strerror})") from error


def _frames_from(container, stream, tick: int) -> Iterator[tuple[int, av.VideoFrame]]:
  """Yields (tick, frame) in display order, beginning with a frame at or before `tick`."""
  origin = stream.start_time
  if origin is None:
    first = next(_decode(container, stream), None)
    origin = first.pts if first else 0
  second, back = round(1 / stream.time_base), 0
  while True:
    try:
      container.seek(origin + tick - back, stream=stream, backward=True)
    except av.FFmpegError as error:
      raise ValueError(f"cannot be seeked ({error.strerror})") from error
    frames = _decode(container, stream)
    first = next(frames, None)
    if first is not None and first.pts - origin <= tick:
      break
    if back > tick + second:
      if first is None:
        raise ValueError("no frame could be decoded")
      break
    # With reordered frames, a seek may land on a key frame that is shown after the target. Then
    # seek further back, even to before the first frame.
    back = max(2 * back, second)
  # If the stream claims to start before its first frame, that frame is shown from the start.
  yield min(first.pts - origin, tick), first
  for frame in frames:
    yield frame.pts - origin, frame


def _frame_rate(stream) -> Fraction:
  return Fraction(stream.average_rate or stream.guessed_rate or 25)


def _frame_s(stream) -> float:
  return 1 / float(_frame_rate(stream))


def _clock(stream) -> _Clock:
  tick_s = float(stream.time_base)
  return _Clock(tick_s, _frame_s(stream) / tick_s)


def _measure_duration(container, stream) -> float:
  """Returns the duration by reading all packets, for formats that do not store it."""
  container.seek(0)
  ticks = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
  return float((max(ticks) - min(ticks)) * stream.time_base) + _frame_s(stream)
