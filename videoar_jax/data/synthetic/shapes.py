"""The sprites' silhouettes as signed distances, rendered with anti-aliased edges.

Lengths are in pixels; x grows to the right and y downwards, so "up" is towards negative y.
All shapes have the area of the circle of their `radius`, and the origin is their centre of mass.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float32, Int

_STAR_INNER = 0.5  # Radius of a star's inner corners over that of its points.

# Half a square's side, a triangle's circumradius and the radius of a star's points, each over the
# radius of the circle of equal area.
_SQUARE = math.sqrt(math.pi) / 2
_TRIANGLE = math.sqrt(math.pi / (0.75 * math.sqrt(3)))
_STAR = math.sqrt(math.pi / (5 * _STAR_INNER * math.sin(math.pi / 5)))
_SIN, _COS = math.sin(math.pi / 5), math.cos(math.pi / 5)

# How far a shape of radius 1 reaches to (left, right, up, down).
EXTENTS = {
  "circle": (1.0, 1.0, 1.0, 1.0),
  "square": (_SQUARE, _SQUARE, _SQUARE, _SQUARE),
  "triangle": (*[_TRIANGLE * math.sqrt(0.75)] * 2, _TRIANGLE, _TRIANGLE / 2),
  "star": (*[_STAR * math.sin(math.tau / 5)] * 2, _STAR, _STAR * _COS),
}


def coverage(
  shape: str, radius: float, centres: Float[np.ndarray, "f 2"]
) -> tuple[Float32[np.ndarray, "f bh bw"], Int[np.ndarray, "f 2"]]:
  """Renders a shape at each centre, in a box just large enough to hold it.

  Args:
    shape: one of `EXTENTS`.
    radius: of the circle of equal area, in pixels.
    centres: (x, y) in pixels; the centre of the frame's first pixel is (0.5, 0.5).
  Returns:
    The covered share of each pixel of the boxes, in [0, 1], and the (x, y) of each box's first
    pixel in the frame. Boxes may lie partly or wholly outside the frame.
  """
  left, right, up, down = (math.ceil(radius * extent + 1) for extent in EXTENTS[shape])
  corners = np.floor(centres).astype(np.int64) - (left, up)
  first = (corners + 0.5 - centres).astype(np.float32)
  x = (first[:, 0, None] + np.arange(left + right + 1, dtype=np.float32))[:, None, :]
  y = (first[:, 1, None] + np.arange(up + down + 1, dtype=np.float32))[:, :, None]
  distance = _DISTANCES[shape](x, y, np.float32(radius))
  np.subtract(np.float32(0.5), distance, out=distance)
  return np.clip(distance, 0, 1, out=distance), corners


def _circle(x, y, radius):
  return np.sqrt(x * x + y * y) - radius


def _square(x, y, radius):
  return np.maximum(np.abs(x), np.abs(y)) - np.float32(_SQUARE) * radius


def _triangle(x, y, radius):
  inradius = np.float32(_TRIANGLE / 2) * radius
  sides = np.abs(x) * np.float32(math.sqrt(0.75)) - y * np.float32(0.5)
  return np.maximum(sides, y) - inradius


def _star(x, y, radius):
  """Folds the plane onto one edge by five-fold symmetry, then measures the distance to a line."""
  sin, cos = np.float32(_SIN), np.float32(_COS)
  x, y = np.abs(x), -y
  # Mirror whatever lies beyond the two inner axes of symmetry back into the top wedge.
  beyond = np.maximum(x * cos - y * sin, 0)
  x, y = x - 2 * cos * beyond, y + 2 * sin * beyond
  beyond = np.maximum(-x * cos - y * sin, 0)
  x, y = np.abs(x + 2 * cos * beyond), y + 2 * sin * beyond
  point = np.float32(_STAR) * radius
  # The edge from the point (0, point) to the inner corner at an angle of pi / 5.
  edge_x, edge_y = _STAR_INNER * _SIN, _STAR_INNER * _COS - 1
  length = math.hypot(edge_x, edge_y)
  return x * np.float32(-edge_y / length) + (y - point) * np.float32(edge_x / length)


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}
