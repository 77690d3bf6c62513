"""The sequence of an image: scale after scale, each row-major, and its rotary positions.

`[start | scale 1 | scale 2 | ...]`. The first scale is a single token, whose input is the prompt.

Source: INFINITY sections 5.3 and 5.5.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from videoar_jax.models.infinity.schedules import largest_grid
from videoar_jax.nn.mask import BlockCausalMask
from videoar_jax.tokenizers.bsq.schedules import Schedule, default_schedule


@dataclasses.dataclass(frozen=True)
class Layout:
  """Static layout of an image's tokens.

  Attributes:
    grids: (h, w) of each scale's tokens; the first one is 1x1.
    patch_size: `p`, side of a token in latent cells.
    rope_grid: grid in which positions are counted: "scale", each scale's own, or "largest", that
      of the largest public image of the same aspect ratio.
  """

  grids: Schedule
  patch_size: int = 1
  rope_grid: str = "largest"

  def __post_init__(self):
    if len(self.grids) < 2 or self.grids[0] != (1, 1):
      p = self.patch_size
      raise ValueError(
        f"tokenizer.schedule: scales of {self.grids} tokens; the first one must be a single token, "
        f"{p}x{p} cells, and others must follow"
      )

  @property
  def num_scales(self) -> int:
    """`K`."""
    return len(self.grids)

  @property
  def sizes(self) -> tuple[int, ...]:
    """Tokens of each scale."""
    return tuple(h * w for h, w in self.grids)

  @property
  def length(self) -> int:
    """`l`, tokens of all scales."""
    return sum(self.sizes)

  @property
  def cell_grids(self) -> Schedule:
    """(h, w) of each scale's latent cells."""
    p = self.patch_size
    return tuple((h * p, w * p) for h, w in self.grids)

  def slice_of(self, scale: int) -> slice:
    """Returns the slice of a scale's tokens."""
    start = sum(self.sizes[:scale])
    return slice(start, start + self.sizes[scale])

  @functools.cached_property
  def scale_ids(self) -> Int[np.ndarray, "l"]:
    """Scale of each token."""
    return np.repeat(np.arange(self.num_scales), self.sizes)

  @functools.cached_property
  def positions(self) -> Int[np.ndarray, "l 2"]:
    """Row and column of each token."""
    top, positions = largest_grid(self.grids), []
    for grid in self.grids:
      cells = np.stack(np.mgrid[: grid[0], : grid[1]], -1).reshape(-1, 2)
      if self.rope_grid == "largest":
        # In float32 and half to even, as in the public code: other types round elsewhere.
        step = np.array([whole / own for whole, own in zip(top, grid, strict=True)], np.float32)
        cells = np.round(cells.astype(np.float32) * step).astype(cells.dtype)
      positions.append(cells)
    return np.concatenate(positions)

  def angles(self, head_dim: int) -> Float[np.ndarray, "l p"]:
    """Returns the rotary angle of each pair of a head: half of them by row, half by column."""
    num = head_dim // 4
    frequencies = (10000.0 ** (-np.arange(num) / num)).astype(np.float32)
    angles = self.positions[:, :, None].astype(np.float32) * frequencies
    return angles.reshape(self.length, 2 * num)

  def mask(self) -> BlockCausalMask:
    """Returns the attention mask: a token sees its own scale and those before."""
    return BlockCausalMask(1, False, 1, self.sizes[1:])


def layout_of(
  tokenizer, resolution: tuple[int, int], patch_size: int = 1, rope_grid: str = "largest"
) -> Layout:
  """Returns the layout of an image.

  Args:
    tokenizer: its config.
    resolution: (H, W) in pixels.
    patch_size, rope_grid: see `Layout`.
  Raises:
    ValueError: tokens do not divide the latent, or a scale of the tokenizer.
  """
  p = patch_size
  _, h, w = tokenizer.latent_shape(1, resolution)
  if h % p or w % p:
    raise ValueError(
      f"generator.patch_size={p} does not divide the {h}x{w} cells of {resolution[0]}x"
      f"{resolution[1]} pixels; take another resolution"
    )
  cells = tokenizer.scales(resolution)
  if p > 1 and cells == default_schedule((h, w)):
    # The public tables count tokens.
    grids = default_schedule((h // p, w // p))
  elif any(side % p for grid in cells for side in grid):
    raise ValueError(
      f"generator.patch_size={p} does not divide all scales of tokenizer.schedule="
      f"{tokenizer.schedule!r}; change one of them"
    )
  else:
    grids = tuple((y // p, x // p) for y, x in cells)
  return Layout(grids, p, rope_grid)
