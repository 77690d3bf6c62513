"""Classifier-free guidance: a scale for every frame and scale.

Source: VIDEOAR section 4.
"""

import json
import math
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float


def ucf101(num_frames: int, num_scales: int) -> Float[np.ndarray, "t s"]:
  """Rises linearly: over frames from 1 to 5 at the first scale, then over scales up to 10."""
  first = np.linspace(1.0, 5.0, num_frames)
  return np.stack([np.linspace(start, 10.0, num_scales) for start in first])


def t2v(num_frames: int, num_scales: int) -> Float[np.ndarray, "t s"]:
  """Falls linearly from 5 to 3 over all frames and scales."""
  return np.linspace(5.0, 3.0, num_frames * num_scales).reshape(num_frames, num_scales)


SCHEDULES = {"ucf101": ucf101, "t2v": t2v}


def guidance_table(
  spec: str | float,
  num_frames: int,
  num_scales: int,
  num_trained: int | None = None,
  *,
  shapes: Iterable[tuple[int, int]] = (),
) -> Float[np.ndarray, "t s"]:
  """Returns the guidance `g[t, s]` of a setting.

  Schedules and tables are for clips of the trained length. A shorter clip takes the first rows, a
  longer one repeats the last row: a clip's beginning does not depend on its length. The same holds
  for the columns of a table that is for clips of other scales.

  Args:
    spec: "ucf101", "t2v", "constant:3" or a number, or the path of a JSON file with a table, which
      may also have a row for each frame of this clip.
    num_frames: latent frames.
    num_scales: scales per frame.
    num_trained: latent frames of the clips of training; None for `num_frames`.
    shapes: further (latent frames, scales) that a table may be for, those of a run's stages.
  Raises:
    ValueError: the setting is unknown, or the table's shape does not fit.
  """
  num_trained = num_trained or num_frames
  text = str(spec)
  if text in SCHEDULES:
    table = SCHEDULES[text](num_trained, num_scales)
  elif text.endswith(".json"):
    own = {(length, num_scales) for length in (num_frames, num_trained)}
    table = _read_table(text, sorted(own | set(shapes)))
  else:
    table = np.full((1, num_scales), _constant(text))
  rows, columns = (
    np.minimum(np.arange(wanted), length - 1)
    for wanted, length in zip((num_frames, num_scales), table.shape, strict=True)
  )
  return table[np.ix_(rows, columns)].astype(np.float32)


def check_guidance(spec: str) -> None:
  """Checks a setting, except for the shape of a table, which depends on the clips.

  Raises:
    ValueError: it is unknown, or its file cannot be read.
  """
  if not spec.endswith(".json"):
    guidance_table(spec, 1, 1)
    return
  try:
    json.loads(pathlib.Path(spec).read_text())
  except OSError as error:
    raise ValueError(f"guidance={spec} cannot be read ({error.strerror})") from error
  except ValueError as error:
    raise ValueError(f"guidance={spec} is not valid JSON ({error})") from error


def _read_table(path: str, shapes: list[tuple[int, int]]) -> Float[np.ndarray, "t s"]:
  try:
    table = np.asarray(json.loads(pathlib.Path(path).read_text()), np.float32)
  except (TypeError, ValueError, OverflowError) as error:
    raise ValueError(f"guidance: {path} holds no table of numbers ({error})") from None
  if table.shape not in shapes:
    raise ValueError(
      f"guidance: the table in {path} has shape {table.shape}, but the clips' latent frames and "
      f"scales need {' or '.join(map(str, shapes))}"
    )
  if not np.isfinite(table).all():
    raise ValueError(f"guidance: the table in {path} holds values that are not finite")
  return table


def _constant(text: str) -> float:
  try:
    value = float(text.removeprefix("constant:"))
  except ValueError:
    raise ValueError(
      f"guidance: {text!r} is unknown; use a number, constant:NUMBER, {', '.join(SCHEDULES)} "
      "or the path of a .json table"
    ) from None
  if not math.isfinite(value):
    raise ValueError(f"guidance: {text!r} is not a finite number")
  return value
