"""The folder of what can be made again: compiled programs, copies, converted weights."""

import os
from pathlib import Path


def cache_root() -> Path:
  """Returns `$XDG_CACHE_HOME/videoar_jax`, by default `~/.cache/videoar_jax`.

  Raises:
    RuntimeError: there is no home folder, as in some containers.
  """
  return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "videoar_jax"
