"""Scales of InfinityStar's quantizer.

The first latent frame is coded by a pyramid of its own; each clip of up to 20 more latent frames by
another one. A pyramid is a row of grids that end at the latent grid. All of its scales have all
frames of the clip: there is no coarse to fine in time. At each scale the residual is quantized
several times. A cell of a coarse scale, called semantic, has 16 bits; one of a detail scale has a
bit for each channel of the latents.

Source: INFINITY sections 3.2, 6.3, S5 and S9.
"""

import dataclasses
import itertools
import math

Grid = tuple[int, int]

# Sides of the square grids. Those of other aspect ratios have about the same number of cells.
_SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 40, 60)
# Ratios height / width; the table also has their transposes.
_RATIOS = (1, 100 / 116, 3 / 4, 2 / 3, 9 / 16, 1 / 2, 2 / 5, 1 / 3)
# Scales by the size of a frame in pixels; 0.40M is called 480p, 0.90M is called 720p.
NUM_SCALES = {"0.06M": 11, "0.25M": 13, "0.40M": 14, "0.90M": 15}
_LEAST_CELLS = 192  # Three quarters of the smallest public grids.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
  """One scale of a pyramid.

  Attributes:
    start: first latent frame that the pyramid codes.
    num_frames: latent frames that it codes.
    grid: (h, w).
    num_bits: bits of a cell.
    is_detail: whether a cell has a bit for each channel of the latents.
    repetitions: how often the residual is quantized at this scale.
    pyramid: 0 for the first frame, then one for each clip.
    is_last: whether this is the pyramid's last scale, after which the sum of codes starts at zero.
  """

  start: int
  num_frames: int
  grid: Grid
  num_bits: int
  is_detail: bool
  repetitions: int
  pyramid: int
  is_last: bool

  @property
  def stop(self) -> int:
    """First latent frame after those that it codes."""
    return self.start + self.num_frames

  @property
  def num_tokens(self) -> int:
    """Cells of all frames."""
    return self.num_frames * self.grid[0] * self.grid[1]


Schedule = tuple[Scale, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pyramid:
  """What the schedules of clips of one resolution have in common.

  Attributes:
    grids: (h, w) of each scale, ending at the latent grid.
    image_repetitions: repetitions of each scale of the first frame.
    clip_repetitions: repetitions of each scale of a later clip.
    min_detail_tokens: cells of a frame from which on a scale is a detail scale.
    clip_length: latent frames of a clip; the last clip may be shorter.
    num_channels: channels of the latents.
    semantic_bits: bits of a cell of a semantic scale.
  """

  grids: tuple[Grid, ...]
  image_repetitions: tuple[int, ...]
  clip_repetitions: tuple[int, ...]
  min_detail_tokens: int
  clip_length: int = 20
  num_channels: int = 64
  semantic_bits: int = 16

  def __post_init__(self):
    if not self.grids or any(side < 1 for grid in self.grids for side in grid):
      raise ValueError(f"grids={self.grids} must be pairs of at least 1")
    for small, large in itertools.pairwise(self.grids):
      if not (small[0] <= large[0] and small[1] <= large[1] and small != large):
        raise ValueError(f"grids must increase, but {small} comes before {large}")
    for field in ("image_repetitions", "clip_repetitions"):
      counts = getattr(self, field)
      if len(counts) != len(self.grids) or min(counts) < 1:
        raise ValueError(
          f"{field}={counts} needs a number of at least 1 for each of the {len(self.grids)} grids"
        )
    for field in ("clip_length", "semantic_bits"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
    if self.num_channels < self.semantic_bits:
      raise ValueError(
        f"num_channels={self.num_channels} must be at least semantic_bits={self.semantic_bits}"
      )

  def schedule(self, num_latents: int) -> Schedule:
    """Returns the scales of a clip of `num_latents` frames, pyramid after pyramid.

    Raises:
      ValueError: there are no frames.
    """
    if num_latents < 1:
      raise ValueError(f"num_latents={num_latents} must be at least 1")
    starts = [0, *range(1, num_latents, self.clip_length), num_latents]
    return tuple(
      scale
      for pyramid, (start, stop) in enumerate(itertools.pairwise(starts))
      for scale in self._scales(pyramid, start, stop)
    )

  def whole(self, num_latents: int) -> Schedule:
    """Returns the scales of frames that a single pyramid codes, with the first frame's repetitions.

    Args:
      num_latents: latent frames.
    """
    return tuple(self._scales(0, 0, num_latents))

  def _scales(self, pyramid: int, start: int, stop: int) -> list[Scale]:
    repetitions = self.clip_repetitions if pyramid else self.image_repetitions
    scales = []
    for grid, count in zip(self.grids, repetitions, strict=True):
      is_detail = grid[0] * grid[1] >= self.min_detail_tokens
      scale = Scale(
        start=start,
        num_frames=stop - start,
        grid=grid,
        num_bits=self.num_channels if is_detail else self.semantic_bits,
        is_detail=is_detail,
        repetitions=count,
        pyramid=pyramid,
        is_last=grid == self.grids[-1],
      )
      scales.append(scale)
    return scales


def _grids(ratio: float) -> tuple[Grid, ...]:
  """Returns the grids of a ratio; halves are rounded to even, in double precision."""
  grids = []
  for side in _SIDES:
    width = math.sqrt(side**2 / ratio)
    grids.append((round(width * ratio), round(width)))
  return tuple(grids)


def _table() -> dict[float, tuple[Grid, ...]]:
  table = {}
  for ratio in _RATIOS:
    grids = _grids(ratio)
    height, width = grids[-1]
    table[_truncated(height / width)] = grids
    table[_truncated(1 / (height / width))] = tuple((w, h) for h, w in grids)
  return table


def _truncated(ratio: float) -> float:
  return int(ratio * 1000) / 1000


# The grids of all scales by the ratio height / width of the last one, cut to three digits.
PUBLIC: dict[float, tuple[Grid, ...]] = _table()


def public_grids(name: str, ratio: float) -> tuple[Grid, ...]:
  """Returns the public grids of a size, of the ratio height / width that is nearest.

  Raises:
    ValueError: there is no such size; names those that there are.
  """
  if name not in NUM_SCALES:
    raise ValueError(f"{name!r} is no size; take one of {', '.join(NUM_SCALES)}")
  return PUBLIC[_nearest(ratio)][: NUM_SCALES[name]]


def _nearest(ratio: float) -> float:
  """Returns the ratio of the table that is nearest."""
  return min(PUBLIC, key=lambda key: abs(ratio - key))


def public_grids_of(grid: Grid) -> tuple[str, tuple[Grid, ...]] | None:
  """Returns the size and the public grids that end at a latent grid; None if there are none."""
  for grids in PUBLIC.values():
    for name, num_scales in NUM_SCALES.items():
      if grids[num_scales - 1] == grid:
        return name, grids[:num_scales]
  return None


def nearest_grid(h: float, w: float) -> Grid:
  """Returns the public latent grid nearest to h x w cells: in aspect ratio, then in size."""
  grids = PUBLIC[_nearest(h / w)]
  known = [grids[num - 1] for num in NUM_SCALES.values()]
  return min(known, key=lambda other: abs(math.log(other[0] * other[1] / (h * w))))


def nearest_grids(grid: Grid) -> tuple[str, tuple[Grid, ...]] | None:
  """Returns the size and the grids of the public ones nearest to a latent grid, ending at it.

  Those that do not fit into it are left out; None if it is far smaller than all public ones.
  """
  if (found := public_grids_of(grid)) is not None:
    return found
  h, w = grid
  if h * w < _LEAST_CELLS:
    return None
  name, grids = public_grids_of(nearest_grid(h, w))
  fitting = dict.fromkeys((min(y, h), min(x, w)) for y, x in grids[:-1])
  return name, (*(other for other in fitting if other != (h, w)), (h, w))


# Repetitions of the released models. All have three but the clips' last scales.
_CLIP_ENDS = {"0.40M": (2, 1), "0.90M": (2, 1, 1)}
_MIN_DETAIL_TOKENS = {"0.40M": 350, "0.90M": 750}


def released_pyramid(name: str, ratio: float) -> Pyramid:
  """Returns the pyramid of the released models for video, 480p ("0.40M") or 720p ("0.90M").

  Args:
    name: the size.
    ratio: height / width of the frames; the nearest one of the table is taken.
  Raises:
    ValueError: no model of that size was released.
  """
  if name not in _CLIP_ENDS:
    raise ValueError(f"no model of size {name!r} was released; take one of {', '.join(_CLIP_ENDS)}")
  grids, ends = public_grids(name, ratio), _CLIP_ENDS[name]
  return Pyramid(
    grids=grids,
    image_repetitions=(3,) * len(grids),
    clip_repetitions=(3,) * (len(grids) - len(ends)) + ends,
    min_detail_tokens=_MIN_DETAIL_TOKENS[name],
  )
