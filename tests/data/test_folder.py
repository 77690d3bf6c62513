"""Clips from files: which frames are read, and what happens to unreadable files."""

import gc
import json
import logging
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import frame_numbers, write_audio, write_image, write_video
from PIL import Image

from videoar_jax.data.media import clips
from videoar_jax.data.pipeline import DataConfig, make_iterator, make_source
from videoar_jax.data.sources.folder import FolderSource
from videoar_jax.text.tokenizers import ByteTokenizer

MEDIA = Path(__file__).parents[3] / "shared" / "media"


def brute_force(path, start_s, num_frames, frame_rate, resolution):
  """Decodes the file from the beginning and looks up each time."""
  with av.open(str(path)) as container:
    frames = list(container.decode(video=0))
  first = frames[0].pts * frames[0].time_base
  times = [frame.pts * frame.time_base - first for frame in frames]
  wanted = [Fraction(start_s) + Fraction(i) / Fraction(frame_rate) for i in range(num_frames)]
  chosen = [max(i for i, t in enumerate(times) if t <= w + Fraction(1, 10**6)) for w in wanted]
  return np.stack([clips.resize_and_crop(clips.Picture(frames[i]), resolution) for i in chosen])


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
  """A folder of small videos of several formats, all with 120 frames."""
  folder = tmp_path_factory.mktemp("videos")
  write_video(folder / "h264_30.mp4", 120, 30)
  write_video(folder / "h264_24.mkv", 120, 24)
  write_video(folder / "h264_late.mkv", 120, 30, first_tick=45)
  write_video(folder / "h264_plain.MOV", 120, 30, b_frames=0)
  write_video(folder / "mpeg4_25.avi", 120, 25, codec="mpeg4")
  return folder


RATES = {
  "h264_30.mp4": 30,
  "h264_24.mkv": 24,
  "h264_late.mkv": 30,
  "h264_plain.MOV": 30,
  "mpeg4_25.avi": 25,
}
READ = {"num_frames": 5, "frame_rate": 8.0, "resolution": (32, 64)}


def open_folder(folder, split="train", **options):
  return FolderSource(folder, split, **READ | options)


def test_the_h264_videos_have_reordered_frames(videos):
  """Otherwise the tests below would prove less than they claim."""
  with av.open(str(videos / "h264_30.mp4")) as container:
    ticks = [p.pts for p in container.demux(video=0) if p.pts is not None]
  assert ticks != sorted(ticks)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("frame_rate", [8.0, 12.5, 60.0])
def test_reads_the_frame_that_is_shown_at_each_time(videos, name, frame_rate):
  for start in (0.0, 0.01, 1.0, 1.3, 2.75):
    clip = clips.read_clip(videos / name, start, 7, frame_rate, (32, 64))
    times = start + np.arange(7) / frame_rate
    assert frame_numbers(clip) == np.floor(times * RATES[name] + 1e-6).astype(int).tolist()


@pytest.mark.parametrize("name", RATES)
def test_reads_each_frame_of_a_file_once_at_its_own_rate(videos, name):
  clip = clips.read_clip(videos / name, 0.0, 120, RATES[name], (32, 64))
  assert frame_numbers(clip) == list(range(120))
  with pytest.raises(ValueError, match="ends before the clip does"):
    clips.read_clip(videos / name, 1.0, 120, RATES[name], (32, 64))


def test_searches_on_where_a_format_finds_only_a_later_key_frame(tmp_path):
  # Transport streams have no index.
  write_video(tmp_path / "a.ts", 120, 30)
  for start in (0.0, 0.5, 1.3, 2.2, 3.1):
    clip = clips.read_clip(tmp_path / "a.ts", start, 3, 30, (32, 64))
    first = round(start * 30)
    assert frame_numbers(clip) == [first, first + 1, first + 2]


@pytest.mark.parametrize("name", RATES)
def test_decoded_video_gives_the_same_clips(videos, name):
  decoded = clips.decode_video(videos / name, (32, 64))
  for start in (0.0, 0.4, 1.99, 3.4):
    read = clips.read_clip(videos / name, start, 7, 16.0, (32, 64))
    assert np.array_equal(clips.clip_of(decoded, start, 7, 16.0), read)


@pytest.mark.parametrize("name", ["bikes.mp4", "sample_video.mp4"])
def test_real_videos_agree_with_decoding_from_the_beginning(name):
  if not (MEDIA / name).exists():
    pytest.skip(f"{MEDIA / name} is not there")
  for start in (0.0, 2.51):
    read = clips.read_clip(MEDIA / name, start, 4, 8.0, (48, 64))
    assert np.array_equal(read, brute_force(MEDIA / name, start, 4, 8.0, (48, 64)))


def test_crops_the_middle_and_keeps_proportions():
  ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
  frame = av.VideoFrame.from_ndarray(ramp, format="rgb24")
  crop = clips.resize_and_crop(clips.Picture(frame), (50, 50))
  assert crop.shape == (50, 50, 3)
  assert np.abs(crop[0, :, 0] - (50.5 + 2 * np.arange(50))).max() < 1.5
  # Pillow's filters widen as they shrink: stripes of one pixel become grey, not other stripes.
  stripes = np.tile((np.arange(200) % 2 * 255).astype(np.uint8)[None, :, None], (100, 1, 3))
  picture = clips.Picture(av.VideoFrame.from_ndarray(stripes, format="rgb24"))
  small = clips.resize_and_crop(picture, (20, 20))
  assert small[5, 2:-2].std() < 12


def test_cache_changes_nothing(videos):
  cached, plain = open_folder(videos), open_folder(videos, cache_bytes=0)
  assert cached.is_cached and not plain.is_cached
  for index in range(2 * len(cached)):
    a, b = cached[index], plain[index]
    for sample in (a, b):
      assert np.isnan(sample.pop("flow"))  # Which equals nothing.
    assert np.array_equal(a.pop("video"), b.pop("video")) and a == b


def test_all_shapes_share_the_bytes_of_the_cache(videos):
  """A reshaped source draws none of them; clips are the same with and without."""
  frame_bytes = 32 * 64 * 3
  source = open_folder(videos, cache_bytes=5 * 120 * frame_bytes * 5 // 4)
  small, large, tiny = (source.reshaped(5, size) for size in ((32, 64), (32, 64), (16, 32)))
  for reader in (small, large, tiny):
    assert reader[0]["video"].shape[0] == 5
  assert [bool(reader._cache) for reader in (small, large, tiny)] == [True, False, True]
  assert not source.is_cached
  assert np.array_equal(small[1]["video"], large[1]["video"])
  # What is out of use gives its bytes back, to those that begin then.
  del small, reader
  gc.collect()
  assert source.reshaped(5, (32, 64)).is_cached


def test_items_are_functions_of_seed_and_index(videos):
  source, again = open_folder(videos), open_folder(videos)
  with ThreadPoolExecutor(4) as pool:
    items = list(pool.map(source.__getitem__, range(20)))
  for index in reversed(range(20)):
    assert np.array_equal(again[index]["video"], items[index]["video"])
  count = len(source)
  assert not np.array_equal(items[0]["video"], items[count]["video"])
  other = [open_folder(videos, seed=1)[i]["video"] for i in range(count)]
  assert any(not np.array_equal(a, b["video"]) for a, b in zip(other, items, strict=False))


def test_test_clips_are_evenly_spaced_and_repeat(videos):
  source = open_folder(videos, "test", clips_per_file=3)
  assert len(source) == 3 * len(source.files)
  position = source.files.index("h264_30.mp4")
  starts = [frame_numbers(source[position + k * len(source.files)]["video"])[0] for k in range(4)]
  # The last start is at frame 119 - 15.
  assert starts[:3] == [int(104 / 6), 52, int(104 * 5 / 6)] and starts[3] == starts[0]


def test_classes_and_captions_are_the_folders_names(tmp_path, videos):
  for file in ("cats/a.mp4", "dogs/deep/b.mp4", "root.mp4", "cats/c.MP4"):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(videos / "h264_30.mp4", tmp_path / file)
  source = open_folder(tmp_path)
  assert source.files == ["cats/a.mp4", "cats/c.MP4", "dogs/deep/b.mp4", "root.mp4"]
  assert source.class_names == sorted(["cats", "deep", tmp_path.name])
  captions = [source[i]["caption"] for i in range(4)]
  assert captions == ["cats", "cats", "deep", tmp_path.name]
  assert [source.class_names[source[i]["class_id"]] for i in range(4)] == captions
  (tmp_path / "captions.jsonl").write_text(
    json.dumps({"file": "dogs/deep/b.mp4", "caption": "ein Hündchen"}, ensure_ascii=False) + "\n\n",
    encoding="utf-8",
  )
  source = open_folder(tmp_path)
  assert [source[i]["caption"] for i in range(3)] == ["cats", "cats", "ein Hündchen"]


def test_a_tenth_of_twenty_files_is_for_testing(tmp_path, videos):
  for number in range(20):
    shutil.copy(videos / "h264_24.mkv", tmp_path / f"{number}.mkv")
  train, test = open_folder(tmp_path), open_folder(tmp_path, "test")
  assert train.has_test_split and len(train.files) == 18 and len(test.files) == 2
  assert set(train.files) | set(test.files) == {f"{n}.mkv" for n in range(20)}
  assert open_folder(tmp_path, "test").files == test.files
  (tmp_path / "0.mkv").unlink()
  train, test = open_folder(tmp_path), open_folder(tmp_path, "test")
  assert not train.has_test_split and train.files == test.files and len(train.files) == 19


def test_files_that_cannot_be_used_are_skipped_with_a_reason(tmp_path, videos, caplog):
  good = videos / "h264_30.mp4"
  shutil.copy(good, tmp_path / "good.mp4")
  (tmp_path / "truncated.mp4").write_bytes(good.read_bytes()[:3000])
  (tmp_path / "zero.mp4").write_bytes(b"")
  (tmp_path / "text.mp4").write_text("this is not a video\n" * 100)
  (tmp_path / "notes.txt").write_text("not looked at")
  (tmp_path / "folder.mp4").mkdir()
  write_audio(tmp_path / "audio.mp4")
  write_video(tmp_path / "short.mp4", 15, 30)
  with caplog.at_level(logging.WARNING):
    source = open_folder(tmp_path)
  assert source.files == ["good.mp4"]
  reasons = dict(source.skipped)
  assert reasons.keys() == {"audio.mp4", "short.mp4", "text.mp4", "truncated.mp4", "zero.mp4"}
  assert reasons["zero.mp4"] == "empty file"
  assert reasons["audio.mp4"] == "no video stream"
  assert "too short for 5 frames at 8 per second" in reasons["short.mp4"]
  assert "cannot be opened" in reasons["text.mp4"] and "cannot be" in reasons["truncated.mp4"]
  assert "5 of 6 videos are skipped" in caplog.text
  assert frame_numbers(source[0]["video"])


def test_the_shortest_usable_video_is_one_frame_longer(tmp_path):
  # At 30 per second, frame 15 is shown at 0.5 s, which is where the last of 5 at 8 per second is.
  write_video(tmp_path / "just.mp4", 16, 30)
  source = open_folder(tmp_path)
  assert frame_numbers(source[0]["video"]) == [0, 3, 7, 11, 15]


def test_a_folder_without_usable_videos_is_an_error_that_says_why(tmp_path):
  with pytest.raises(ValueError, match="not a folder"):
    open_folder(tmp_path / "nowhere")
  with pytest.raises(ValueError, match=r"\.mp4, \.m4v, \.mov, \.webm.*no video was found"):
    open_folder(tmp_path)
  for name in "abc":
    (tmp_path / f"{name}.mp4").write_bytes(b"")
  (tmp_path / "d.mp4").write_text("text")
  with pytest.raises(ValueError, match=r"4 videos .*3 x empty file; 1 x cannot be opened"):
    open_folder(tmp_path)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"file": "a.mp4", "caption"', r"line 2: expected .*JSONDecodeError"),
    ('{"file": "a.mp4"}', r"line 2: expected .*KeyError: 'caption'"),
    ('["a.mp4", "caption"]', r"line 2: expected "),
    ('{"file": "a.mp4", "caption": 3}', r"line 2: expected .*a caption is not a text"),
    ('{"file": "a.mp4", "captions": "abc"}', r"line 2: expected .*captions is not a list"),
    ('{"file": 3, "caption": "x"}', r"line 2: expected .*file must be a string"),
    ("[]", r"line 2: expected .*it is no object in braces"),
    ('{"file": "b.mp4", "caption": "x"}', r"line 2: there is no video 'b.mp4'.*fix the path"),
    ('{"file": "./a.mp4", "caption": "x"}', r"line 2: 'a.mp4' has a caption already"),
  ],
)
def test_wrong_captions_name_the_line(tmp_path, videos, line, message):
  shutil.copy(videos / "h264_30.mp4", tmp_path / "a.mp4")
  good = '{"file": "a.mp4", "caption": "x"}'
  (tmp_path / "captions.jsonl").write_text(f"{good}\n{line}\n")
  with pytest.raises(ValueError, match=r"captions\.jsonl, " + message):
    open_folder(tmp_path)


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_another_video_stands_in_for_one_that_fails_later(tmp_path, caplog, cache_bytes):
  for value, name in enumerate("abc"):
    write_video(tmp_path / f"{name}.mp4", 40, 30, value=value)
  source = open_folder(tmp_path, cache_bytes=cache_bytes)
  (tmp_path / "b.mp4").write_bytes(b"gone")
  with caplog.at_level(logging.WARNING):
    shown = [frame_numbers(source[i]["video"])[0] for i in range(30)]
  assert shown[::3] == [0] * 10 and shown[2::3] == [2] * 10 and set(shown[1::3]) == {0, 2}
  assert [source[i]["caption"] for i in range(3)] == [tmp_path.name] * 3
  assert [file for file, _ in source.skipped] == ["b.mp4"] and caplog.text.count("replaced by") == 1
  if cache_bytes == 0:
    for name in "ac":
      (tmp_path / f"{name}.mp4").unlink()
    with pytest.raises(ValueError, match=r"2 x cannot be opened.*1 x cannot be opened"):
      source[0]


def test_causes_have_no_numbers_of_their_own(tmp_path, caplog):
  """Files truncated at different times count as one cause; the log has the times."""
  # It says at its beginning how long it is, so that one that is cut off can be opened.
  write_video(tmp_path / "whole.mp4", 120, 30, container={"movflags": "faststart"})
  whole = (tmp_path / "whole.mp4").read_bytes()
  for part in (6, 7, 8):
    (tmp_path / f"{part}.mp4").write_bytes(whole[: len(whole) * part // 10])
  source = open_folder(tmp_path, num_frames=31)
  for i in range(4):
    source[i]
  assert source.skipped == [(f"{part}.mp4", "ends before the clip does") for part in (6, 7, 8)]
  assert len(set(re.findall(r"at \d\.\d\d s, not 3\.\d\d s", caplog.text))) == 3


def test_pipeline_reads_a_folder_and_resumes(videos):
  config = DataConfig(source="folder", path=str(videos), num_frames=3, resolution=(16, 32))
  options = {"batch_size": 2, "seed": 0, "tokenize": ByteTokenizer(64).encode}
  batches = make_iterator(make_source(config, "train"), **options)
  for _ in range(3):
    next(batches)
  state = batches.get_state()
  expected = [next(batches) for _ in range(4)]
  resumed = make_iterator(make_source(config, "train"), **options)
  resumed.set_state(state)
  for batch in expected:
    other = next(resumed)
    assert all(np.array_equal(batch[name], other[name]) for name in batch)


def test_images_are_clips_of_one_frame(tmp_path, videos):
  for value, suffix in ((40, "jpg"), (80, "PNG"), (120, "webp"), (160, "jpeg")):
    write_image(tmp_path / f"{value}.{suffix}", value)
  shutil.copy(videos / "h264_30.mp4", tmp_path / "video.mp4")
  for cache_bytes in (0, 2**30):
    source = open_folder(tmp_path, num_frames=1, cache_bytes=cache_bytes)
    assert len(source.files) == 5 and not source.skipped
    for i, file in enumerate(source.files[:4]):
      frame = source[i]["video"]
      assert frame.shape == (1, 32, 64, 3)
      assert np.abs(frame - float(file.partition(".")[0])).max() <= 2
  # Beside longer clips they are left out, and they are not reported as bad samples.
  source = open_folder(tmp_path)
  assert source.files == ["video.mp4"] and not source.skipped
  (tmp_path / "video.mp4").unlink()
  with pytest.raises(ValueError, match=r"4 images are there.*set num_frames=1"):
    open_folder(tmp_path)


def test_images_stand_upright_and_damaged_ones_are_skipped(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned a quarter to the right.
  left = Image.new("RGB", (40, 20))
  left.paste((255, 255, 255), (0, 0, 20, 20))
  left.save(tmp_path / "a.png", exif=exif)
  frame = open_folder(tmp_path, num_frames=1, resolution=(40, 20))[0]["video"][0]
  assert frame[:18].min() > 200 and frame[22:].max() < 50
  whole = (tmp_path / "a.png").read_bytes()
  (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff" + b"x" * 100)
  (tmp_path / "d.jpg").write_bytes(b"text")
  source = open_folder(tmp_path, num_frames=1)
  assert source.files == ["a.png"]
  reasons = dict(source.skipped)
  assert "cannot be decoded as an image" in reasons["b.png"] and "c.jpg" in reasons
  assert reasons["d.jpg"].startswith("cannot be decoded (")
