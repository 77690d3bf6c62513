"""Random choices for a clip: rate, crop, flip, caption; shapes by aspect ratio."""

import collections
import json

import numpy as np
import pytest
from media_files import frame_numbers, write_video
from PIL import Image

from videoar_jax.data import buckets
from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.data.sources.base import EncodedSource
from videoar_jax.data.sources.captions import first_sentence
from videoar_jax.text.tokenizers import make_text_encoder
from videoar_jax.tokenizers.bsq.schedules import PUBLIC


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A video with numbered frames, 4 s at 30 per second, and one of 1 s; three captions and one."""
  folder = tmp_path_factory.mktemp("draws")
  write_video(folder / "long.mp4", 120, 30)
  write_video(folder / "short.mp4", 31, 30)
  lines = [{"file": "long.mp4", "captions": ["a", "b", "c"]}, {"file": "short.mp4", "caption": "d"}]
  (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
  return folder


def make(folder, split="train", **options):
  settings = {"num_frames": 5, "resolution": (32, 64), "frame_rate": 4.0} | options
  return make_source(DataConfig(source="folder", path=str(folder), **settings), split)


def test_frame_rates_are_drawn_of_those_that_fit(folder):
  source = make(folder, frame_rates=(2.0, 4.0, 15.0))
  rates = {0: collections.Counter(), 1: collections.Counter()}
  for i in range(120):
    rates[i % 2][rate_of(source[i])] += 1
  # 5 frames take 2, 1 and 4/15 s.
  assert set(rates[0]) == {2, 4, 15} and set(rates[1]) == {4, 15}
  assert min(rates[0].values()) > 10 and min(rates[1].values()) > 18
  test = make(folder, "test", frame_rates=(2.0, 15.0))
  assert {rate_of(test[i]) for i in range(2)} == {4}


def rate_of(item):
  """Reads the frame rate from the numbers of a clip's frames."""
  return round(30 / np.diff(frame_numbers(item["video"])).mean())


def test_captions_are_drawn_and_dropped(folder):
  source = make(folder, p_drop_caption=0.25)
  seen = collections.Counter(source[2 * i]["caption"] for i in range(400))
  assert set(seen) == {"a", "b", "c", ""} and 70 < seen[""] < 130
  assert max(seen["a"], seen["b"], seen["c"]) < 135
  assert [source[i]["caption"] for i in range(20)] == [source[i]["caption"] for i in range(20)]
  assert source.known_captions() == ["a", "b", "c", "d"]
  test = make(folder, "test", p_drop_caption=1.0)
  assert [test[0]["caption"], test[1]["caption"]] == ["a", "d"]


def test_captions_are_cut_to_their_first_sentence(tmp_path):
  """Half of them, in training, if a sample has one alone; and all are checked before it begins."""
  long, several = "A fox runs. It is 3.5 m away!", ["One. Two.", "Three? Four."]
  for name in ("a.mp4", "b.mp4"):
    write_video(tmp_path / name, 40, 30)
  lines = [{"file": "a.mp4", "caption": long}, {"file": "b.mp4", "captions": several}]
  (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
  source, seen, checked = make(tmp_path, p_short_caption=0.5), collections.Counter(), []
  seen.update(source[i]["caption"] for i in range(200))
  assert set(seen) == {long, "A fox runs.", *several} and 30 < seen[long] < 70
  source.check_captions(lambda caption: checked.append(caption) or np.zeros(1))
  assert set(checked) == set(seen)
  assert make(tmp_path, "test", p_short_caption=1.0)[0]["caption"] == long
  sentences = {"No end": "No end", "A.b c": "A.b c", "Hi!\nYou?": "Hi!", "Why? So.": "Why?"}
  assert {text: first_sentence(text) for text in sentences} == sentences


def test_dropped_captions_of_classes_are_the_null_class(folder):
  encoder = make_text_encoder("classes", 1, ("a", "b", "c", "d"))
  source = EncodedSource(make(folder, p_drop_caption=0.5), encoder.encode)
  for item in (source[i] for i in range(20)):
    expected = encoder.encode(item["caption"]) if item["caption"] else encoder.null()
    np.testing.assert_array_equal(item["text"], expected)
  assert {source[i]["caption"] for i in range(20)} > {""}


def test_crops_and_flips_show_every_part(tmp_path):
  """An image whose columns encode their position, four times as wide as high."""
  columns = np.repeat(np.arange(128, dtype=np.uint8)[None] * 2, 32, axis=0)
  Image.fromarray(np.stack([columns] * 3, axis=-1)).save(tmp_path / "wide.png")
  one = {"num_frames": 1, "resolution": (32, 32)}
  plain, drawn = make(tmp_path, **one), make(tmp_path, **one, is_flipped=True)
  assert np.abs(plain[0]["video"][0, 0, :, 0] - 2.0 * np.arange(48, 80)).max() < 4
  is_flipped = [
    bool(drawn[i]["video"][0, 0, 0, 0] > drawn[i]["video"][0, 0, -1, 0]) for i in range(60)
  ]
  assert 15 < sum(is_flipped) < 45
  for i in range(10):
    other = plain[i]["video"][:, :, ::-1] if is_flipped[i] else plain[i]["video"]
    np.testing.assert_array_equal(drawn[i]["video"], other)
  cropped = make(tmp_path, **one, is_randomly_cropped=True)
  left = [int(cropped[i]["video"][0, 0, 0, 0]) // 2 for i in range(80)]
  assert min(left) < 12 and max(left) > 84 and len(set(left)) > 30
  assert all(np.ptp(cropped[i]["video"][0, 0, :, 0].astype(int)) in range(58, 66) for i in range(9))
  test = make(tmp_path, "test", **one, is_randomly_cropped=True, is_flipped=True)
  np.testing.assert_array_equal(test[0]["video"], plain[0]["video"])


def test_a_source_is_reshaped_without_reading_it_anew(folder):
  source = make(folder)
  other = source.reshaped(3, (16, 32))
  assert other[0]["video"].shape == (3, 16, 32, 3) and source[0]["video"].shape == (5, 32, 64, 3)
  opened = make(folder, num_frames=3, resolution=(16, 32))
  np.testing.assert_array_equal(other[0]["video"], opened[0]["video"])
  longer = source.reshaped(12, (16, 32))  # 2.75 s: the short one is replaced, and listed for both.
  assert longer[1]["caption"] in "abc" and source.skipped == longer.skipped != []


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"p_drop_caption": 1.5}, r"data\.p_drop_caption is 1.5"),
    ({"p_short_caption": -1}, r"data\.p_short_caption is -1"),
    ({"frame_rates": (8.0, 0.0)}, r"data\.frame_rates"),
    ({"source": "sprites", "path": None, "is_flipped": True}, r"data\.is_flipped applies to files"),
  ],
)
def test_options_that_cannot_be_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    DataConfig(**{"source": "folder", "path": "x"} | options)


@pytest.mark.parametrize("pixels", [128, 256, 512])
def test_sizes_are_those_of_the_public_schedules(pixels):
  sizes, cells = buckets.sizes(pixels), (pixels // 16) ** 2
  assert len(sizes) == len(PUBLIC) == 15
  for key, schedule in PUBLIC.items():
    # Public keys are cut off after three digits, ours are rounded.
    ratio = min(sizes, key=lambda own, key=key: abs(own - key))
    assert abs(ratio - key) < 0.0011
    nearest = min(schedule, key=lambda grid: abs(np.log(grid[0] * grid[1] / cells)))
    assert sizes[ratio] == (16 * nearest[0], 16 * nearest[1])
    assert buckets.size_of(pixels, ratio) == sizes[ratio]
  with pytest.raises(ValueError, match="pixels=100 has no table; use one of 128, 256, 512"):
    buckets.sizes(100)
  with pytest.raises(ValueError, match=r"ratio 0.6 .*known are 0.333, .*0.571.* 3"):
    buckets.size_of(256, 0.6)


def test_the_nearest_resolution_is_cropped_least():
  resolutions = [(16, 16), (16, 32), (32, 16)]
  ratios = [1.0, 1.4, 1.42, 0.72, 0.7, 9.0, 0.1]
  assert buckets.nearest(ratios, resolutions).tolist() == [0, 0, 2, 0, 1, 2, 1]
