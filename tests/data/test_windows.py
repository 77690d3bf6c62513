"""Windows that are cut out of clips to train on."""

import dataclasses

import numpy as np
import pytest
from tiny_runs import make_config

from videoar_jax.data.pipeline import DataConfig, make_iterator, make_source, windows_of
from videoar_jax.data.windows import Windows
from videoar_jax.experiment.parse import finalize

DATA = DataConfig(num_frames=3, resolution=(16, 24), crop_from=(32, 32), num_threads=0)


def batches(data, num):
  iterator = make_iterator(
    make_source(data, "train"),
    batch_size=4,
    seed=3,
    tokenize=lambda caption: np.zeros(1, np.int32),
    windows=windows_of(data),
    num_threads=0,
  )
  return [next(iterator) for _ in range(num)]


def test_windows_are_parts_of_the_whole_clips():
  whole = make_source(DATA, "train")
  found = set()
  for batch in batches(DATA, 8):
    assert batch["video"].shape == (4, 3, 16, 24, 3)
    for window, index in zip(batch["video"], batch["id"], strict=True):
      clip = whole[int(index)]["video"]
      assert clip.shape == (3, 32, 32, 3)
      corners = [
        (y, x)
        for y in range(17)
        for x in range(9)
        if (clip[:, y : y + 16, x : x + 24] == window).all()
      ]
      assert corners
      found.update(corners if len(corners) == 1 else [])
  assert len(found) > 10  # Not always the same window.


def test_windows_are_the_same_each_time():
  for one, other in zip(batches(DATA, 2), batches(DATA, 2), strict=True):
    np.testing.assert_array_equal(one["video"], other["video"])


def test_of_several_windows_the_one_with_most_contrast_is_taken():
  """An object in a corner is in the window far more often than with a single draw."""
  video = np.full((1, 64, 64, 3), 128, np.uint8)
  video[:, :8, :8] = 255

  def share(num):
    windows = Windows((16, 16), num)
    return np.mean([(windows.cut(video, i) == 255).any() for i in range(400)])

  one, four = share(1), share(4)
  assert 0.01 < one < 0.06  # 64 of the 2401 places show a part of it.
  assert four > 2.5 * one


def test_bad_settings_are_named():
  with pytest.raises(ValueError, match=r"crop_from is \(8, 32\), smaller than data\.resolution"):
    dataclasses.replace(DATA, crop_from=(8, 32))
  with pytest.raises(ValueError, match=r"data\.num_crops is 0"):
    dataclasses.replace(DATA, num_crops=0)
  with pytest.raises(ValueError, match=r"num_crops is 2, but data\.crop_from is not set"):
    dataclasses.replace(DATA, num_crops=2, crop_from=None)


@pytest.mark.parametrize(
  ("sections", "changes"),
  [
    (["data"], {}),
    (["stage.cache.data", "stage.generator.data"], {}),
    (["stage.generator.data"], {"stages": ("tokenizer", "generator")}),
  ],
)
def test_windows_are_for_tokenizer_stages_alone(sections, changes):
  config = make_config(**changes).to_dict()
  for section in sections:
    place = config
    for name in section.split("."):
      place = place.setdefault(name, {})
    place["crop_from"] = (32, 32)
  with pytest.raises(ValueError, match=rf"^{sections[0]}\.crop_from=\(32, 32\): windows are for"):
    finalize(config)
