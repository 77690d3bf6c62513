"""What files' headers say is read once per start, and kept until a file or the reader changes."""

import logging
import os
import time

import pytest
from media_files import frame_numbers, write_image, write_video

from videoar_jax import open_data
from videoar_jax.data.media import clips
from videoar_jax.data.sources import probes


@pytest.fixture
def probed(tmp_path, monkeypatch):
  """The names of the files that are opened, and a folder of three."""
  monkeypatch.setenv("VIDEOAR_JAX_DATA", str(tmp_path / "cache"))
  names, probe = [], clips.probe

  def counted(path):
    names.append(os.path.basename(path))
    return probe(path)

  monkeypatch.setattr(clips, "probe", counted)
  write_video(tmp_path / "data" / "a.mp4", 40, 30)
  write_video(tmp_path / "data" / "b.mp4", 40, 24)
  (tmp_path / "data" / "c.mp4").write_text("no video")
  return names


def restart():
  probes._folders.clear()


def open_all(folder, **options):
  settings = {"num_frames": 5, "resolution": (32, 64)} | options
  sources = [open_data(folder, split=split, **settings) for split in ("train", "test")]
  return [*sources, open_data(folder, **settings | {"num_frames": 3})]


def test_a_file_is_probed_once_per_start(tmp_path, probed):
  first = open_all(tmp_path / "data")
  assert sorted(probed) == ["a.mp4", "b.mp4", "c.mp4"]
  restart()
  second = open_all(tmp_path / "data")
  # A file that could not be read is tried again: the disk may have been at fault.
  assert probed[3:] == ["c.mp4"]
  assert [s.files for s in first] == [s.files for s in second] == [["a.mp4", "b.mp4"]] * 3
  assert [s.skipped for s in first] == [s.skipped for s in second]
  assert first[0]._videos == second[0]._videos


def test_a_changed_file_or_reader_is_probed_again(tmp_path, probed, monkeypatch):
  open_all(tmp_path / "data")
  probed.clear()
  write_video(tmp_path / "data" / "b.mp4", 20, 30)
  os.utime(tmp_path / "data" / "a.mp4", (1, 1))
  (tmp_path / "data" / "d.png").touch()
  assert open_all(tmp_path / "data", frame_rate=9.0)[0].files == ["a.mp4", "b.mp4"]
  assert sorted(probed) == ["a.mp4", "b.mp4"]
  for note in (tmp_path / "cache" / "probes").iterdir():
    note.write_text(note.read_text()[:-9])
  restart()
  open_all(tmp_path / "data")
  assert len(probed) == 5  # A damaged note counts as none.
  restart()
  monkeypatch.setattr(probes, "_reader", lambda: "another version")
  open_all(tmp_path / "data")
  assert len(probed) == 8


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, probed, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setenv("VIDEOAR_JAX_DATA", str(tmp_path / "file"))
  assert frame_numbers(open_all(tmp_path / "data")[0][0]["video"])


def test_what_a_library_did_not_foresee_is_the_files_fault(tmp_path, probed, monkeypatch, caplog):
  probe = clips.probe

  def broken(path):
    if os.path.basename(path) == "b.mp4":
      raise AttributeError("'NoneType' object has no attribute 'thread_count'")
    return probe(path)

  monkeypatch.setattr(clips, "probe", broken)
  (tmp_path / "data" / "c.mp4").unlink()
  with caplog.at_level(logging.WARNING):
    sources = open_all(tmp_path / "data")
  assert sources[0].files == ["a.mp4"] and caplog.text.count("Traceback") == 1
  assert sources[0].skipped == [("b.mp4", "cannot be read (AttributeError)")]


@pytest.mark.slow
def test_the_second_start_takes_a_tenth_of_the_first(tmp_path, monkeypatch):
  monkeypatch.setenv("VIDEOAR_JAX_DATA", str(tmp_path / "cache"))
  write_image(tmp_path / "data" / "0.jpg", 9)
  for i in range(1, 5000):
    os.link(tmp_path / "data" / "0.jpg", tmp_path / "data" / f"{i}.jpg")
  times_s = []
  for _ in range(2):
    restart()
    started = time.process_time()
    assert len(open_data(tmp_path / "data", num_frames=1, resolution=(8, 8)).files) == 4500
    times_s.append(time.process_time() - started)
  assert times_s[1] < 0.1 * times_s[0]


def test_a_test_file_never_moves_to_training(tmp_path, probed):
  folder = tmp_path / "many"
  for i in range(30):
    write_image(folder / f"{i}.png", 9)
  one = {"num_frames": 1, "resolution": (8, 8), "max_bad_share": 1.0}
  train, test = (open_data(folder, split=split, **one) for split in ("train", "test"))
  assert len(train) == 27 and len(test) == 3 and train.has_test_split and test.has_test_split
  (folder / test.files[0]).write_text("bad")
  (folder / train.files[0]).write_text("bad")
  restart()
  later = [open_data(folder, split=split, **one) for split in ("train", "test")]
  assert later[0].files == train.files[1:] and later[1].files == test.files[1:]
  for file in test.files:
    (folder / file).write_text("bad")
  restart()
  later = [open_data(folder, split=split, **one) for split in ("train", "test")]
  # Both say the same: there is no test split, and what was for testing is in neither.
  assert [source.has_test_split for source in later] == [False, False]
  assert later[0].files == later[1].files == train.files[1:]
  for file in train.files:
    (folder / file).write_text("bad")
  write_image(folder / test.files[0], 9)
  restart()
  with pytest.raises(ValueError, match="only files that are for testing"):
    open_data(folder, **one)
