"""Scales of InfinityStar: public tables, and schedules of clips."""

import dataclasses
import json

import pytest
import star_tokenizer_golden as golden

from videoar_jax.tokenizers.star import schedules


def test_grids_of_wide_videos_are_the_public_ones():
  text = "1x1 2x3 2x4 3x5 4x7 4x8 5x9 6x11 8x13 9x16 12x21 18x32 24x43 30x53 45x80"
  grids = tuple(tuple(map(int, word.split("x"))) for word in text.split())
  for name, num_scales in (("0.06M", 11), ("0.25M", 13), ("0.40M", 14), ("0.90M", 15)):
    assert schedules.public_grids(name, 9 / 16) == grids[:num_scales]
  # Public code asks for 0.571, which is in no table, and takes the nearest ratio.
  assert schedules.public_grids("0.90M", 0.571) == grids
  assert schedules.public_grids("0.90M", 16 / 9) == tuple((w, h) for h, w in grids)


@pytest.mark.golden
@pytest.mark.parametrize("name", golden.cases("d_scale_table*.json"))
def test_all_grids_are_the_public_ones(name):
  table = json.loads((golden.FOLDER / name).read_text())
  ours = {str(key): [list(grid) for grid in grids] for key, grids in schedules.PUBLIC.items()}
  assert ours == table["ratio_to_hw_15_scales"]
  assert table["n_scales"] == schedules.NUM_SCALES
  assert schedules.released_pyramid("0.40M", 1.0).clip_length == table["clip_latent_frames"]


def test_the_public_grids_that_end_at_a_latent_grid():
  for ratio, name in ((0.562, "0.40M"), (1.777, "0.90M"), (1.0, "0.06M")):
    grids = schedules.public_grids(name, ratio)
    assert schedules.public_grids_of(grids[-1]) == (name, grids)
  assert schedules.public_grids_of((5, 7)) is None


def test_released_schedules_have_the_public_numbers_of_steps_and_tokens():
  def steps(scales):
    return sum(scale.repetitions for scale in scales)

  def tokens(scales):
    return sum(scale.repetitions * scale.num_tokens for scale in scales)

  for name, image, clip in (
    ("0.40M", (42, 11697), (39, 149700)),
    ("0.90M", (45, 22497), (40, 221700)),
  ):
    schedule = schedules.released_pyramid(name, 9 / 16).schedule(41)
    for pyramid, (num_steps, num_tokens) in enumerate((image, clip, clip)):
      scales = [scale for scale in schedule if scale.pyramid == pyramid]
      assert (steps(scales), tokens(scales)) == (num_steps, num_tokens)
      assert [scale.is_last for scale in scales].index(True) == len(scales) - 1
  num_semantic = {"0.40M": 11, "0.90M": 12}
  for ratio in schedules.PUBLIC:
    for name, count in num_semantic.items():
      scales = schedules.released_pyramid(name, ratio).schedule(1)
      assert [scale.num_bits for scale in scales] == [16] * count + [64] * (len(scales) - count)


def test_clips_follow_the_first_frame_and_the_last_one_may_be_short():
  pyramid = dataclasses.replace(schedules.released_pyramid("0.40M", 1.0), clip_length=5)
  frames = [(scale.start, scale.stop) for scale in pyramid.schedule(9) if scale.is_last]
  assert frames == [(0, 1), (1, 6), (6, 9)]
  assert [scale.stop for scale in pyramid.schedule(1) if scale.is_last] == [1]


def test_bad_settings_name_the_field():
  pyramid = schedules.released_pyramid("0.40M", 1.0)
  with pytest.raises(ValueError, match="num_latents=0"):
    pyramid.schedule(0)
  for field, value in (
    ("grids", ((2, 2), (1, 1))),
    ("image_repetitions", (1, 2)),
    ("clip_repetitions", (0,) * 14),
    ("clip_length", 0),
    ("semantic_bits", 65),
  ):
    with pytest.raises(ValueError, match=field):
      dataclasses.replace(pyramid, **{field: value})
  with pytest.raises(ValueError, match=r"480p.*0.06M"):
    schedules.public_grids("480p", 1.0)
  with pytest.raises(ValueError, match=r"0.06M.*0.40M, 0.90M"):
    schedules.released_pyramid("0.06M", 1.0)
