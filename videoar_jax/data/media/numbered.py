"""Frames of a video by their numbers, resized as torchvision does: for protocols of others.

Public evaluation code takes frame 0, 3, 6, ... of a file, whatever their times; `clips.read_clip`
takes the frames that are shown at given times.
"""

import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from videoar_jax.data.bad_samples import bad_sample
from videoar_jax.data.media import timing
from videoar_jax.data.media.colour import WHITE, to_image
from videoar_jax.data.media.containers import opened


def count_frames(path: str | Path) -> int:
  """Returns the number of frames of a video, as its header says; else packets are counted.

  Raises:
    ValueError: the file cannot be read, or has no video stream.
  """
  with opened(path) as film:
    if film.stream.frames:
      return film.stream.frames
    # Packets of one byte stand for a frame that was in the packet before, or for none.
    return sum(packet.size > 1 for packet in film.container.demux(film.stream))


def read_numbered(
  path: str | Path, start: int, num_frames: int, stride: int, resolution: tuple[int, int]
) -> UInt8[np.ndarray, "f H W 3"]:
  """Reads the frames of numbers start, start + stride, and so on.

  Args:
    path: the video.
    start: number of the first frame, from 0.
    num_frames: how many frames to read.
    stride: 1 for consecutive frames.
    resolution: (H, W), see `resize_short_side`.
  Raises:
    ValueError: the file cannot be decoded, or has too few frames.
  """
  found = []
  with opened(path) as film:
    for number, timed in enumerate(timing.frames_from(film, 0)):
      if number >= start and (number - start) % stride == 0:
        found.append(resize_short_side(to_image(timed.frame, resolution, WHITE), resolution))
      if len(found) == num_frames:
        return np.stack(found)
  last = start + (num_frames - 1) * stride
  raise bad_sample("ends before the clip does", f"it has no frame of number {last}")


def resize_short_side(
  image: Image.Image, resolution: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
  """Resizes an image to cover (H, W), bilinearly with antialiasing, and crops the centre.

  Sides and offsets are whole pixels, rounded as by torchvision's `Resize` and `CenterCrop`.
  """
  height, width = resolution
  scale = max(height / image.height, width / image.width)
  # The other side is cut off, not rounded; the side that fits must not lose a pixel to rounding.
  sides = math.floor(image.height * scale + 1e-9), math.floor(image.width * scale + 1e-9)
  large = image.resize(sides[::-1], Image.Resampling.BILINEAR)
  top, left = round((sides[0] - height) / 2), round((sides[1] - width) / 2)
  return np.asarray(large)[top : top + height, left : left + width]
