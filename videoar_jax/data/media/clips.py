"""Frame-accurate clips from video files, and from images as videos of one frame.

A clip's frame at time t is the one that a player shows at t: the last frame that does not begin
after t. Times count from the first frame of the file, whatever its time stamp. Some formats round
time stamps to milliseconds, so the comparison allows an error of one tick of such a time base: else
a clip at the file's own rate would show some frames twice and skip others.
"""

import dataclasses
import math
import numbers
import sys
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Int64, UInt8

from videoar_jax.data.media import timing
from videoar_jax.data.media.colour import WHITE, Colour
from videoar_jax.data.media.containers import MAX_PIXELS, Film, Media, opened
from videoar_jax.data.media.geometry import Picture, resize_and_crop, resize_and_crop_image
from videoar_jax.data.media.images import is_image, read_image

__all__ = [
  "DecodedVideo",
  "Media",
  "Picture",
  "VideoInfo",
  "clip_of",
  "decode_video",
  "is_image",
  "probe",
  "read_clip",
  "read_frames",
  "read_image",
  "resize_and_crop",
  "resize_and_crop_image",
  "shown_size",
]

_MAX_FRAMES = 2**24  # Of a clip.


@dataclasses.dataclass(frozen=True)
class VideoInfo:
  """What a file's headers say about its film.

  Attributes:
    last_s: latest time of a clip's last frame, in seconds: that of the file's last frame, or later
      if that one lasts longer than others.
    num_frames: approximate number of frames.
    frame_rate: average frames per second; 1 for an image.
    aspect_ratio: height / width, as shown.
  """

  last_s: float
  num_frames: int
  frame_rate: Fraction
  aspect_ratio: float


@dataclasses.dataclass(frozen=True)
class DecodedVideo:
  """All frames of a file, resized. Times are in ticks, from the first frame.

  Attributes:
    frames, ticks: the frames, and when each begins.
    last: tick up to which the last frame stays, but for its usual duration.
    clock: of the ticks.
  """

  frames: UInt8[np.ndarray, "n H W 3"]
  ticks: Int64[np.ndarray, "n"]
  last: int
  clock: timing.Clock


def probe(path: Media) -> VideoInfo:
  """Opens a video and decodes its first frame.

  Raises:
    ValueError: the file cannot be read, or has no video stream; the message says which.
  """
  if is_image(path):
    image = read_image(path)
    return VideoInfo(0.0, 1, Fraction(1), image.height / image.width)
  with opened(path) as film:
    height, width = _first(film).size
    duration_s, rate = timing.duration_and_rate(film)
  # Some files include time before the first frame in the duration; reading detects that.
  last_s, num_frames = max(duration_s - 1 / rate, 0.0), max(round(duration_s * rate), 1)
  return VideoInfo(float(last_s), num_frames, rate, height / width)


def shown_size(path: Media) -> tuple[int, int]:
  """Returns the (height, width) of a video's first frame as it is shown, in square pixels.

  Raises:
    ValueError: the file cannot be read, or has no video stream.
  """
  with opened(path) as film:
    return _first(film).size


def read_clip(
  path: Media,
  start_s: float = 0.0,
  num_frames: int = 9,
  frame_rate: float = 8.0,
  resolution: tuple[int, int] = (64, 64),
  crop: tuple[float, float] = (0.5, 0.5),
  background: Colour = WHITE,
) -> UInt8[np.ndarray, "f H W 3"]:
  """Reads the frames at start_s, start_s + 1 / frame_rate, and so on.

  Args:
    path: the video file, or its bytes; or an image, which is a clip of one frame.
    start_s: seconds after the file's first frame.
    num_frames: how many frames to read.
    frame_rate: frames per second of the clip; the file may have any rate.
    resolution: (H, W) that each frame is resized to cover, and then cropped to.
    crop: (y, x) position of the crop, from 0 (top, left) to 1; by default the center.
    background: RGB colour behind transparent pixels.
  Raises:
    ValueError: an argument is wrong, the file cannot be decoded, or it ends before the clip does.
  """
  _check_clip(start_s, num_frames, frame_rate, resolution, crop, background)
  if is_image(path):
    if num_frames > 1:
      raise ValueError(f"num_frames is {num_frames}, but this is an image; set it to 1")
    image = _decode_image(path, resolution, crop, background)
    return clip_of(image, start_s, num_frames, frame_rate)
  with opened(path) as film:
    clock = timing.clock_of(film)
    wanted = clock.wanted(start_s, num_frames, frame_rate)
    clip, resized, previous = [], None, None

    def resize(frame):
      picture = Picture(frame, film.pixel_aspect)
      return resize_and_crop(picture, resolution, crop, background)

    for timed in timing.frames_from(film, int(wanted[0])):
      while len(clip) < num_frames and wanted[len(clip)] < timed.tick:
        resized = resize(previous.frame) if resized is None else resized
        clip.append(resized)
      if len(clip) == num_frames:
        return np.stack(clip)
      previous, resized = timed, None
    # The file's last frame fills the rest of the clip, if it lasts long enough.
    clock.check_end(wanted[-1], clock.last(previous))
    return np.stack(clip + [resize(previous.frame)] * (num_frames - len(clip)))


def read_frames(path: Media, frame_rate: float) -> Iterator[Picture]:
  """Yields all frames of a video, at 0, 1 / frame_rate, and so on, to its end.

  Args:
    path: the video file, or its bytes.
    frame_rate: frames per second to read at; the file may have any rate.
  Raises:
    ValueError: the rest of the file cannot be decoded.
  """
  with opened(path) as film:
    clock, aspect = timing.clock_of(film), film.pixel_aspect
    count, previous = 0, None
    for timed in timing.frames_from(film, 0):
      if previous is not None:
        clock.check_gap(timed.tick - previous.tick)
        while clock.wanted(count / frame_rate, 1, frame_rate)[0] < timed.tick:
          yield Picture(previous.frame, aspect)
          count += 1
      previous = timed
    last = clock.last(previous)
    clock.check_gap(last - previous.tick)
    end_s = (last + clock.ticks_per_frame) * clock.seconds_per_tick
    while count / frame_rate < end_s - 1e-3:
      yield Picture(previous.frame, aspect)
      count += 1


def decode_video(
  path: Media,
  resolution: tuple[int, int],
  end_s: float = math.inf,
  background: Colour = WHITE,
) -> DecodedVideo:
  """Decodes a file for `clip_of`, up to the first damaged frame or the first at `end_s` seconds."""
  if is_image(path):
    return _decode_image(path, resolution, (0.5, 0.5), background)
  frames, ticks, last = [], [], 0
  with opened(path) as film:
    clock, aspect = timing.clock_of(film), film.pixel_aspect
    # Only decoding may fail without a word: anything else would shorten the clip by mistake.
    for timed in _before_damage(timing.frames_from(film, 0)):
      picture = Picture(timed.frame, aspect)
      frames.append(resize_and_crop(picture, resolution, (0.5, 0.5), background))
      ticks.append(timed.tick)
      last = clock.last(timed)
      if timed.tick * clock.seconds_per_tick >= end_s:
        break
    return DecodedVideo(np.stack(frames), np.array(ticks), last, clock)


def _before_damage(frames: Iterator[timing.TimedFrame]) -> Iterator[timing.TimedFrame]:
  """Yields frames up to the first that cannot be decoded; raises if that is the very first."""
  is_first = True
  try:
    for frame in frames:
      is_first = False
      yield frame
  except (av.FFmpegError, ValueError):
    if is_first:
      raise


def clip_of(
  video: DecodedVideo, start_s: float, num_frames: int, frame_rate: float
) -> UInt8[np.ndarray, "f H W 3"]:
  """Returns what `read_clip` reads from the same file."""
  wanted = video.clock.wanted(start_s, num_frames, frame_rate)
  video.clock.check_end(wanted[-1], video.last)
  return video.frames[np.searchsorted(video.ticks, wanted, side="right") - 1]


def _decode_image(
  path: Media, resolution: tuple[int, int], crop: tuple[float, float], background: Colour
) -> DecodedVideo:
  frame = resize_and_crop_image(read_image(path, background), resolution, crop)
  return DecodedVideo(frame[None], np.zeros(1, np.int64), 0, timing.Clock(1.0, 1.0))


def _check_clip(start_s, num_frames, frame_rate, resolution, crop, background) -> None:
  """Raises ValueError for arguments of `read_clip` that are wrong whatever the file; names them."""
  integer, number = numbers.Integral, numbers.Real
  seconds, rates, counts = (0, sys.maxsize), (1e-6, 1e6), (1, _MAX_FRAMES)
  wrong = [
    f"{name} is {value!r}; set it to {wanted}"
    for name, value, is_right, wanted in (
      ("start_s", start_s, _are(number, [start_s], 1, *seconds), "seconds from 0 on"),
      ("num_frames", num_frames, _are(integer, [num_frames], 1, *counts), "1 or more"),
      ("frame_rate", frame_rate, _are(number, [frame_rate], 1, *rates), "more than 0"),
      (
        *("resolution", resolution),
        _are(integer, resolution, 2, 1, MAX_PIXELS) and math.prod(resolution) <= MAX_PIXELS,
        f"(height, width), both positive, of at most {MAX_PIXELS:,} pixels",
      ),
      ("crop", crop, _are(number, crop, 2, 0, 1), "(y, x), each 0 to 1"),
      (
        *("background", background, _are(integer, background, 3, 0, 255)),
        "(red, green, blue), each 0 to 255",
      ),
    )
    if not is_right
  ]
  if wrong:
    raise ValueError("; ".join(wrong))


def _are(kind: type, values, count: int, least: float, most: float) -> bool:
  """Returns whether values are so many numbers of a kind, within limits."""
  try:
    values = tuple(values)
  except TypeError:
    return False
  return len(values) == count and all(isinstance(x, kind) and least <= x <= most for x in values)


def _first(film: Film) -> Picture:
  return Picture(timing.first_frame(film), film.pixel_aspect)
