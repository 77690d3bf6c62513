"""Schedules of scales: public tables, the one for UCF-101, and what is refused."""

import pytest

from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.bsq.family import BSQ
from videoar_jax.tokenizers.bsq.schedules import (
  PUBLIC,
  check_schedule,
  default_schedule,
  parse_schedule,
)
from videoar_jax.tokenizers.bsq.task import TokenizerLossConfig


def test_public_tables_and_their_transposes():
  assert len(PUBLIC) == 15 and all(len(schedule) == 13 for schedule in PUBLIC.values())
  assert PUBLIC[0.571][7:10] == ((16, 28), (20, 35), (24, 42))
  for schedule in PUBLIC.values():
    check_schedule(schedule, schedule[-1])


def test_defaults():
  assert default_schedule((8, 8)) == parse_schedule("1 2 3 4 6 8")
  assert default_schedule((24, 42)) == PUBLIC[0.571][:10]
  for grid in ((1, 1), (3, 5), (7, 2), (11, 11)):
    check_schedule(default_schedule(grid), grid)


@pytest.mark.parametrize(
  ("text", "message"),
  [("1 2 2 4", "must increase"), ("1 3 2 4", "must increase"), ("1 2", "ends at"), ("", "empty")],
)
def test_bad_schedules_are_named(text, message):
  with pytest.raises(ValueError, match=message):
    check_schedule(parse_schedule(text), (4, 4))


def test_a_word_that_is_no_grid_is_named():
  with pytest.raises(ValueError, match="'2y3'"):
    parse_schedule("1 2y3")


def test_a_schedule_that_does_not_fit_the_clips_of_the_run_is_named():
  """Nor is it silently another one, as for stages of other resolutions."""
  config = BSQConfig(schedule="1 2 4")
  with pytest.raises(ValueError, match=r"ends at \(4, 4\), but the latent grid is \(8, 8\)"):
    BSQ().check(config, None, (128, 128))
  BSQ().check(config, None, (64, 64))
  BSQ().check(config, TokenizerLossConfig(), (128, 128))
  BSQ().check(BSQConfig(), None, (128, 128))
