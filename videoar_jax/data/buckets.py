"""Clip sizes by aspect ratio: few shapes, so that few programs are compiled.

The sizes follow the public scale-schedule tables at stride 16 (VIDEOAR 2.4): for each ratio of
height to width, the grid of its table whose number of cells is nearest to that of the square.
"""

import math
from collections.abc import Sequence

import numpy as np

RATIOS = (1.000, 1.250, 1.333, 1.500, 1.750, 2.000, 2.500, 3.000)
# By the approximate square root of the number of pixels: height x width at each of these ratios.
_TALL = {
  128: "128x128 160x128 128x96 144x96 176x96 160x80 240x96 240x80",
  256: "256x256 320x256 320x240 336x224 336x192 352x176 400x160 432x144",
  512: "512x512 560x448 576x432 624x416 672x384 736x368 800x320 864x288",
}


def sizes(pixels: int) -> dict[float, tuple[int, int]]:
  """Returns (H, W) by the ratio of height to width.

  Args:
    pixels: side of the square size: 128, 256 or 512.
  Raises:
    ValueError: there is no table for `pixels`.
  """
  if pixels not in _TALL:
    raise ValueError(f"pixels={pixels} has no table; use one of {', '.join(map(str, _TALL))}")
  words = [word.split("x") for word in _TALL[pixels].split()]
  tall = {ratio: (int(h), int(w)) for ratio, (h, w) in zip(RATIOS, words, strict=True)}
  return {round(1 / ratio, 3): (w, h) for ratio, (h, w) in tall.items()} | tall


def size_of(pixels: int, ratio: float) -> tuple[int, int]:
  """Returns (H, W) of a ratio in the tables.

  Raises:
    ValueError: the ratio is not in the tables.
  """
  table = sizes(pixels)
  if ratio not in table:
    known = ", ".join(f"{known:g}" for known in sorted(table))
    raise ValueError(f"the aspect ratio {ratio:g} (height / width) has no table; known are {known}")
  return table[ratio]


def nearest(ratios: Sequence[float], resolutions: Sequence[tuple[int, int]]) -> np.ndarray:
  """Returns, for each ratio of height to width, the index of the nearest resolution.

  The nearest in log ratio needs the least cropping; the first of equally near ones is taken.
  """
  ours = np.array([math.log(h / w) for h, w in resolutions])
  theirs = np.log(np.asarray(ratios, np.float64))
  return np.argmin(np.round(np.abs(theirs[:, None] - ours), 9), axis=1)
