"""Geometry: frames as they are shown, upright and with square pixels, resized and cropped."""

import dataclasses
import functools

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from videoar_jax.data.media import colour


@dataclasses.dataclass(frozen=True)
class Orientation:
  """How stored pixels are turned to be shown: transposed first, then mirrored.

  Attributes:
    is_transposed: rows become columns.
    is_flipped: whether rows are in reverse order, and whether columns are.
  """

  is_transposed: bool = False
  is_flipped: tuple[bool, bool] = (False, False)

  def apply(self, array: UInt8[np.ndarray, "_h _w 3"]) -> UInt8[np.ndarray, "_H _W 3"]:
    """Turns stored pixels."""
    if self == UPRIGHT:
      return array
    array = array.swapaxes(0, 1) if self.is_transposed else array
    steps = [-1 if flip else 1 for flip in self.is_flipped]
    return np.ascontiguousarray(array[:: steps[0], :: steps[1]])

  def stored_size(self, size: tuple[int, int]) -> tuple[int, int]:
    """Returns which (height, width) is shown as this one, and the other way round."""
    return size[::-1] if self.is_transposed else size

  def stored_place(self, place: tuple[float, float]) -> tuple[float, float]:
    """Returns which (y, x), from 0 to 1, is shown at this one."""
    y, x = (1 - at if flip else at for at, flip in zip(place, self.is_flipped, strict=True))
    return (x, y) if self.is_transposed else (y, x)


UPRIGHT = Orientation()


@dataclasses.dataclass(frozen=True)
class Picture:
  """A decoded frame, with what is needed to show it.

  Attributes:
    frame: as stored.
    pixel_aspect: how much wider a stored pixel is shown than it is high.
  """

  frame: av.VideoFrame
  pixel_aspect: float = 1.0

  @functools.cached_property
  def orientation(self) -> Orientation:
    """How the frame is turned, by its display matrix."""
    try:
      matrix = self.frame.side_data.get("DISPLAYMATRIX")
    except (LookupError, ValueError):  # There is side data that PyAV does not know.
      return UPRIGHT
    if matrix is None:
      return UPRIGHT
    # Stored (1, 0) is shown in the direction (a, b), and (0, 1) in (c, d); x is to the right.
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
      return Orientation(True, (b < 0, c < 0))
    return Orientation(False, (d < 0, a < 0))

  @property
  def size(self) -> tuple[int, int]:
    """(height, width) in square pixels; the height of stored frames is kept."""
    frame = self.frame
    return self.orientation.stored_size(
      (frame.height, max(round(frame.width * self.pixel_aspect), 1))
    )


def resize_and_crop(
  picture: Picture,
  resolution: tuple[int, int],
  crop: tuple[float, float] = (0.5, 0.5),
  background: colour.Colour = colour.WHITE,
) -> UInt8[np.ndarray, "H W 3"]:
  """Resizes a frame to cover (H, W), with anti-aliasing, and crops it; see `clips.read_clip`."""
  orientation = picture.orientation
  size = orientation.stored_size(tuple(resolution))
  image = colour.to_image(picture.frame, size, background)
  place = orientation.stored_place(tuple(crop))
  return orientation.apply(_fit(image, size, place, picture.pixel_aspect))


def resize_and_crop_image(
  image: Image.Image, resolution: tuple[int, int], crop: tuple[float, float] = (0.5, 0.5)
) -> UInt8[np.ndarray, "H W 3"]:
  """Resizes an image to cover (H, W) and crops it, as `resize_and_crop` does a frame."""
  return _fit(image, resolution, crop, 1.0)


def _fit(
  image: Image.Image,
  size: tuple[int, int],
  crop: tuple[float, float],
  pixel_aspect: float,
) -> UInt8[np.ndarray, "_H _W 3"]:
  height, width = size
  scale = min(image.width * pixel_aspect / width, image.height / height)
  box_h, box_w = height * scale, width * scale / pixel_aspect
  top, left = (image.height - box_h) * crop[0], (image.width - box_w) * crop[1]
  box = (left, top, left + box_w, top + box_h)
  return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
