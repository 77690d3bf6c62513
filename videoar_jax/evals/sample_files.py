"""Writes generated clips: videos, single frames, and a contact sheet.

Files that are there already are never replaced: those of a second command have numbered names.
"""

import itertools
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from videoar_jax.data.sources.media_files import mark_output
from videoar_jax.evals.media import contact_sheet, slug, write_mp4, write_png

_SHEET_ROWS = 64  # The first clips only, so that the image does not get too large.


def write_frames(
  folders: list[pathlib.Path], parts: Iterable[UInt8[np.ndarray, "n _f H W 3"]]
) -> UInt8[np.ndarray, "n f H W 3"]:
  """Writes the frames of clips as they arrive, a new folder per clip; returns all frames.

  Raises:
    OSError: a file cannot be written.
  """
  for folder in folders:
    mark_output(folder.parent, [folder.name])
    folder.mkdir(parents=True)
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
    files = [self.folder / f"{name}.mp4" for name in names]
    mark_output(self.folder, [file.name for file in files])
    for file, clip in zip(files, clips, strict=True):
      write_mp4(file, clip, self.frame_rate)
    num = _SHEET_ROWS - len(self._shown)
    self._shown += list(clips[:num])
    self._texts += texts[:num]
    return files

  def write_sheet(self) -> pathlib.Path:
    """Writes an image with the first clips' frames, a row each; returns the file."""
    names = _numbered("contact_sheet")
    path = next(path for name in names if not (path := self.folder / f"{name}.png").exists())
    mark_output(self.folder, [path.name])
    write_png(path, contact_sheet(np.stack(self._shown), self._texts))
    return path


def file_stems(prompts: list[str], folder: pathlib.Path, seed: int, num_samples: int) -> list[str]:
  """Returns the start of each prompt's file names, `STEM_SEED_NUMBER`.

  It is the prompt, with a number for duplicates and where a clip of that name is in the folder.

  Args:
    prompts: texts.
    folder: of the files.
    seed: of the clips.
    num_samples: clips per prompt.
  """
  stems: list[str] = []

  def is_free(stem: str) -> bool:
    names = [f"{stem}_{seed}_{i}" for i in range(num_samples)]
    paths = [folder / f"{name}{suffix}" for name in names for suffix in ("", ".mp4")]
    return stem not in stems and not any(path.exists() for path in paths)

  for prompt in prompts:
    stems.append(next(filter(is_free, _numbered(slug(prompt)))))
  return stems


def _numbered(name: str) -> Iterator[str]:
  """Yields NAME, NAME-2, NAME-3 and so on."""
  yield name
  yield from (f"{name}-{number}" for number in itertools.count(2))
