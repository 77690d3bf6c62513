"""An index of files, and its filter."""

import json
import unicodedata

import numpy as np
import pyarrow
import pytest
from media_files import frame_numbers, write_video
from pyarrow import parquet

from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.data.sources.filters import parse_filter
from videoar_jax.data.sources.index import IndexSource, read_entries
from videoar_jax.text.tokenizers import ByteTokenizer, make_text_encoder

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
    ("-name > 3", "'x' is not a number"),
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
  assert source.known_captions() == ["Nr. 0", "Nr. 1", "Nr. 3"]


def test_files_that_are_missing_or_wrong_are_replaced(folder):
  (folder / "media" / "0.mp4").unlink()
  (folder / "media" / "2.mp4").write_bytes(b"text")
  source = IndexSource(folder / "clips.jsonl", "train", **CLIP)
  shown = [frame_numbers(source[i]["video"])[0] for i in range(4)]
  assert shown[1] == 1 and shown[3] == 3 and set(shown) == {1, 3}
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
    ('{"path": "a", "class_id": "3"}', r"line 1: class_id is not an integer, but '3'"),
    ('{"path": "a"}\n{"path": "b", "class_id": 0.5}', r"line 2: class_id is not an integer"),
    ('{"path": "a", "class_id": true}', r"line 1: class_id is not an integer"),
    ('{"path": "a", "width": "96", "height": "64"}', r"line 1: width is '96'; set it to a number"),
    ('{"path": "a", "aspect_ratio": Infinity}', r"line 1: aspect_ratio is inf"),
    ('{"path": "a", "end": "3"}', r"line 1: end is '3'"),
    ('{"path": "a", "start": 3, "end": 3}', r"line 1: start is 3 and end is 3; .*more than start"),
    ('{"path": "a", "start": -1}', r"line 1: start is -1 "),
    (2 * '{"path": "a", "start": 1, "end": 2.0}\n', r"line 2: 'a#1.0-2.0' is in .*line 1 already"),
    ("[" * 100_000, r"line 1: expected"),
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


def test_numbers_that_are_missing_are_no_numbers(tmp_path):
  """As pandas writes them: one missing number makes a column float, and itself NaN."""
  nan = float("nan")
  columns = {
    "path": [f"{i}.mp4" for i in range(5)],
    "class_id": [0.0, 1.0, nan, 3.0, None],
    "width": [32.0, nan, 0.0, None, 64.0],
    "height": [16.0, nan, 16.0, 16.0, 64.0],
    "start": [nan] * 5,
    "score": [6.0, nan, None, 4.0, 7.0],
  }
  parquet.write_table(pyarrow.table(columns), tmp_path / "i.parquet")
  entries = [entry for _, entry in read_entries(tmp_path / "i.parquet")]
  assert [entry["class_id"] for entry in entries] == [0, 1, None, 3, None]
  assert [entry.get("aspect_ratio") for entry in entries] == [2.0, None, None, None, 1.0]
  source = IndexSource(tmp_path / "i.parquet", "train", filter="score > 5", **CLIP)
  assert source.files == ["0.mp4", "4.mp4"] and source.aspect_ratios() == [0.5, 1.0]
  source = IndexSource(tmp_path / "i.parquet", "train", filter="2 * score + 1 < 12", **CLIP)
  assert source.files == ["3.mp4"]
  with pytest.raises(ValueError, match=r"'1\.mp4' has no width and height"):
    IndexSource(tmp_path / "i.parquet", "train", **CLIP).aspect_ratios()


def test_segments_are_clips_of_a_part_of_a_file(tmp_path):
  write_video(tmp_path / "long.mp4", 200, 25)
  segments = [(None, 2.0), (2.0, 4.0), (6.0, None), (7.5, 99.0), (7.96, None), (9.0, 10.0)]
  rows = [{"path": "long.mp4", "start": a, "end": b, "caption": f"{a}"} for a, b in segments]
  (tmp_path / "i.jsonl").write_text("\n".join(map(json.dumps, rows)))
  source = IndexSource(tmp_path / "i.jsonl", "train", **CLIP | {"frame_rate": 12.5})
  assert source.files[1:3] == ["long.mp4#2.0-4.0", "long.mp4#6.0-inf"]
  seen = {}
  for i in range(40 * len(rows)):
    item = source[i]
    seen.setdefault(item["caption"], set()).update(frame_numbers(item["video"]))
  # All of a segment's frames and no others; a file's last frame is 199.
  for caption, first, end in (("None", 0, 50), ("2.0", 50, 100), ("6.0", 150, 200)):
    assert seen[caption] <= set(range(first, end)) and len(seen[caption]) > 35
  assert seen["7.5"] <= set(range(187, 200))
  assert [cause for _, cause in source.skipped] == [
    "too short for 5 frames at 12.5 per second",
    "ends before its segment begins",
  ]


def test_all_segments_of_a_file_are_in_one_split(tmp_path):
  rows = [{"path": f"{i % 25}.mp4", "start": i // 25} for i in range(100)]
  (tmp_path / "i.jsonl").write_text("\n".join(map(json.dumps, rows)))
  train, test = (IndexSource(tmp_path / "i.jsonl", split, **CLIP) for split in ("train", "test"))
  files = [{file.partition("#")[0] for file in source.files} for source in (train, test)]
  assert len(train) == 92 and len(test) == 8 and not files[0] & files[1]
  (tmp_path / "few.jsonl").write_text(
    "\n".join(json.dumps(row | {"path": "a"}) for row in rows[::25])
  )
  few = IndexSource(tmp_path / "few.jsonl", "test", **CLIP)
  assert not few.has_test_split and len(few) == 4


def test_samples_without_a_caption_that_fits_are_found_before_the_work(folder, caplog):
  path = folder / "clips.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines() if line]
  rows[1]["captions"], rows[2]["caption"] = ["Nr. 1", "far too long"], "\n"
  path.write_text("\n".join(map(json.dumps, rows)))
  source = IndexSource(path, "train", **CLIP)
  source.check_captions(ByteTokenizer(8).encode)
  assert source.cut_captions.files == {"media/1.mp4"} and "cut to fit" in caplog.text
  assert not source.skipped
  encoder = make_text_encoder("classes", 1, ("Nr. 0", "Nr. 1"))
  source.check_captions(encoder.encode)
  assert source.skipped == [("media/3.mp4", "the caption cannot be encoded")]
  strict = IndexSource(path, "train", max_bad_share=0.0, **CLIP)
  with pytest.raises(ValueError, match=r"media/3.mp4: the caption cannot be .*Nr. 3.*unkn"):
    strict.check_captions(encoder.encode)


def test_the_sizes_of_segments_and_of_names_in_another_spelling_are_listed(tmp_path):
  nfc, nfd = (unicodedata.normalize(form, "é.mp4") for form in ("NFC", "NFD"))
  (tmp_path / nfd).write_bytes(b"123")
  (tmp_path / "b.mp4").write_bytes(b"4567")
  entries = [
    {"path": "b.mp4", "start": 0, "end": 1},
    {"path": "b.mp4", "start": 1, "end": 2},
    {"path": nfc},
    {"path": "gone.mp4"},
    {"path": "memory://bucket/c.mp4"},
  ]
  (tmp_path / "clips.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
  source = IndexSource(tmp_path / "clips.jsonl", "train", **CLIP)
  assert list(source.listing().values()) == [4, 4, 3, None, None]
