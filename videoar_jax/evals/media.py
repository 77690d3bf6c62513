"""Writes clips as mp4 files and contact sheets."""

import fractions
import functools
import importlib.util
import math
import pathlib
import re

import av
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from videoar_jax.data.media import colour
from videoar_jax.interop.atomic import replacing

_MARGIN = 2
_TEXT_HEIGHT = 15
_MIN_SIDE = 256  # Smaller clips are enlarged by integer factors, so that players show them sharp.
_GAP = 4
_DARK, _RED = (30, 30, 30), (200, 20, 20)
_REST_MS = 700  # On the last frame of a moving picture.
_MAX_SLUG = 200  # Bytes; file systems limit names to 255.

Words = list[tuple[str, bool]]  # Words, each with whether it is right.


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
    colour.tag(stream.codec_context)
    for frame in frames:
      container.mux(stream.encode(colour.to_frame(frame)))
    container.mux(stream.encode())


def write_png(path: pathlib.Path, image: Image.Image) -> None:
  """Writes an image atomically."""
  with replacing(path) as partial:
    # At level 9, which `optimize` would set, a contact sheet takes 25 times as long, for 0.1%.
    image.save(partial, format="png", compress_level=4)


def contact_sheet(
  clips: UInt8[np.ndarray, "b f H W 3"],
  captions: list[str] | None = None,
  *,
  notes: list[Words] | None = None,
  num_columns: int = 9,
  min_side: int = 96,
) -> Image.Image:
  """Draws clips as rows of frames from left to right, each row under its caption.

  Args:
    clips: of equal shape.
    captions: a line for each row; the sheet is wide enough for the longest.
    notes: a second line for each row, of words of which wrong ones are red; empty for none.
    num_columns: maximum number of frames; evenly spaced, first and last included.
    min_side: smaller frames are enlarged by an integer factor to about this side, in pixels.
  """
  b, f, height, width, _ = clips.shape
  columns = np.unique(np.linspace(0, f - 1, min(f, num_columns)).round().astype(int))
  factor = max(1, round(min_side / min(height, width)))
  cell_h, cell_w = height * factor + _MARGIN, width * factor + _MARGIN
  lines = [[] for _ in range(b)]
  if captions is not None:
    lines = [[[(caption, True)]] for caption in captions]
  if notes is not None:
    lines = [[*own, note] if note else own for own, note in zip(lines, notes, strict=True)]
  font = _font()
  longest = max((_length(line, font) for row in lines for line in row), default=0)
  sheet_w = max(len(columns) * cell_w, longest + 2 * _MARGIN) + _MARGIN
  height_of_all = sum(cell_h + len(row) * _TEXT_HEIGHT for row in lines) + _MARGIN
  sheet = Image.new("RGB", (sheet_w, height_of_all), (255, 255, 255))
  draw, top = ImageDraw.Draw(sheet), _MARGIN
  for row in range(b):
    for line in lines[row]:
      _write(draw, (_MARGIN + 1, top), line, font)
      top += _TEXT_HEIGHT
    for column, frame in enumerate(columns):
      picture = Image.fromarray(clips[row, frame]).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
      )
      sheet.paste(picture, (_MARGIN + column * cell_w, top))
    top += cell_h
  return sheet


def moving_sheet(
  clips: UInt8[np.ndarray, "b f H W 3"],
  captions: list[str],
  notes: list[Words] | None = None,
  *,
  num_columns: int = 4,
  side: int = 160,
) -> list[Image.Image]:
  """Draws clips side by side, each under its caption, as the frames of one moving picture.

  Args:
    clips: of equal shape.
    captions: of the clips; long ones are broken into lines.
    notes: words below each caption, of which wrong ones are red; empty for none.
    num_columns: clips in a row.
    side: longer side of a clip in the picture, in pixels.
  """
  b, f, height, width, _ = clips.shape
  scale = side / max(height, width)
  size = (round(width * scale), round(height * scale))
  font, cell_w = _font(), size[0] + 2 * _GAP
  texts = []
  for i in range(b):
    blocks = [[(word, True) for word in captions[i].split()]]
    blocks += [notes[i]] if notes is not None and notes[i] else []
    texts.append([line for block in blocks for line in _broken(block, size[0], font)])
  text_h = max(len(lines) for lines in texts) * _TEXT_HEIGHT + _GAP
  rows = -(-b // num_columns)
  canvas = Image.new(
    "RGB", (min(b, num_columns) * cell_w, rows * (text_h + size[1] + 2 * _GAP)), (255, 255, 255)
  )
  places = []
  for i, lines in enumerate(texts):
    left = i % num_columns * cell_w + _GAP
    top = i // num_columns * (text_h + size[1] + 2 * _GAP) + _GAP
    for j, line in enumerate(lines):
      _write(ImageDraw.Draw(canvas), (left, top + j * _TEXT_HEIGHT), line, font)
    places.append((left, top + text_h))
  frames = []
  for t in range(f):
    frame = canvas.copy()
    for clip, place in zip(clips, places, strict=True):
      frame.paste(Image.fromarray(clip[t]).resize(size, Image.Resampling.BICUBIC), place)
    frames.append(frame)
  return frames


def write_webp(path: pathlib.Path, frames: list[Image.Image], frame_rate: float) -> None:
  """Writes a moving picture that plays again and again, and rests on its last frame, atomically."""
  duration = [round(1000 / frame_rate)] * len(frames)
  duration[-1] += _REST_MS
  settings = {"save_all": True, "append_images": frames[1:], "duration": duration, "loop": 0}
  with replacing(path) as partial:
    frames[0].save(partial, format="webp", quality=85, method=4, **settings)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
  """Returns matplotlib's font; Pillow's default one lacks most non-English letters."""
  # Found without importing matplotlib, which takes a quarter of a second.
  folder = pathlib.Path(importlib.util.find_spec("matplotlib").origin).parent
  return ImageFont.truetype(str(folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), 11)


def _length(words: Words, font) -> int:
  return math.ceil(font.getlength(" ".join(text for text, _ in words)))


def _broken(words: Words, width: int, font) -> list[Words]:
  """Breaks words into lines of at most so many pixels, if they can be."""
  lines: list[Words] = [[]]
  for word in words:
    if lines[-1] and _length([*lines[-1], word], font) > width:
      lines.append([])
    lines[-1].append(word)
  return lines


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], words: Words, font) -> None:
  """Writes words in a line, wrong ones in red."""
  x, y = place
  for text, is_right in words:
    draw.text((x, y), text, fill=_DARK if is_right else _RED, font=font)
    x += round(font.getlength(text + " "))


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
