"""Converting media to shards: the same clips are read from them; dropped files are reported."""

import io
import json
import os

import av
import numpy as np
import pytest
from media_files import frame_numbers, write_audio, write_video
from PIL import Image

from videoar_jax import prepare as command
from videoar_jax.data import prepare
from videoar_jax.data.media import clips
from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.data.sources import records
from videoar_jax.data.sources.shards import ShardsSource

FLAGS = ("--clip_s=2", "--min_s=1", "--short_side=32", "--files_per_shard=2", "--keyframe_every=6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Videos at 30 frames per second: 5 s, 1.5 s, too short, truncated, no video; and an image."""
  folder = tmp_path_factory.mktemp("media")
  write_video(folder / "a" / "long.mp4", 150, 30)
  write_video(folder / "b" / "short.webm", 45, 30, codec="libvpx")
  write_video(folder / "b" / "tiny.mp4", 12, 30)
  whole = write_video(folder / "b" / "whole.mp4", 90, 30).read_bytes()
  (folder / "b" / "whole.mp4").write_bytes(whole[: len(whole) // 2])
  (folder / "b" / "text.mp4").write_text("no video")
  (folder / "b" / "zero.mp4").touch()
  write_audio(folder / "b" / "sound.mp4")
  Image.new("RGB", (60, 100), (200, 30, 40)).save(folder / "a" / "red.png")
  (folder / "captions.jsonl").write_text('{"file": "a/long.mp4", "caption": "it counts"}\n')
  return folder


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
  out = tmp_path_factory.mktemp("shards") / "out"
  assert command.main([str(folder), f"--out={out}", "--num_processes=1", *FLAGS]) == 0
  return out


def read_all(out):
  """Returns header and media of each sample by its name."""
  found = {}
  for path in sorted(out.glob("*.array_record")):
    keys = json.loads(path.with_suffix(".json").read_text())["keys"]
    shard = records.open_shards([path])
    found |= {key: records.unpack(shard[i]) for i, key in enumerate(keys)}
  return found


def test_videos_are_split_and_made_smaller(prepared):
  found = read_all(prepared)
  keys = ["a/long.mp4#0", "a/long.mp4#1", "a/long.mp4#2", "a/red.png#0", "b/short.webm#0"]
  assert list(found) == keys
  shown = []
  for key in list(found)[:3]:
    facts, data = found[key]
    size = {"width": 64, "height": 32, "aspect_ratio": 2.0}
    assert facts == facts | size | {"captions": ["it counts"], "class_id": 0, "frame_rate": 30.0}
    with av.open(io.BytesIO(data)) as container:
      frames = list(container.decode(video=0))
    assert [i for i, f in enumerate(frames) if f.key_frame] == list(range(0, len(frames), 6))
    assert len(frames) == facts["duration"] * 30
    shown += [frame_numbers(frame.to_ndarray(format="rgb24")[None])[0] for frame in frames]
  assert shown == list(range(150))
  facts, data = found["a/red.png#0"]
  assert (facts["width"], facts["height"], facts["captions"]) == (32, 53, ["a"])
  colours = np.asarray(Image.open(io.BytesIO(data))).reshape(-1, 3)
  assert np.abs(colours - np.array([200.0, 30, 40])).max() < 3


def test_a_clip_of_a_shard_looks_like_the_files(folder, prepared):
  """Same times, same pixels up to H.264's loss."""
  _, data = read_all(prepared)["a/long.mp4#1"]
  for start_s in (0.0, 0.4, 0.9):
    ours = clips.read_clip(io.BytesIO(data), start_s, 9, 8.0, (32, 64))
    theirs = clips.read_clip(folder / "a" / "long.mp4", 2 + start_s, 9, 8.0, (32, 64))
    assert frame_numbers(ours) == frame_numbers(theirs)
    assert np.abs(ours.astype(float) - theirs).mean() < 6


def test_what_is_dropped_is_told(folder, prepared, capsys):
  lines = [json.loads(line) for line in (prepared / prepare.DROPPED).read_text().splitlines()]
  causes = {line["key"]: line["cause"] for line in lines}
  damaged = {file: causes.pop(file, "") for file in ("b/text.mp4", "b/whole.mp4")}
  assert all(cause.startswith("cannot be opened as a video") for cause in damaged.values())
  assert causes == {
    "b/sound.mp4": "no video stream",
    "b/tiny.mp4": "the file, or what is left after its clips, is under 1 s",
    "b/zero.mp4": "empty file",
  }
  assert command.main([str(folder), f"--out={prepared}", "--num_processes=1", *FLAGS]) == 0
  report = capsys.readouterr().out
  assert "5 samples of 8 files" in report and "dropped: 1 x no video stream" in report


def test_a_killed_run_goes_on(folder, prepared, tmp_path, monkeypatch):
  """Complete shards are kept; unfinished ones are written again; the result is the same."""
  out, write, done = tmp_path / "out", prepare.write_shard, []

  def stop(*arguments):
    if len(done) == 2:
      raise KeyboardInterrupt
    done.append(out / arguments[-1][0])
    return write(*arguments)

  monkeypatch.setattr(prepare, "write_shard", stop)
  arguments = [str(folder), f"--out={out}", "--num_processes=1", *FLAGS]
  with pytest.raises(KeyboardInterrupt):
    command.main(arguments)
  with pytest.raises(ValueError, match=r"lacks 2 of 4 shards, such as clips-00002.*prepare"):
    make_source(DataConfig(source="shards", path=str(out), num_frames=1), "train")
  kept = {path: path.stat().st_mtime_ns for path in done if path.is_file()}
  done.clear()
  (out / "clips-00002-of-00004.array_record.0000000a.partial").write_text("left by SIGKILL")
  assert command.main(arguments) == 0
  assert not list(out.glob("*.partial"))
  assert len(done) == 2 and kept == {path: path.stat().st_mtime_ns for path in kept}
  assert read_all(out) == read_all(prepared)
  assert (out / prepare.DROPPED).read_text() == (prepared / prepare.DROPPED).read_text()


def test_an_index_keeps_its_fields_and_processes_do_not_matter(folder, tmp_path):
  entries = [
    {"path": str(folder / "a" / "long.mp4"), "caption": "x", "score": 3.5, "tags": ["y"]},
    {"path": str(folder / "a" / "red.png"), "caption": "z", "score": 1.0},
    {"path": str(folder / "b" / "short.webm"), "score": 9.0},
  ]
  path = tmp_path / "clips.jsonl"
  path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
  flags = ["--filter=score > 2", "--frame_rate=8", *FLAGS, "--files_per_shard=1"]
  outs = []
  for num_processes in (1, 2):
    outs.append(tmp_path / str(num_processes))
    all_flags = [f"--out={outs[-1]}", f"--num_processes={num_processes}", *flags]
    assert command.main([str(path), *all_flags]) == 0
  first, second = map(read_all, outs)
  assert first == second and len(first) == 3
  facts, data = next(iter(first.values()))
  assert (facts["score"], facts["tags"], facts["frame_rate"]) == (3.5, ["y"], 8.0)
  with av.open(io.BytesIO(data)) as container:
    shown = [
      frame_numbers(f.to_ndarray(format="rgb24")[None])[0] for f in container.decode(video=0)
    ]
  assert shown == [k * 30 // 8 for k in range(16)]
  dropped = (outs[0] / prepare.DROPPED).read_text()
  assert "no caption" in dropped and "red" not in dropped


def test_segments_of_an_index_are_cut(folder, tmp_path):
  long = {"path": str(folder / "a" / "long.mp4"), "caption": "x"}
  parts = [(0.5, 2.0), (2.0, None), (None, None), (4.5, 9.0), (7.0, 9.0)]
  rows = [long | {"start": start, "end": end} for start, end in parts]
  (tmp_path / "i.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  out = tmp_path / "out"
  flags = [*FLAGS, "--short_side=64", "--num_processes=1"]
  assert command.main([str(tmp_path / "i.jsonl"), f"--out={out}", *flags]) == 0
  shown = {}
  for key, (facts, data) in read_all(out).items():
    assert not {"path", "start", "end"} & facts.keys()
    with av.open(io.BytesIO(data)) as container:
      frames = [frame.to_ndarray(format="rgb24")[None] for frame in container.decode(video=0)]
    shown[key.removeprefix(f"{long['path']}#")] = [frame_numbers(frame)[0] for frame in frames]
  expected = {"0.5-2.0.0": (15, 60), "2.0-inf.0": (60, 120), "2.0-inf.1": (120, 150)}
  expected |= {"0": (0, 60), "1": (60, 120), "2": (120, 150)}
  assert shown == {key: list(range(*ends)) for key, ends in expected.items()}
  dropped = [json.loads(line) for line in (out / prepare.DROPPED).read_text().splitlines()]
  causes = {line["key"].removeprefix(f"{long['path']}#"): line["cause"] for line in dropped}
  assert causes["7.0-9.0"] == "ends before its segment begins" and "4.5-9.0" in causes
  # All clips of the file are in the same split.
  source = ShardsSource(out, "train", num_frames=5, frame_rate=8.0, resolution=(32, 64))
  assert {video for s in source._shards.values() for video in s.videos} == {long["path"]}


def test_names_that_are_not_utf8_are_prepared(tmp_path):
  media = tmp_path / "media"
  media.mkdir()
  for name in (b"caf\xe9.png", b"bad\xe9.png"):
    (tmp_path / "new.png").write_bytes(b"text")
    if name.startswith(b"caf"):
      Image.new("RGB", (60, 100)).save(tmp_path / "new.png")
    (tmp_path / "new.png").rename(os.fsdecode(os.fsencode(media) + b"/" + name))
  out = media / "out"  # Which is no data, though it is below the folder.
  for _ in range(2):
    assert command.main([str(media), f"--out={out}", "--num_processes=1", *FLAGS]) == 0
  assert list(read_all(out)) == ["caf\\udce9.png#0"]
  assert '"bad\\\\udce9.png"' in (out / prepare.DROPPED).read_text()


def test_all_clips_of_a_video_are_in_one_split(tmp_path, prepared):
  _, data = read_all(prepared)["a/long.mp4#0"]
  samples = [records.pack({"caption": "x"}, data)] * 60
  records.write_shard(tmp_path / "s.array_record", samples)
  keys = [f"v/{i // 3}.mp4#{i % 3}" for i in range(60)]
  (tmp_path / "s.json").write_text(json.dumps({"keys": keys, "aspect_ratios": [0.5] * 60}))
  clip = {"num_frames": 5, "frame_rate": 8.0, "resolution": (32, 64), "seed": 0}
  videos = {}
  for split, number in (("train", 54), ("test", 6)):
    source = ShardsSource(tmp_path, split, clips_per_file=1, **clip)
    videos[split] = {file.rpartition("#")[0] for file in source.files}
    assert len(source) == number and source.has_test_split
  assert not videos["train"] & videos["test"] and len(videos["test"]) == 2


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["nowhere"], "INPUT=nowhere does not exist; name a folder, an index"),
    (["FILE"], "long.mp4 is a single file; name a folder, an index (.jsonl or .parquet)"),
    (["INDEX", "--filter=y > 1"], "line 1: --filter='y > 1': there is no field 'y'"),
    (["INDEX", "--filter=x >"], "--filter='x >' is not a valid expression"),
    (["INDEX", "--filter=x > 1"], "--filter='x > 1' keeps none of 1 entries"),
    (["TARS"], "It has shards, which can be trained on as they are"),
    (["FOLDER", "--clip_s=0"], "--clip_s=0.0 must be positive and finite"),
    (["FOLDER", "--clip_s=inf"], "--clip_s=inf must be positive and finite"),
    (["FOLDER", "--min_s=20"], "--min_s=20.0 must be between 0 and --clip_s=10.0"),
    (["FOLDER", "--quality=60"], "--quality=60"),
    (["FOLDER", "--num_processes=0"], "--num_processes=0"),
    (["FOLDER", "--filter=x > 1"], "--filter applies to an index"),
    (["EMPTY"], "has nothing to prepare: no video or image"),
  ],
)
def test_bad_flags_are_named(flags, said, folder, tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  (tmp_path / "tars").mkdir()
  (tmp_path / "tars" / "a.tar").touch()
  (tmp_path / "clips.jsonl").write_text('{"path": "a.mp4", "x": 1}\n')
  names = {"FOLDER": folder, "EMPTY": tmp_path / "empty", "TARS": tmp_path / "tars"}
  names |= {"FILE": folder / "a" / "long.mp4", "INDEX": tmp_path / "clips.jsonl"}
  arguments = [str(names.get(flag, flag)) for flag in flags]
  assert command.main([*arguments, f"--out={tmp_path / 'out'}"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and said in error
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["white", "0,0,256", "0,0", "0,0,-1"])
def test_a_background_is_three_numbers(text, capsys):
  with pytest.raises(SystemExit):
    command.main(["folder", "--out=out", f"--background={text}"])
  assert f"{text!r} is not RED,GREEN,BLUE, each 0 to 255" in capsys.readouterr().err


def test_another_preparation_needs_another_folder(folder, prepared, capsys):
  flags = [*FLAGS, "--quality=30"]
  assert command.main([str(folder), f"--out={prepared}", *flags]) == 2
  assert "quality 18 -> 30. Use another folder" in capsys.readouterr().err
