"""Schedules of scales: increasing grids `(h, w)` that end at the latent grid.

Source: VIDEOAR section 2.4; the public tables of Infinity, by aspect ratio height/width.
"""

import itertools

Schedule = tuple[tuple[int, int], ...]

_TABLES = {
  1.000: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
  1.250: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
  1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
  1.500: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
  1.750: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
  2.000: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
  2.500: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
  3.000: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}


def parse_schedule(text: str) -> Schedule:
  """Parses `"1x1 2x2 4x4"` (height x width; a single number is a square) into a schedule.

  Raises:
    ValueError: a word is not a grid.
  """
  grids = []
  for word in text.split():
    parts = word.split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() and int(part) > 0 for part in parts):
      raise ValueError(f"schedule {text!r}: {word!r} is not a grid; write it as HEIGHTxWIDTH")
    grids.append((int(parts[0]), int(parts[-1])))
  return tuple(grids)


def _public_tables() -> dict[float, Schedule]:
  tall = {ratio: parse_schedule(text) for ratio, text in _TABLES.items()}
  # The public keys are cut off after three digits.
  wide = {
    int(1000 / ratio) / 1000: tuple((w, h) for h, w in schedule) for ratio, schedule in tall.items()
  }
  return wide | tall


PUBLIC: dict[float, Schedule] = _public_tables()


def public_schedule(grid: tuple[int, int]) -> Schedule | None:
  """Returns the public schedule that ends at `grid`, or None where there is none."""
  for schedule in PUBLIC.values():
    if grid in schedule:
      return schedule[: schedule.index(grid) + 1]
  return None


def default_schedule(grid: tuple[int, int]) -> Schedule:
  """Returns a schedule that ends at `grid`: the public one, or one of growing steps.

  For 8x8 it is 1 2 3 4 6 8, the choice for UCF-101 at 128 pixels.
  """
  public = public_schedule(grid)
  if public is not None and grid[0] * grid[1] > 64:
    return public
  longest = max(grid)
  sides = [side for side in (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64) if side < longest]
  scaled = [tuple(max(1, round(side * n / longest)) for n in grid) for side in [*sides, longest]]
  return tuple(dict.fromkeys(scaled))


def check_schedule(schedule: Schedule, grid: tuple[int, int]) -> None:
  """Checks that a schedule increases and ends at the latent grid.

  Raises:
    ValueError: it does not; names the offending scales.
  """
  if not schedule:
    raise ValueError("the schedule is empty; it must end at the latent grid")
  for small, large in itertools.pairwise(schedule):
    if not (small[0] <= large[0] and small[1] <= large[1] and small != large):
      raise ValueError(f"the schedule must increase, but {small} comes before {large}")
  if tuple(schedule[-1]) != tuple(grid):
    raise ValueError(
      f"the schedule ends at {schedule[-1]}, but the latent grid is {tuple(grid)}; "
      "let it end there, or change the resolution"
    )
