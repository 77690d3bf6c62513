"""Sequences of InfinityStar: tokens, positions, who sees whom, and parts of them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.models.infinity_star import task
from videoar_jax.models.infinity_star.config import InfinityStarConfig
from videoar_jax.models.infinity_star.layout import Layout, positions
from videoar_jax.models.infinity_star.sequences import layout_of, released_parts
from videoar_jax.tokenizers.star.schedules import Pyramid, Scale, released_pyramid

PYRAMID = Pyramid(
  grids=((1, 1), (2, 3), (4, 6)),
  image_repetitions=(2, 1, 3),
  clip_repetitions=(1, 2, 1),
  min_detail_tokens=6,
  clip_length=3,
)
LAYOUT = Layout(text_length=5, schedule=PYRAMID.schedule(6))


def test_public_sequences_have_the_published_lengths():
  config = InfinityStarConfig()
  for num_latents, num_tokens in ((5, 19_495), (21, 81_879), (41, 159_859)):
    layout = layout_of(config, (num_latents, 30, 53))
    assert (layout.num_tokens, layout.length) == (num_tokens, num_tokens + 512)
  layout = layout_of(config, (21, 30, 53))
  repetitions = [scale.repetitions for scale in layout.schedule]
  assert repetitions == [3] * 14 + [3] * 12 + [2, 1]
  assert [scale.is_detail for scale in layout.schedule[:14]] == [False] * 11 + [True] * 3
  # Ids go on where those of the first frame ended.
  assert layout.first_ids[14] == 512 + 42


def test_sizes_without_a_table_have_the_scales_of_the_nearest_one():
  """Up to their own grid, with the released repetitions, parts and kinds of scales."""
  public, near = (layout_of(InfinityStarConfig(), (21, 30, w)).schedule for w in (53, 52))
  for ours, other in zip(near, public, strict=True):
    grid = other.grid if other.grid != (30, 53) else (30, 52)
    assert ours == dataclasses.replace(other, grid=grid)
  assert len(released_parts(near)) == 6
  # Grids that do not fit are left out; far smaller ones have steps of their own.
  grids = InfinityStarConfig().pyramid((17, 17)).grids
  assert grids == (*((s, s) for s in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12)), (17, 17))
  flat = InfinityStarConfig().pyramid((6, 60)).grids
  assert flat[-1] == (6, 60) and max(h for h, _ in flat) == 6
  assert InfinityStarConfig().pyramid((2, 2)).grids == ((1, 1), (2, 2))


def test_ids_count_all_repetitions_also_of_scales_that_are_left_out():
  assert LAYOUT.first_ids == (5, 7, 8, 11, 12, 14, 15, 16, 18)
  part = dataclasses.replace(LAYOUT, kept=(0, 2, 4))
  assert part.first_ids == (5, 8, 12)
  own = np.concatenate([LAYOUT.positions[LAYOUT.slices[s]] for s in part.kept])
  np.testing.assert_array_equal(part.positions[: part.num_tokens], own)
  text = [[i, 0, 0, 0] for i in range(5)]
  np.testing.assert_array_equal(part.positions[part.num_tokens :], text)


def test_positions_are_those_of_the_largest_scale():
  expected = [(12, frame, 2 * y, 2 * x) for frame in (1, 2, 3) for y in range(2) for x in range(3)]
  np.testing.assert_array_equal(LAYOUT.positions[LAYOUT.slices[4]], expected)
  # In double precision, 7 x 57 / 14 = 28.5 would be rounded to 28.
  grids = released_pyramid("0.40M", 28 / 57).grids
  scale = next(
    x
    for x in Layout(512, released_pyramid("0.40M", 28 / 57).schedule(1)).schedule
    if x.grid == (7, 14)
  )
  assert grids[-1] == (28, 57) and positions(scale, (28, 57), 0)[7, 3] == 29


def test_a_scale_sees_itself_the_prompt_and_the_largest_scale_before():
  names = [(scale.pyramid, s % 3) for s, scale in enumerate(LAYOUT.schedule)] + ["text"]
  assert [scale.num_frames for scale in LAYOUT.schedule] == [1] * 3 + [3] * 3 + [2] * 3
  for (i, query), (k, key) in itertools.product(enumerate(names), repeat=2):
    seen = {"text"} if query == "text" else {"text", query, (query[0] - 1, 2)}
    assert LAYOUT.rule.table[i, k] == (key in seen)
  with pytest.raises(ValueError, match="scale 3 sees scale 2, which is left out"):
    dataclasses.replace(LAYOUT, kept=(0, 1, 3))


def test_tokens_of_a_kind_are_found():
  tokens = np.arange(LAYOUT.num_tokens)
  kinds = np.array([scale.is_detail for scale in LAYOUT.schedule])[LAYOUT.scale_of_token]
  for is_detail in (False, True):
    found = np.concatenate([tokens[run] for run in LAYOUT.runs(is_detail)])
    np.testing.assert_array_equal(found, tokens[kinds == is_detail])


def test_weights_of_scales():
  weights = LAYOUT.weights(4.0)
  for scale, run in zip(LAYOUT.schedule, LAYOUT.slices, strict=True):
    np.testing.assert_allclose(weights[run], (48 / scale.num_tokens) ** 0.2, rtol=1e-6)
  # As of the whole clip, also for a part of it.
  part = dataclasses.replace(LAYOUT, kept=(0, 1))
  np.testing.assert_array_equal(part.weights(4.0), weights[: part.num_tokens])
  assert (LAYOUT.weights(0.0) == 1).all()


def many_scales(num_latents: int, num: int = 14):
  grids = [(1 + s // 2, 1 + (s + 1) // 2) for s in range(num)]
  pyramid = Pyramid(
    grids=tuple(grids),
    image_repetitions=(3,) * num,
    clip_repetitions=(2,) * num,
    min_detail_tokens=20,
    clip_length=2,
  )
  return pyramid.schedule(num_latents)


def test_released_parts_are_sequences():
  for num_latents, num in ((3, 6), (5, 11)):
    schedule = many_scales(num_latents)
    parts = released_parts(schedule)
    assert len(parts) == num and sum(part.share for part in parts) == pytest.approx(1)
    for part in parts:
      Layout(512, schedule, part.kept)
  clip = [part.kept for part in released_parts(many_scales(3))]
  assert clip[2] == tuple(range(25)) and clip[5] == (*range(22), 27)
  for schedule in (many_scales(1), many_scales(3, 5), many_scales(7)):
    with pytest.raises(ValueError, match="parts='released' needs one or two clips"):
      released_parts(schedule)


def test_a_step_takes_one_part_by_its_share():
  layout = Layout(512, many_scales(3))
  sizes = [
    dataclasses.replace(layout, kept=x.kept).num_tokens for x in released_parts(layout.schedule)
  ]

  def part_loss(layout, weight):
    return layout.num_tokens * weight**2, weight

  def step(key):
    return task._one_part(part_loss, layout, jnp.float32(3.0), key)[0]

  def slope(key):
    return jax.grad(lambda w: task._one_part(part_loss, layout, w, key)[0])(jnp.float32(3.0))

  keys = jax.random.split(jax.random.key(0), 400)
  found = np.asarray(jax.jit(jax.vmap(step))(keys)) / 9
  shares = [np.mean(found == size) for size in sizes]
  np.testing.assert_allclose(
    shares, [part.share for part in released_parts(layout.schedule)], atol=0.07
  )
  np.testing.assert_allclose(jax.jit(jax.vmap(slope))(keys[:50]), 6 * found[:50])


def test_settings_that_fit_no_scales_are_named():
  assert InfinityStarConfig().pyramid((45, 80)).min_detail_tokens == 750
  own = InfinityStarConfig(schedule="1 2 4", clip_length=2, min_detail_tokens=4, semantic_bits=4)
  assert own.pyramid((4, 4)).grids == ((1, 1), (2, 2), (4, 4))
  assert own.pyramid((4, 4)).clip_repetitions == (3, 2, 1)
  # Other sizes have growing steps.
  assert own.pyramid((2, 2)).grids == ((1, 1), (2, 2))
  assert isinstance(own.pyramid((1, 1)).schedule(2)[0], Scale)
  with pytest.raises(ValueError, match=r"generator\.image_repetitions=\(3, 3\) needs a number"):
    InfinityStarConfig(image_repetitions=(3, 3)).pyramid((30, 53))
  with pytest.raises(ValueError, match=r"generator\.head_dim=12 must be a multiple of 8"):
    InfinityStarConfig(head_dim=12)
  with pytest.raises(ValueError, match=r"generator\.num_kv_heads=3 must divide num_heads=32"):
    InfinityStarConfig(num_kv_heads=3)
