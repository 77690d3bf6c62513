"""Classifier-free guidance: a scale for every frame and scale.

Source: VIDEOAR section 4.
"""

import json
import math
import pathlib

import numpy as np
from jaxtyping import Float


def ucf101(num_frames: int, num_scales: int) -> Float[np.ndarray, "t s"]:
  """First scale: 1 to 5, linear over frames; then linear over the scales of the frame up to 10."""
  first = np.linspace(1.0, 5.0, num_frames)
  return np.stack([np.linspace(start, 10.0, num_scales) for start in first])


def t2v(num_frames: int, num_scales: int) -> Float[np.ndarray, "t s"]:
  """5 to 3, linear along frames and scales together."""
  return np.linspace(5.0, 3.0, num_frames * num_scales).reshape(num_frames, num_scales)


SCHEDULES = {"ucf101": ucf101, "t2v": t2v}


def guidance_table(spec: str | float, num_frames: int, num_scales: int):
  """Returns the guidance `g[t, s]` that a setting names.

  Args:
    spec: "ucf101", "t2v", "constant:3" or a number, or the path of a JSON file with a table.
    num_frames: latent frames.
    num_scales: scales a frame.
  Raises:
    ValueError: the setting is unknown, or the table's shape does not fit.
  """
  text = str(spec)
  if text in SCHEDULES:
    return SCHEDULES[text](num_frames, num_scales).astype(np.float32)
  if text.endswith(".json"):
    table = np.asarray(json.loads(pathlib.Path(text).read_text()), np.float32)
    if table.shape != (num_frames, num_scales):
      raise ValueError(
        f"guidance: the table in {text} has shape {table.shape}, but {num_frames} latent frames "
        f"of {num_scales} scales need ({num_frames}, {num_scales})"
      )
    if not np.isfinite(table).all():
      raise ValueError(f"guidance: the table in {text} holds what is not a finite number")
    return table
  try:
    value = float(text.removeprefix("constant:"))
  except ValueError:
    raise ValueError(
      f"guidance: {text!r} is unknown; use a number, constant:NUMBER, {', '.join(SCHEDULES)} "
      "or the path of a .json table"
    ) from None
  if not math.isfinite(value):
    raise ValueError(f"guidance: {text!r} is not a finite number")
  return np.full((num_frames, num_scales), value, np.float32)
