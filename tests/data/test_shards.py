"""Media files in shards: what is read, and what happens to unreadable samples."""

import collections
import contextlib
import io
import json
import tarfile
import types
import unicodedata

import jax
import numpy as np
import pytest
from media_files import frame_numbers, write_video
from PIL import Image
from type_checks import stand_in

from videoar_jax.data.bad_samples import BadSamples, write_bad_samples
from videoar_jax.data.media import clips
from videoar_jax.data.mixture import Mixture, make_buckets
from videoar_jax.data.pipeline import DataConfig, make_iterator, make_source
from videoar_jax.data.sources import records, shards
from videoar_jax.data.sources.base import EncodedSource
from videoar_jax.evals import report
from videoar_jax.experiment import inputs, stages
from videoar_jax.experiment.schema import RunConfig
from videoar_jax.experiment.token_cache import Cache
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.text.tokenizers import ByteTokenizer, make_text_encoder

CLIP = {"num_frames": 5, "frame_rate": 8.0, "resolution": (32, 64), "seed": 0, "clips_per_file": 1}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
  """Bytes of videos by the number that each shows; 100 is too short."""
  folder = tmp_path_factory.mktemp("media")
  sizes = {**dict.fromkeys(range(6), 40), 100: 4}
  return {
    value: write_video(folder / f"{value}.mp4", count, 30, value=value).read_bytes()
    for value, count in sizes.items()
  }


def write_tar(path, members):
  with tarfile.open(path, "w") as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


def write_records(path, samples):
  records.write_shard(path, [records.pack(facts, data) for facts, data in samples])


def shown(source):
  return [frame_numbers(source[i]["video"])[0] for i in range(len(source))]


@pytest.fixture
def folder(tmp_path, media):
  """A tar file with samples 0 to 2, an ArrayRecord file with samples 3 to 5."""
  members = {"README": b"no sample"}
  for value in range(3):
    members[f"part/{value:04d}.mp4"] = media[value]
    if value:
      members[f"part/{value:04d}.txt"] = f" number {value}\n".encode()
    facts = {"caption": "number 0", "class_id": value}
    members[f"part/{value:04d}.json"] = json.dumps(facts).encode()
  write_tar(tmp_path / "a.tar", members)
  facts = [({"caption": f"number {v}", "class_id": v}, media[v]) for v in range(3, 6)]
  write_records(tmp_path / "b.array_record", facts)
  return tmp_path


def test_samples_of_both_kinds_are_read(folder):
  config = DataConfig(source="shards", path=str(folder), num_frames=5, resolution=(32, 64))
  source = make_source(config, "train")
  assert len(source) == 6 and not source.has_test_split
  assert source.files[0] == "a.tar/part/0000" and source.files[-1] == "b.array_record/2"
  for i in (5, 0, 3, 1, 4, 2):
    item = source[i]
    assert frame_numbers(item["video"]) == [i] * 5
    assert (item["caption"], item["class_id"], item["id"]) == (f"number {i}", i, i)
  assert not source.skipped


def test_a_clip_is_the_one_of_the_file_itself(tmp_path):
  path = write_video(tmp_path / "v" / "long.mp4", 120, 30)
  write_tar(tmp_path / "a.tar", {"x.mp4": path.read_bytes(), "x.txt": b"x"})
  config = DataConfig(source="folder", path=str(path.parent), num_frames=5, resolution=(32, 64))
  folder, source = make_source(config, "train"), shards.ShardsSource(tmp_path, "train", **CLIP)
  for i in range(3):
    np.testing.assert_array_equal(source[i]["video"], folder[i]["video"])


def test_images_are_samples_of_one_frame(tmp_path):
  buffer = io.BytesIO()
  Image.new("RGB", (64, 32), (90, 90, 90)).save(buffer, "jpeg")
  write_tar(tmp_path / "a.tar", {"x.JPG": buffer.getvalue(), "x.txt": b"grey"})
  source = shards.ShardsSource(tmp_path, "train", **CLIP | {"num_frames": 1})
  assert source[0]["video"].shape == (1, 32, 64, 3) and abs(source[0]["video"] - 90.0).max() < 3


def test_the_index_of_a_tar_file_is_made_once_and_again_for_another_file(folder, media):
  saved = folder / "a.tar.index.json"
  assert not saved.exists()
  shards.TarShard(folder / "a.tar")
  written = saved.stat().st_mtime_ns
  shards.TarShard(folder / "a.tar")
  assert saved.stat().st_mtime_ns == written
  write_tar(folder / "a.tar", {"new.mp4": media[5]})
  assert shards.TarShard(folder / "a.tar").keys == ["new"]
  saved.write_text("{")
  assert shards.TarShard(folder / "a.tar").keys == ["new"]


def test_bad_samples_are_replaced_and_listed(tmp_path, media):
  samples = [
    ({"caption": "one"}, media[1]),
    ({}, media[2]),
    ({"caption": "short"}, media[100]),
    ({"caption": "cut"}, media[3][:200]),
    ({"caption": "text"}, b"text"),
    ({"caption": "four", "class_id": "4"}, media[4]),
    ({"caption": "five"}, media[5]),
  ]
  write_records(tmp_path / "a.array_record", samples)
  source = shards.ShardsSource(tmp_path, "train", **CLIP)
  values = shown(source)
  assert values[0] == 1 and values[-1] == 5 and set(values) == {1, 5}
  causes = dict(source.skipped)
  assert sorted(key[-1] for key in causes) == list("12345")
  assert causes["a.array_record/1"] == "no caption"
  assert causes["a.array_record/2"].startswith("too short for 5 frames")
  assert causes["a.array_record/5"] == "class_id is not an integer"


def test_bad_samples_are_written_when_they_are_found(tmp_path):
  path = tmp_path / "bad_samples.jsonl"

  def source_of(bad_samples):
    return types.SimpleNamespace(bad_samples=bad_samples)

  def lines():
    return [tuple(json.loads(line).values()) for line in path.read_text().splitlines()]

  bad_samples, other = BadSamples("x", 10, 1.0), BadSamples("y", 10, 1.0)
  bad_samples.add("a", "early")
  write_bad_samples(path, [source_of(bad_samples), source_of(other), object()])
  assert lines() == [("x", "a", "early")]
  bad_samples.add("b", "late")
  other.add("a", "late")
  assert lines() == [("x", "a", "early"), ("x", "b", "late"), ("y", "a", "late")]
  # A second run finds them again, one for another reason, after a crash within a line.
  path.write_text(path.read_text() + '{"source": "x", "ke')
  bad_samples = BadSamples("x", 10, 1.0)
  write_bad_samples(path, [source_of(bad_samples)])
  for key in "abc":
    bad_samples.add(key, "again")
  assert len(lines()) == 4 and lines()[3] == ("x", "c", "again")


@pytest.fixture
def captions(tmp_path, media):
  """Three samples; the second has a long caption."""
  texts = ("one", "far too long a caption", "three")
  facts = [({"caption": text}, media[value]) for value, text in enumerate(texts, start=1)]
  write_records(tmp_path / "a.array_record", facts)
  return shards.ShardsSource(tmp_path, "train", **CLIP)


CUT = ("one", "far too", "three")


def test_captions_that_are_too_long_are_cut(captions, caplog):
  """Else another clip would be shown in place of each of them, or none at all."""
  encode = ByteTokenizer(8).encode
  with contextlib.closing(
    make_iterator(captions, batch_size=3, seed=0, tokenize=encode, shuffle=False)
  ) as batches:
    batch = next(batches)
    next(batches)
  assert [frame_numbers(video)[0] for video in batch["video"]] == [1, 2, 3]
  np.testing.assert_array_equal(batch["text"], [encode(text) for text in CUT])
  assert not captions.skipped and captions.cut_captions.files == {"a.array_record/1"}
  assert caplog.text.count("are cut to fit") == 1
  assert "set text.length to at least 23" in caplog.text


def test_captions_of_a_mixture_that_are_too_long_are_cut(captions):
  encode = ByteTokenizer(8).encode
  settings = {"num_frames": (5,), "resolutions": ((32, 64),), "batch_size": lambda _: 3}
  settings["encoder"] = lambda _: encode
  mixture = Mixture(make_buckets("a", captions, share=1.0, **settings), seed=0)
  batch = mixture.read(0)
  assert sorted(frame_numbers(video)[0] for video in batch["video"]) == [1, 2, 3]
  assert not captions.skipped and captions.cut_captions.files == {"a.array_record/1"}


def test_captions_are_cut_where_they_are_shown_and_cached(captions, monkeypatch):
  encoder = ByteTokenizer(8)
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  media = inputs.media_batch(DataConfig(), captions, encoder)
  texts = (*CUT, *CUT, *CUT[:2])
  np.testing.assert_array_equal(media["text"], [encoder.encode(text) for text in texts])
  report_config = types.SimpleNamespace(num_clips=3, num_prompts=3)
  text = types.SimpleNamespace(encoder=encoder)
  run = stand_in(RunConfig, report=report_config, text=text, tokenizer_family=None, stages=())
  assert sorted(report._examples(run, captions)[1]) == sorted(CUT)
  # What is encoded once for all, with its caption.
  encoded = []
  monkeypatch.setattr(stages, "encode", lambda folder, index, source, *_: encoded.append(source))
  monkeypatch.setattr(stages, "params_without_zero_taps", lambda template, params: params)
  index = types.SimpleNamespace(missing=lambda folder: [0], num_clips=3)

  def encoder_of(cache, source):
    return (None, None, index)

  fake = stand_in(stages.Stages, run=run, workdir=None, mesh=mesh, _encoder_of=encoder_of)
  config = types.SimpleNamespace(batch_size=1)
  cache = stand_in(Cache, name="cache", folder=lambda _: None, config=config, data=DataConfig())
  fake.encode(cache, captions)
  assert [encoded[0][i]["caption"] for i in range(3)] == list(CUT)


def test_captions_that_cannot_be_encoded_are_faults(captions, caplog):
  """Otherwise a prefetching thread would end the run, and every run that resumes from there."""
  encode = make_text_encoder("classes", 1, ("one", "three")).encode
  items = [EncodedSource(captions, encode)[i] for i in range(30)]
  shown = [frame_numbers(item["video"])[0] for item in items]
  assert shown[::3] == [1] * 10 and shown[2::3] == [3] * 10 and set(shown[1::3]) == {1, 3}
  assert all((item["caption"] == "one") == (n == 1) for item, n in zip(items, shown, strict=True))
  assert captions.skipped == [("a.array_record/1", "the caption cannot be encoded")]
  assert "'far too long a caption' is unknown" in caplog.text


def test_each_process_checks_its_share_of_bad_samples(captions):
  """A quarter of a process's samples are bad: more than a tenth, and less than a third."""
  for max_share, is_stopped in ((0.1, True), (1 / 3, False)):
    bad_samples, errors = BadSamples("x", 80, max_share), []
    bad_samples.num_parts = 8
    for sample in range(40):  # Four epochs of a part of ten, each of other samples.
      bad_samples.num_reads += 1
      if sample % 4 == 3 and not errors:
        try:
          bad_samples.add(str(sample), "why")
        except ValueError as error:
          errors.append(str(error))
    assert bool(errors) == is_stopped
    assert not errors or "2 of 80 samples (this process reads 1 in 8) cannot" in errors[0]
  encode = ByteTokenizer(8).encode
  make_iterator(captions, batch_size=2, seed=0, tokenize=encode, process_count=2).close()
  assert captions.bad_samples.num_parts == 2


def test_too_many_bad_samples_stop_the_run(tmp_path, media):
  samples = [({"caption": "x"}, media[1])] * 2 + [({}, media[1])] * 2
  write_records(tmp_path / "a.array_record", samples)
  source = shards.ShardsSource(tmp_path, "train", max_bad_share=0.5, **CLIP)
  assert shown(source) == [1] * 4
  source = shards.ShardsSource(tmp_path, "train", max_bad_share=0.4, **CLIP)
  with pytest.raises(ValueError, match=r"2 of 4 samples.*max_bad_share=0.4(.|\n)*/3: no caption"):
    shown(source)
  assert BadSamples("x", 4, 0.1).add("a", "one of few")
  with pytest.raises(ValueError, match=r"1 of 4 samples(.|\n)*a: why \(in detail\)"):
    BadSamples("x", 4, 0.0).add("a", "why", "in detail")
  bad_samples = BadSamples("x", 10, 0.1)
  assert bad_samples.add("a", "why") and not bad_samples.add("a", "why")
  with pytest.raises(ValueError, match="2 of 10 samples"):
    bad_samples.add("b", "why")
  with pytest.raises(ValueError, match=r"data\.max_bad_share is 2"):
    DataConfig(max_bad_share=2.0)


def test_a_tar_file_that_is_cut_off_is_named_or_its_sample_replaced(folder, caplog):
  path = folder / "a.tar"
  whole = path.read_bytes()
  (folder / "whole.tar").write_bytes(whole)
  shard = shards.TarShard(path)
  path.write_bytes(whole[: len(whole) // 3])  # While a run reads it.
  with pytest.raises(ValueError, match="cut off"):
    shard.read(2)
  path.write_bytes(b"x" * 2000)
  with pytest.raises(ValueError, match=r"a\.tar is not a complete tar file"):
    shards.ShardsSource(folder, "train", **CLIP)
  # Whole samples before the damage count: where it is cut off, and where a header is damaged.
  caplog.clear()
  with tarfile.open(folder / "whole.tar") as tar:
    at = tar.getmember("part/0002.mp4").offset
  path.write_bytes(whole[: at + 600])
  assert shards.TarShard(path).keys == ["part/0000", "part/0001"]
  assert "it is cut off" in caplog.text
  caplog.clear()
  path.write_bytes(whole[:at] + b"x" * 512 + whole[at + 512 :])
  for _ in range(2):  # The second time, its index is there already.
    assert shards.TarShard(path).keys == ["part/0000"]
  assert caplog.text.count("only the samples before the damage are used") == 2
  write_tar(path, {"README": b""})
  with pytest.raises(ValueError, match=r"a\.tar has no sample; .*0001\.mp4"):
    shards.ShardsSource(folder, "train", **CLIP)


def test_folders_without_shards_are_named(tmp_path):
  with pytest.raises(ValueError, match="not a folder"):
    shards.open_shards(tmp_path / "nowhere")
  with pytest.raises(ValueError, match=r"no file ends in \.tar or \.array_record\.$"):
    shards.open_shards(tmp_path)
  (tmp_path / "a.tar.gz").touch()
  with pytest.raises(ValueError, match=r"a\.tar\.gz is compressed.*; unpack it"):
    shards.open_shards(tmp_path)


def test_splits_of_many_samples_are_disjoint(tmp_path, media):
  write_records(tmp_path / "a.array_record", [({"caption": "x"}, media[1])] * 30)
  train, test = (shards.ShardsSource(tmp_path, split, **CLIP) for split in ("train", "test"))
  assert len(train) == 27 and len(test) == 3 and not set(train.files) & set(test.files)


def test_members_are_grouped_by_the_name_before_a_known_ending(tmp_path, media, caplog):
  members = {"a_1.5s.mp4": media[1], "a_1.5s.txt": b"one and a half", "a_2.5s.MP4": media[2]}
  members |= {"a_2.5s.txt": b"two and a half", "v1.0-take.mp4": media[3], "v1.0-take.json": b"{}"}
  # Hidden files are no data, media of an unknown kind are told.
  members |= {"._a_1.5s.mp4": b"x", ".trash/a.mp4": media[4], "./b.mp4": media[5]}
  members |= {"c.heic": b"x", "d.heic": b"x", "./b.jpg": b"x", "notes.md": b"x"}
  write_tar(tmp_path / "a.tar", members)
  (tmp_path / "._a.tar").write_bytes(b"x")
  source = shards.ShardsSource(tmp_path, "train", **CLIP)
  assert source.files == [f"a.tar/{key}" for key in ("a_1.5s", "a_2.5s", "v1.0-take", "./b")]
  assert source[0]["caption"] == "one and a half" and frame_numbers(source[1]["video"]) == [2] * 5
  assert "media that belong to no sample: 2 x .heic, 1 x .jpg" in caplog.text


def test_members_of_a_sample_may_be_spelled_differently(tmp_path, media):
  nfc, nfd = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
  members = {"a/1.mp4": media[1], "./a/1.json": b'{"caption": "one"}'}
  members |= {f"{nfd}.mp4": media[2], f"{nfc}.txt": b"two"}
  write_tar(tmp_path / "a.tar", members)
  source = shards.ShardsSource(tmp_path, "train", **CLIP)
  assert source.files == ["a.tar/a/1", f"a.tar/{nfd}"]
  assert [source[i]["caption"] for i in range(2)] == ["one", "two"] and not source.skipped


def test_a_blank_text_does_not_hide_the_caption_in_json(tmp_path, media):
  facts = [{"caption": "a", "class_id": 2.0}, {"captions": ["", " b "]}, {"caption": None}]
  members = {}
  for i, fact in enumerate(facts):
    members |= {f"{i}.mp4": media[i], f"{i}.txt": b" \n", f"{i}.json": json.dumps(fact).encode()}
  write_tar(tmp_path / "a.tar", members)
  source = shards.ShardsSource(tmp_path, "train", **CLIP)
  assert [source[i]["caption"] for i in range(2)] == ["a", "b"] and source[0]["class_id"] == 2
  source[2]
  assert source.skipped == [("a.tar/2", "no caption")]


def test_only_prepared_shards_mark_the_parts_of_a_video(tmp_path, media):
  members = {}
  for i in range(30):
    members |= {f"funny cats #{i}.mp4": media[1], f"funny cats #{i}.txt": b"a cat"}
  write_tar(tmp_path / "a.tar", members)
  train, test = (shards.ShardsSource(tmp_path, split, **CLIP) for split in ("train", "test"))
  assert train.has_test_split and len(train) == 27 and len(test) == 3


def test_what_a_reader_did_not_foresee_is_the_samples_fault(folder, caplog, monkeypatch):
  source, read = shards.ShardsSource(folder, "train", **CLIP), clips.read_clip
  kind = ZeroDivisionError

  def read_clip(media, *arguments):
    if media.getvalue() == bad:
      raise kind("what a library says")
    return read(media, *arguments)

  bad = source._shards["a.tar"].read(1)[1]
  monkeypatch.setattr(clips, "read_clip", read_clip)
  for _ in range(2):
    values = shown(source)
  assert values[:1] + values[2:] == [0, 2, 3, 4, 5] and values[1] != 1
  assert source.skipped == [("a.tar/part/0001", "cannot be read (ZeroDivisionError)")]
  assert caplog.text.count("Traceback") == 1 and "a.tar: " not in source.skipped[0][1]
  for kind in (MemoryError, KeyboardInterrupt, SystemExit):
    with pytest.raises(kind):
      source[1]


def test_bad_samples_are_replaced_by_all_others_alike(tmp_path, media):
  """A third is bad, all neighbours: they would all be replaced by the same sample."""
  facts = [({"caption": "x"} if i >= 20 else {}, media[i % 6]) for i in range(60)]
  write_records(tmp_path / "a.array_record", facts)
  source = shards.ShardsSource(tmp_path, "train", **CLIP)
  read, counts = source._read, collections.Counter()

  def counted(position, *arguments):
    item = read(position, *arguments)
    counts[source.files[position]] += 1
    return item

  source._read = counted
  order = list(range(3 * len(source)))
  first = [source[i]["video"] for i in order]
  assert max(counts.values()) <= 9  # Each of about 36 good ones is read 4.5 times on average.
  again = shards.ShardsSource(tmp_path, "train", **CLIP)
  for i in reversed(order):
    np.testing.assert_array_equal(again[i]["video"], first[i])
