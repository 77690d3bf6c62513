"""Captions of a folder: where they come from, and one rule for blank ones in all sources."""

import json
import unicodedata

import pytest
from media_files import write_image

from videoar_jax import open_data
from videoar_jax.data.prepare import _list_files
from videoar_jax.data.sources import records
from videoar_jax.data.sources.captions import captions_of, class_id_of

ONE = {"num_frames": 1, "resolution": (32, 64), "max_bad_share": 1.0}
# What a captioner leaves, and what counts; None where the sample is bad.
GIVEN = [
  ({"caption": ""}, None),
  ({"caption": " \n"}, None),
  ({"caption": None}, None),
  ({"captions": [], "caption": "one"}, ["one"]),
  ({"captions": ["", " a dog ", None, "two"]}, ["a dog", "two"]),
  ({"captions": [" "], "caption": ""}, None),
  ({"caption": "half a pair \ud83d"}, ["half a pair ?"]),
  ({"captions": ["list"], "caption": "alone"}, ["list"]),
]


def make(folder, *files):
  for file in files:
    write_image(folder / file, 9)
  return folder


def lines(path, rows, **options):
  path.write_text("".join(json.dumps(row, **options) + "\n" for row in rows))


@pytest.mark.parametrize("source", ["folder", "index", "shards"])
def test_blank_captions_count_as_missing_in_all_sources(tmp_path, source):
  files = [f"{i}.png" for i in range(len(GIVEN))]
  make(tmp_path / "media", *files)
  given = [facts for facts, _ in GIVEN]
  path = tmp_path / "media"
  if source == "folder":
    rows = [{"file": file} | facts for file, facts in zip(files, given, strict=True)]
    lines(tmp_path / "media" / "captions.jsonl", rows)
  elif source == "index":
    rows = [{"path": f"media/{f}"} | facts for f, facts in zip(files, given, strict=True)]
    path = tmp_path / "clips.jsonl"
    lines(path, rows)
  else:
    path = tmp_path / "shards"
    path.mkdir()
    data = [(tmp_path / "media" / file).read_bytes() for file in files]
    records.write_shard(path / "a.array_record", map(records.pack, given, data))
  opened = open_data(path, source, **ONE)
  good = {i: captions for i, (_, captions) in enumerate(GIVEN) if captions}
  found = [{opened[i + len(opened) * k]["caption"] for k in range(20)} for i in range(len(opened))]
  if source == "folder":
    assert found == [set(captions) for captions in good.values()]
  else:
    assert all(found[i] == set(captions) for i, captions in good.items())
  assert len(opened.skipped) == len(GIVEN) - len(good)
  assert {cause for _, cause in opened.skipped} == {"no caption"}


def test_what_is_no_caption_or_class_is_an_error():
  for facts in ({"caption": 3}, {"captions": "a"}, {"captions": [3]}):
    with pytest.raises(ValueError, match="not a"):
      captions_of(facts)
  for nothing in (None, float("nan"), []):
    assert captions_of({"captions": nothing, "caption": "a"}) == ["a"]
  for value, expected in ((None, None), (float("nan"), None), (3.0, 3), (0, 0)):
    assert class_id_of({"class_id": value}) == expected
  for value in ("3", 3.5, True, float("inf"), [3]):
    with pytest.raises(ValueError, match="class_id is not an integer"):
      class_id_of({"class_id": value})
  with pytest.raises(ValueError, match="class_id is negative"):
    class_id_of({"class_id": -1})


def test_the_first_place_that_has_a_caption_counts(tmp_path):
  files = ("list.png", "meta.png", "beside.png", "none.png", "blank.png", "b/sub.png")
  make(tmp_path, *files)
  for file in ("list", "meta", "beside"):
    (tmp_path / f"{file}.txt").write_text("\ufefffrom NAME.txt\n", encoding="utf-8")
  (tmp_path / "blank.txt").write_text(" \n")
  rows = [{"file_name": name, "text": "from metadata"} for name in ("list.png", "meta.png")]
  lines(tmp_path / "metadata.jsonl", [*rows, {"file_name": "none.png", "label": 3}])
  lines(tmp_path / "b" / "metadata.jsonl", [{"file_name": "sub.png", "caption": "below"}])
  lines(tmp_path / "captions.jsonl", [{"file": "list.png", "caption": "from captions"}])
  source = open_data(tmp_path, **ONE)
  expected = {
    "b/sub.png": "below",
    "beside.png": "from NAME.txt",
    "list.png": "from captions",
    "meta.png": "from metadata",
    "none.png": tmp_path.name,
  }
  assert {f: source[i]["caption"] for i, f in enumerate(source.files)} == expected
  assert source.skipped == [("blank.png", "no caption")]
  # `prepare` has the same ones.
  _, listed = _list_files(tmp_path, None)
  found = {file: facts["captions"] for file, facts in listed}
  assert found == {file: [text] for file, text in expected.items()} | {"blank.png": []}


def test_texts_beside_clips_may_have_any_case_and_encoding(tmp_path):
  make(tmp_path, "a.png", "b.png")
  (tmp_path / "a.TXT").write_text("upper")
  (tmp_path / "b.txt").write_text("größer", encoding="utf-16")
  source = open_data(tmp_path, **ONE)
  assert [source[i]["caption"] for i in range(2)] == ["upper", "größer"]


def test_lists_in_utf_16_are_named(tmp_path):
  make(tmp_path, "a.png")
  for name in ("captions.jsonl", "clips.jsonl"):
    (tmp_path / name).write_text('{"path": "a.png", "caption": "x"}\n', encoding="utf-16")
  with pytest.raises(ValueError, match=r"captions\.jsonl is in UTF-16; save it as UTF-8"):
    open_data(tmp_path, **ONE)
  with pytest.raises(ValueError, match=r"clips\.jsonl is in UTF-16; save it as UTF-8"):
    open_data(tmp_path / "clips.jsonl", "index", **ONE)
  (tmp_path / "clips.jsonl").write_text("\n")
  with pytest.raises(ValueError, match=r"clips\.jsonl has no entries"):
    open_data(tmp_path / "clips.jsonl", "index", **ONE)


def test_captions_that_belong_to_nothing_are_told(tmp_path, caplog):
  make(tmp_path, "a.png", "b/c.png")
  (tmp_path / "a.txt").write_text("x")
  for name in ("b/metadata.jsonl", "captions.jsonl"):
    (tmp_path / name).touch()
  open_data(tmp_path, **ONE)
  assert not caplog.records
  for name in ("a.png.txt", "b/d.txt", "metadata.csv", "b/captions.jsonl"):
    (tmp_path / name).touch()
  open_data(tmp_path, **ONE)
  [message] = [record.getMessage() for record in caplog.records if "belong" in record.getMessage()]
  assert "2 text files belong to no clip, such as a.png.txt; 2 lists are not used" in message


def test_another_programs_metadata_is_not_read(tmp_path):
  make(tmp_path, "a.png")
  (tmp_path / "metadata.jsonl").write_text('\n{"version": 3}\n')
  assert open_data(tmp_path, **ONE)[0]["caption"] == tmp_path.name
  (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "b.png"')
  with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2: expected .*file_name"):
    open_data(tmp_path, **ONE)


def test_lists_may_spell_names_otherwise(tmp_path):
  nfc, nfd = (unicodedata.normalize(form, "Müll/é.png") for form in ("NFC", "NFD"))
  make(tmp_path / "c", nfc)
  lines(tmp_path / "c" / "captions.jsonl", [{"file": nfd, "caption": "cup"}], ensure_ascii=False)
  assert open_data(tmp_path / "c", **ONE)[0]["caption"] == "cup"
  # An index, and the lists of an official split.
  make(tmp_path / "i", nfd)
  lines(tmp_path / "i" / "clips.jsonl", [{"path": nfc, "caption": "cup"}])
  assert open_data(tmp_path / "i" / "clips.jsonl", "index", **ONE)[0]["caption"] == "cup"
  make(tmp_path / "s", nfd, "Run/b.png")
  (tmp_path / "trainlist.txt").write_text(f"{nfc} 1\n", encoding="utf-8-sig")
  (tmp_path / "testlist.txt").write_text("Run/b.png\n")
  (tmp_path / "classInd.txt").write_text(f"1 {nfc.partition('/')[0]}\n2 Run\n", encoding="utf-8")
  source = open_data(tmp_path / "s", split_file=str(tmp_path / "trainlist.txt"), **ONE)
  assert source.files == [nfd] and source[0]["caption"] == "Müll" and source.class_names[1] == "Run"
  lists = [{"path": "a.png", "caption": "x"}, {"path": "./b/../a.png", "caption": "y"}]
  lines(tmp_path / "twice.jsonl", lists)
  with pytest.raises(ValueError, match=r"line 2: 'a.png' is in .*line 1 already"):
    open_data(tmp_path / "twice.jsonl", "index", **ONE)
