"""Reads reference numbers of InfinityStar's public tokenizer."""

import os
import pathlib

import jax.numpy as jnp
import numpy as np

_SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared"
FOLDER = pathlib.Path(os.environ.get("VIDEOAR_GOLDEN", _SHARED / "golden")) / "infinity_star"


def cases(pattern: str) -> list[str]:
  """Returns the names of reference files; none in a clone without them."""
  return sorted(path.name for path in FOLDER.glob(pattern))


def channels_last(array) -> jnp.ndarray:
  """Returns clips `[b, t, h, w, c]` of public ones, `[b, c, t, h, w]`."""
  return jnp.asarray(np.moveaxis(array, 1, -1))


def error(ours, theirs) -> float:
  """Returns the largest error over the largest value."""
  ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)
