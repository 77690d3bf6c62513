"""The mp4 files of finished clips, under addresses that cannot be guessed."""

import collections
import pathlib
import secrets
import tempfile

import numpy as np
from jaxtyping import UInt8

from videoar_jax.evals.media import write_mp4

_MAX_FILES = 256  # Older ones are deleted.


class ClipFiles:
  """A temporary folder of clips, which goes with this object.

  Args:
    frame_rate: frames per second.
  """

  def __init__(self, frame_rate: float):
    self.frame_rate = frame_rate
    self._folder = tempfile.TemporaryDirectory(prefix="videoar_jax_page_")
    self._files: collections.OrderedDict[str, pathlib.Path] = collections.OrderedDict()

  def add(self, clip: UInt8[np.ndarray, "f H W 3"]) -> str:
    """Writes a clip; returns its name, which only who asked for it knows."""
    name = secrets.token_urlsafe(18)
    path = pathlib.Path(self._folder.name) / f"{name}.mp4"
    write_mp4(path, clip, self.frame_rate)
    self._files[name] = path
    while len(self._files) > _MAX_FILES:
      _, oldest = self._files.popitem(last=False)
      oldest.unlink(missing_ok=True)
    return name

  def path(self, name: str) -> pathlib.Path | None:
    """Returns the file of a name; None if there is none, or no longer."""
    return self._files.get(name)
