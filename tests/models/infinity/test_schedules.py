"""Public sizes of images: tokens, the nearest size, and the grid in which positions count."""

import pytest

from videoar_jax.models.infinity.layout import Layout, layout_of
from videoar_jax.models.infinity.schedules import (
  NUM_SCALES,
  largest_grid,
  nearest_resolution,
  num_tokens,
  public_schedules,
)
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.bsq.schedules import PUBLIC


def test_tokens_of_public_images():
  for ratio, wanted in (
    (1.0, (521, 2521, 6425, 10521)),
    (1.75, (472, 2628, 7220, 11252)),
    (0.571, (472, 2628, 7220, 11252)),
  ):
    schedule = PUBLIC[ratio]
    assert tuple(num_tokens(schedule[:num]) for num in NUM_SCALES.values()) == wanted
  for grid, schedule in public_schedules().items():
    assert schedule[-1] == grid and schedule[0] == (1, 1)
  assert len(public_schedules()) == 15 * 4


@pytest.mark.parametrize(
  ("wanted", "nearest"),
  [
    ((1024, 1024), (1024, 1024)),
    ((1000, 1000), (1024, 1024)),
    ((300, 300), (256, 256)),
    ((720, 1280), (768, 1344)),
    ((1280, 720), (1344, 768)),
    ((600, 1100), (640, 1120)),
    # Longer than any public ratio: the longest one, of about as many pixels.
    ((200, 2000), (288, 864)),
  ],
)
def test_the_nearest_public_size(wanted, nearest):
  assert nearest_resolution(wanted) == nearest


def test_positions_count_in_the_largest_image():
  small, large = PUBLIC[1.5][:7], PUBLIC[1.5]
  assert largest_grid(small) == largest_grid(large[:10]) == largest_grid(large) == (78, 52)
  assert largest_grid(((1, 1), (3, 2))) == (3, 2)
  positions = Layout(small).positions
  # The last scale of 21x14: the first row and column are 0, the last ones at 20 of 21 and 13 of 14.
  assert positions[-1].tolist() == [round(20 * 78 / 21), round(13 * 52 / 14)]
  # The nearest row and column, not the one before: 4 * 78 / 21 is 14.9, 13 * 52 / 14 is 48.3.
  assert positions[-(17 * 14)].tolist() == [15, 0] and positions[-1].tolist() == [74, 48]
  assert Layout(small, rope_grid="scale").positions[-1].tolist() == [20, 13]


def test_tokens_of_several_cells():
  """The public tables count tokens, an explicit schedule counts cells."""
  config = BSQConfig(num_bits=4, strides=((1, 2),) * 3, multipliers=(1, 2, 4, 4))
  layout = layout_of(config, (256, 256), 2)
  assert layout.grids == PUBLIC[1.0][:7] and layout.cell_grids[-1] == (32, 32)
  explicit = BSQConfig(
    num_bits=4, strides=((1, 2),) * 3, multipliers=(1, 2, 4, 4), schedule="2 4 8"
  )
  assert layout_of(explicit, (64, 64), 2).grids == ((1, 1), (2, 2), (4, 4))
  assert layout_of(explicit, (64, 64), 2).slice_of(2) == slice(5, 21)
  for schedule, resolution, text in (
    ("1 4 8", (64, 64), "does not divide all scales"),
    ("2 4 8", (64, 72), "does not divide the 8x9 cells"),
    ("4 8", (64, 64), "must be a single token"),
  ):
    own = BSQConfig(num_bits=4, strides=((1, 2),) * 3, multipliers=(1, 2, 4, 4), schedule=schedule)
    with pytest.raises(ValueError, match=text):
      layout_of(own, resolution, 2)
