"""Writes clips as mp4 files and contact sheets."""

import fractions
import math
import pathlib
import re

import av
import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from videoar_jax.interop.atomic import replacing

_MARGIN = 2
_TEXT_HEIGHT = 15
_MIN_SIDE = 256  # Smaller clips are enlarged by integer factors, so that players show them sharp.
_MAX_SLUG = 200  # Bytes; file systems limit names to 255.


def slug(text: str) -> str:
  """Returns a text as a part of a file name: its letters and digits, joined by underscores."""
  name = re.sub(r"\W+", "_", text.lower()).strip("_")[:80].encode()[:_MAX_SLUG]
  return name.decode(errors="ignore").rstrip("_") or "empty"


def write_mp4(path: pathlib.Path, clip: UInt8[np.ndarray, "f H W 3"], frame_rate: float) -> None:
  """Writes a clip as H.264; small ones are enlarged by an integer factor.

  Args:
    path: of the file, which is written atomically.
    clip: its frames.
    frame_rate: frames per second.
  """
  factor = max(1, -(-_MIN_SIDE // min(clip.shape[1:3])))
  large = clip.repeat(factor, axis=1).repeat(factor, axis=2)
  # H.264 in 4:2:0 needs even sides.
  large = large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]
  with replacing(path) as partial:
    _encode(partial, large, fractions.Fraction(frame_rate).limit_denominator(1001))


def _encode(path: pathlib.Path, frames, frame_rate: fractions.Fraction) -> None:
  with av.open(str(path), "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=frame_rate, options={"crf": "12"})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())


def write_png(path: pathlib.Path, image: Image.Image) -> None:
  """Writes an image atomically."""
  with replacing(path) as partial:
    image.save(partial, format="png", optimize=True)


def contact_sheet(
  clips: UInt8[np.ndarray, "b f H W 3"],
  captions: list[str] | None = None,
  *,
  num_columns: int = 9,
  min_side: int = 96,
) -> Image.Image:
  """Draws clips as rows of frames from left to right, each row under its caption.

  Args:
    clips: of equal shape.
    captions: a line for each row; the sheet is wide enough for the longest.
    num_columns: maximum number of frames; evenly spaced, first and last included.
    min_side: smaller frames are enlarged by an integer factor to about this side, in pixels.
  """
  b, f, height, width, _ = clips.shape
  columns = np.unique(np.linspace(0, f - 1, min(f, num_columns)).round().astype(int))
  factor = max(1, round(min_side / min(height, width)))
  cell_h, cell_w = height * factor + _MARGIN, width * factor + _MARGIN
  text = _TEXT_HEIGHT if captions is not None else 0
  # Pillow's default font lacks most non-English letters; this one comes with matplotlib.
  font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 11)
  longest = max((math.ceil(font.getlength(caption)) for caption in captions or []), default=0)
  sheet_w = max(len(columns) * cell_w, longest + 2 * _MARGIN) + _MARGIN
  sheet = Image.new("RGB", (sheet_w, b * (cell_h + text) + _MARGIN), (255, 255, 255))
  draw = ImageDraw.Draw(sheet)
  for row in range(b):
    top = row * (cell_h + text) + _MARGIN
    if captions is not None:
      draw.text((_MARGIN + 1, top), captions[row], fill=(30, 30, 30), font=font)
    for column, frame in enumerate(columns):
      picture = Image.fromarray(clips[row, frame]).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
      )
      sheet.paste(picture, (_MARGIN + column * cell_w, top + text))
  return sheet


def reconstruction_sheet(
  clips: UInt8[np.ndarray, "b f H W 3"],
  reconstructions: UInt8[np.ndarray, "b f H W 3"],
  captions: list[str],
  psnr: Float[np.ndarray, "b"],
) -> Image.Image:
  """Draws each clip above its reconstruction."""
  rows = np.stack([clips, reconstructions], axis=1).reshape(-1, *clips.shape[1:])
  lines = []
  for caption, value in zip(captions, psnr, strict=True):
    lines += [f"original: {caption}", f"reconstruction, {value:.1f} dB"]
  return contact_sheet(rows, lines)


def side_by_side(
  left: UInt8[np.ndarray, "b f H W 3"], right: UInt8[np.ndarray, "b f H W 3"]
) -> UInt8[np.ndarray, "f Y X 3"]:
  """Joins clips into one with a row for each pair, left and right."""
  pads = ((0, 0), (0, 0), (0, _MARGIN), (0, _MARGIN), (0, 0))
  pair = [np.pad(clips, pads, constant_values=255) for clips in (left, right)]
  rows = np.concatenate(pair, axis=3)  # [b, f, H, 2 W, 3], with margins at the end.
  return np.concatenate(list(rows), axis=1)[:, :-_MARGIN, :-_MARGIN]
