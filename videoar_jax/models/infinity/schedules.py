"""The public schedules of images, by aspect ratio and number of pixels, and the nearest one.

The tables themselves, `tokenizers.bsq.schedules.PUBLIC`, count tokens. A token is 16 pixels wide:
one cell of the tokenizers of 16 pixels, 2x2 cells of the one of 8.

Source: INFINITY section 3.1.
"""

import math

from videoar_jax.tokenizers.bsq.schedules import PUBLIC, Schedule

# Scales of an image of about so many pixels.
NUM_SCALES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
TOKEN_PIXELS = 16


def public_schedules() -> dict[tuple[int, int], Schedule]:
  """Returns the schedule of every public image, by its last grid of tokens."""
  return {
    schedule[num - 1]: schedule[:num] for schedule in PUBLIC.values() for num in NUM_SCALES.values()
  }


def num_tokens(schedule: Schedule) -> int:
  """Returns the tokens of an image, over all scales."""
  return sum(h * w for h, w in schedule)


def nearest_resolution(resolution: tuple[int, int]) -> tuple[int, int]:
  """Returns the public (H, W) in pixels nearest to a resolution: in aspect ratio, then in size."""
  height, width = resolution
  ratio = min(PUBLIC, key=lambda known: abs(height / width - known))
  grids = [PUBLIC[ratio][num - 1] for num in NUM_SCALES.values()]
  cells = height * width / TOKEN_PIXELS**2
  h, w = min(grids, key=lambda grid: abs(math.log(grid[0] * grid[1] / cells)))
  return h * TOKEN_PIXELS, w * TOKEN_PIXELS


def largest_grid(schedule: Schedule) -> tuple[int, int]:
  """Returns the last grid of the longest public schedule of the same aspect ratio.

  For a schedule that is not public, its own.
  """
  if len(schedule) in NUM_SCALES.values():
    for whole in PUBLIC.values():
      if whole[: len(schedule)] == tuple(schedule):
        return whole[-1]
  return schedule[-1]
