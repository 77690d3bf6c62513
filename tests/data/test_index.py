"""An index of files, and its filter."""

import json

import numpy as np
import pyarrow
import pytest
from media_files import frame_numbers, write_video
from pyarrow import parquet

from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.data.sources.filters import parse_filter
from videoar_jax.data.sources.index import IndexSource, read_entries

CLIP = {"num_frames": 5, "frame_rate": 8.0, "resolution": (32, 64), "seed": 0, "clips_per_file": 1}
ENTRY = {"duration": 3.0, "width": 320, "tags": ["a", "b"], "score": {"looks": 5}, "name": "x"}


@pytest.mark.parametrize(
  "text",
  [
    "duration >= 3 and width < 400",
    "not (duration > 3 or width == 1)",
    "2 < duration <= 3 != 4",
    "1 < duration < 2",
    "'a' in tags and name not in ('y', 'z')",
    "score['looks'] * 2 - 1 == 9 and -width / 320 == -1",
    "name == 'y' or missing",
    "width + duration",
    "name in ['y']",
  ],
)
def test_a_filter_is_what_python_says(text):
  try:
    wanted = bool(eval(text, {}, dict(ENTRY)))  # The expressions are those above.
  except NameError:
    with pytest.raises(ValueError, match="no field 'missing'; there are duration, name"):
      parse_filter(text)(ENTRY)
    return
  assert parse_filter(text)(ENTRY) is wanted


@pytest.mark.parametrize(
  ("text", "piece"),
  [
    ("__import__('os').system('x')", "not allowed"),
    ("name.upper() == 'X'", "not allowed"),
    ("[x for x in tags]", "not allowed"),
    ("(lambda: 1)()", "not allowed"),
    ("2 ** 9", "not allowed"),
    ("f'{name}'", "not allowed"),
    ("width >", "not a valid expression"),
    ("width = 3", "not a valid expression"),
    ("name > 3", "not supported"),
    ("name * 999999999", "'x' is not a number"),
    ("width / 0", "division"),
    ("score['other'] > 1", "no 'other' in score"),
    ("width['x']", "no 'x' in width"),
  ],
)
def test_what_a_filter_may_not_say_is_named(text, piece):
  with pytest.raises(ValueError, match=rf"data\.filter=(.|\n)*{piece}"):
    parse_filter(text)(ENTRY)


@pytest.fixture
def folder(tmp_path):
  entries = []
  for value in range(4):
    write_video(tmp_path / "media" / f"{value}.mp4", 40, 30, value=value)
    size = {"width": 320, "height": 160 * (1 + value % 2)}
    entry = {"path": f"media/{value}.mp4", "caption": f"Nr. {value}", "class_id": value, **size}
    entries.append(entry)
  lines = [json.dumps(entry) for entry in entries]
  (tmp_path / "clips.jsonl").write_text("\n".join(lines) + "\n\n")
  parquet.write_table(pyarrow.Table.from_pylist(entries), tmp_path / "clips.parquet")
  return tmp_path


@pytest.mark.parametrize("name", ["clips.jsonl", "clips.parquet"])
def test_clips_that_the_filter_keeps_are_read(folder, name):
  options = {
    "num_frames": 5,
    "resolution": (32, 64),
    "filter": "aspect_ratio == 1 or class_id == 0",
  }
  source = make_source(DataConfig(source="index", path=str(folder / name), **options), "train")
  assert source.files == ["media/0.mp4", "media/1.mp4", "media/3.mp4"]
  for i, value in enumerate((0, 1, 3)):
    item = source[i]
    assert frame_numbers(item["video"]) == [value] * 5
    assert (item["caption"], item["class_id"]) == (f"Nr. {value}", value)
  assert source.longest_captions() == ["Nr. 0", "Nr. 1", "Nr. 3"]


def test_files_that_are_missing_or_wrong_are_replaced(folder):
  (folder / "media" / "0.mp4").unlink()
  (folder / "media" / "2.mp4").write_bytes(b"text")
  source = IndexSource(folder / "clips.jsonl", "train", **CLIP)
  assert [frame_numbers(source[i]["video"])[0] for i in range(4)] == [1, 1, 3, 3]
  causes = dict(source.skipped)
  assert causes["media/0.mp4"] == "no such file" and set(causes) == {"media/0.mp4", "media/2.mp4"}


def test_the_filter_moves_no_entry_between_splits(tmp_path):
  lines = [json.dumps({"path": f"{i}.mp4", "n": i}) for i in range(100)]
  (tmp_path / "i.jsonl").write_text("\n".join(lines))
  files = {
    (split, text): IndexSource(tmp_path / "i.jsonl", split, filter=text, **CLIP).files
    for split in ("train", "test")
    for text in (None, "n < 60")
  }
  assert len(files["test", None]) == 10 and len(files["train", None]) == 90
  for split in ("train", "test"):
    kept = [file for file in files[split, None] if int(file.partition(".")[0]) < 60]
    assert files[split, "n < 60"] == kept and kept


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"path": "a.mp4"}\n{"path"', r"i\.jsonl, line 2: expected"),
    ("[3]", r"line 1: expected"),
    ('{"caption": "x"}', r"line 1: path is None"),
    ('{"path": "a"}\n{"path": "a"}', r"line 2: 'a' is in .*line 1 already"),
  ],
)
def test_wrong_entries_name_the_line(tmp_path, text, message):
  (tmp_path / "i.jsonl").write_text(text)
  with pytest.raises(ValueError, match=message):
    read_entries(tmp_path / "i.jsonl")


def test_wrong_indices_and_filters_are_named(folder):
  (folder / "x.parquet").write_bytes(b"PAR1")
  with pytest.raises(ValueError, match="not a complete Parquet file"):
    read_entries(folder / "x.parquet")
  with pytest.raises(ValueError, match=r"data\.path is .*\.jsonl or \.parquet"):
    read_entries(folder / "nowhere.jsonl")
  with pytest.raises(
    ValueError, match=r"line 1: data\.filter='wdth > 1': there is no field 'wdth'"
  ):
    IndexSource(folder / "clips.jsonl", "train", filter="wdth > 1", **CLIP)
  with pytest.raises(ValueError, match="keeps none of 4 entries"):
    IndexSource(folder / "clips.jsonl", "train", filter="width > 999", **CLIP)
  with pytest.raises(ValueError, match=r"data\.filter applies to an index"):
    DataConfig(filter="width > 1")
  assert np.isfinite(IndexSource(folder / "clips.jsonl", "train", **CLIP)[0]["video"]).all()
