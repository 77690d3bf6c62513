"""Still images: upright, in front of one colour where they are transparent, with 8 bits."""

import io
import os

import numpy as np
from PIL import Image

from videoar_jax.data.media import colour
from videoar_jax.data.media.containers import Media, check_size, reported_as

# JPEG, PNG, BMP and TIFF of either byte order.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
_ORIENTATION = 0x0112
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


def is_image(path: Media) -> bool:
  """Returns whether a file has the signature of a still image that Pillow reads."""
  if isinstance(path, io.BytesIO):
    start = path.getvalue()[:12]
  else:
    try:
      with open(path, "rb") as file:
        start = file.read(12)
    except (OSError, ValueError):  # Reading it as a video will report the error.
      return False
  is_webp = start[:4] == b"RIFF" and start[8:] == b"WEBP"
  return is_webp or start[4:] == b"ftypavif" or start.startswith(_SIGNATURES)


def read_image(path: Media, background: colour.Colour = colour.WHITE) -> Image.Image:
  """Reads an image as RGB, rotated as its EXIF orientation says.

  Args:
    path: the image file, or its bytes.
    background: colour behind transparent pixels.
  Raises:
    ValueError: the image cannot be decoded.
  """
  file = path if isinstance(path, io.BytesIO) else os.fspath(path)
  with reported_as("cannot be decoded as an image"), Image.open(file) as image:
    check_size(image.height, image.width)
    image.load()
    turn = _turn(image)
    shown = _to_rgb(image, background)
    return shown if turn is None else shown.transpose(turn)


def image_of(array: np.ndarray, background: colour.Colour = colour.WHITE) -> Image.Image:
  """Returns a decoded image as RGB.

  Args:
    array: [H, W, C] of 8 or 16 bits; C is 1, 2 with transparency, 3, or 4 with transparency.
    background: colour behind transparent pixels.
  Raises:
    ValueError: its numbers are of another type.
  """
  if array.dtype not in (np.uint8, np.uint16):
    raise ValueError(f"pixels of type {array.dtype} are not supported")
  array = (array >> 8).astype(np.uint8) if array.dtype == np.uint16 else array
  return _to_rgb(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), background)


def _turn(image: Image.Image) -> Image.Transpose | None:
  try:
    orientation = image.getexif().get(_ORIENTATION)
  except Exception:  # Pillow raises errors of many kinds for damaged tags; the pixels are whole.
    return None
  return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image.Image, background: colour.Colour) -> Image.Image:
  hidden = image.info.get("transparency")  # A colour that is transparent, or alphas of a palette.
  if image.mode == "F":
    raise ValueError("pixels of type float32 are not supported")
  if image.mode.startswith("I"):  # Grey of 16 bits.
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
      raise ValueError("pixels of 32 bits are not supported")
    eight = Image.fromarray((grey >> 8).clip(0, 255).astype(np.uint8))
    if hidden is None:
      return eight.convert("RGB")
    eight.putalpha(Image.fromarray(np.where(grey == hidden, 0, 255).astype(np.uint8)))
    return colour.flattened(eight, background)
  if isinstance(hidden, tuple) and max(hidden) > 255:  # Pillow has reduced the pixels, not this.
    image.info["transparency"] = tuple(value >> 8 for value in hidden)
  if hidden is not None or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
    return colour.flattened(image, background)
  return image.convert("RGB")
