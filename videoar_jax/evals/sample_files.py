"""Writes generated clips: videos, single frames, and a contact sheet."""

import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from videoar_jax.data.sources.media_files import mark_output
from videoar_jax.evals.media import contact_sheet, slug, write_mp4, write_png

_SHEET_ROWS = 64  # The first clips only, so that the image does not get too large.


def write_frames(
  folders: list[pathlib.Path], parts: Iterable[UInt8[np.ndarray, "n _f H W 3"]]
) -> UInt8[np.ndarray, "n f H W 3"]:
  """Writes the frames of clips as they arrive, a folder per clip; returns all frames.

  Raises:
    OSError: a file cannot be written.
  """
  for folder in folders:
    mark_output(folder.parent)
    folder.mkdir(exist_ok=True)
    for old in folder.glob("[0-9]*.png"):
      old.unlink()  # Frames left over from a longer clip would seem to continue this one.
  clips, at = [], 0
  for part in parts:
    for folder, frames in zip(folders, part, strict=True):
      for number, frame in enumerate(frames, start=at):
        write_png(folder / f"{number:05}.png", Image.fromarray(frame))
    at += part.shape[1]
    clips.append(part)
  return np.concatenate(clips, axis=1)


class Out:
  """A folder of clips, whose files are written atomically."""

  def __init__(self, folder: pathlib.Path, frame_rate: float):
    self.folder, self.frame_rate = folder, frame_rate
    self._shown: list[np.ndarray] = []
    self._texts: list[str] = []

  def write(self, names: list[str], texts: list[str], clips: np.ndarray) -> list[pathlib.Path]:
    """Writes clips, and keeps the first ones for the sheet; returns the files.

    Raises:
      OSError: a file cannot be written.
    """
    mark_output(self.folder)
    files = [self.folder / f"{name}.mp4" for name in names]
    for file, clip in zip(files, clips, strict=True):
      write_mp4(file, clip, self.frame_rate)
    num = _SHEET_ROWS - len(self._shown)
    self._shown += list(clips[:num])
    self._texts += texts[:num]
    return files

  def write_sheet(self) -> pathlib.Path:
    """Writes an image with the first clips' frames, a row each; returns the file."""
    path = self.folder / "contact_sheet.png"
    write_png(path, contact_sheet(np.stack(self._shown), self._texts))
    return path


def file_stems(prompts: list[str]) -> list[str]:
  """Returns a file name for each prompt; duplicates are numbered."""
  stems: list[str] = []
  for prompt in prompts:
    stem, number = slug(prompt), 2
    while stem in stems:
      stem, number = f"{slug(prompt)}-{number}", number + 1
    stems.append(stem)
  return stems
