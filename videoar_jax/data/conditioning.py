"""Reads the images and videos that a sample continues, at the model's size and frame rate."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from videoar_jax.data.media import clips
from videoar_jax.data.media.colour import WHITE, Colour


def read_image(
  path: str, resolution: tuple[int, int], *, is_resized: bool, background: Colour = WHITE
) -> UInt8[np.ndarray, "H W 3"]:
  """Reads an image.

  Args:
    path: the file.
    resolution: (H, W).
    is_resized: resize to cover `resolution` and crop the centre; else the size must match.
    background: RGB colour behind transparent pixels.
  Raises:
    ValueError: the file cannot be read, or its size does not match.
  """
  try:
    image = clips.read_image(path, background)
  except ValueError as error:
    reason = getattr(error.__cause__, "strerror", None) or error.__cause__ or error
    raise ValueError(f"{path} cannot be read as an image ({reason})") from error
  if not is_resized:
    _check_size(path, (image.height, image.width), resolution)
  return clips.resize_and_crop_image(image, resolution)


def read_video(
  path: str,
  resolution: tuple[int, int],
  frame_rate: float,
  *,
  lengths: Sequence[int],
  is_resized: bool,
  background: Colour = WHITE,
) -> UInt8[np.ndarray, "f H W 3"]:
  """Reads all frames of a video, at the model's frame rate.

  Args:
    path: the file.
    resolution: see `read_image`.
    frame_rate: frames per second to read at; the file may have any rate.
    lengths: numbers of frames that the result may have, from 1 on, rising.
    is_resized: resize and drop last frames to fit; else size and length must match.
    background: see `read_image`.
  Raises:
    ValueError: the file cannot be read, or its size or length does not match.
  """
  try:
    if not is_resized:
      _check_size(path, clips.shown_size(path), resolution)
    # One frame more than allowed shows that the video is too long.
    end_s = (lengths[-1] + 1) / frame_rate
    video = clips.decode_video(path, resolution, end_s=end_s, background=background)
  except ValueError as error:
    raise error if str(error).startswith(str(path)) else ValueError(f"{path}: {error}") from None
  num_frames = video.clock.count(video.last, frame_rate)
  fitting = max(length for length in lengths if length <= num_frames)
  if num_frames != fitting and not is_resized:
    number = f"more than {lengths[-1]}" if num_frames > lengths[-1] else num_frames
    needed = " or ".join(map(str, lengths))
    if isinstance(lengths, range):
      needed = f"1 + {lengths.step} k, at most {lengths[-1]}"
    raise ValueError(
      f"{path} has {number} frames at {frame_rate:g} a second, but the model needs {needed}; cut "
      f"it to {fitting}, or let --resize do so"
    )
  wanted = video.clock.wanted(0.0, fitting, frame_rate)
  return video.frames[np.searchsorted(video.ticks, wanted, side="right") - 1]


def read_last_frames(
  path: str,
  resolution: tuple[int, int],
  frame_rate: float,
  *,
  num_frames: int,
  is_resized: bool,
  background: Colour = WHITE,
) -> UInt8[np.ndarray, "f H W 3"]:
  """Reads the last frames of a video that may be longer, at the model's frame rate.

  Args:
    path, resolution, frame_rate, background: see `read_video`.
    num_frames: how many.
    is_resized: resize frames to fit; else their size must match.
  Raises:
    ValueError: the file cannot be read, its size does not match, or it is too short.
  """
  span_s = (num_frames - 1) / frame_rate
  try:
    if not is_resized:
      _check_size(path, clips.shown_size(path), resolution)
    # A little less, since times are rounded.
    start_s = clips.probe(path).last_s - span_s
    if start_s > -1e-3:
      shape = (num_frames, frame_rate, resolution)
      return clips.read_clip(path, max(start_s, 0.0), *shape, (0.5, 0.5), background)
  except ValueError as error:
    raise error if str(error).startswith(str(path)) else ValueError(f"{path}: {error}") from None
  raise ValueError(
    f"{path} is too short: the model goes on from the last {num_frames} frames at {frame_rate:g} a "
    "second; give a longer video"
  )


def _check_size(path: str, size: tuple[int, int], wanted: tuple[int, int]) -> None:
  if size != tuple(wanted):
    raise ValueError(
      f"{path} is {size[0]}x{size[1]} pixels (height x width), but the model makes "
      f"{wanted[0]}x{wanted[1]}; --resize makes it fit"
    )
