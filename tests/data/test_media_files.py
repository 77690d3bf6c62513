"""Which files below a folder are data, and by which names they are found."""

import itertools
import json
import os
import unicodedata

import numpy as np
import pytest
from media_files import frame_numbers, write_image, write_video
from PIL import Image, ImageSequence

from videoar_jax import open_data
from videoar_jax.data.sources import media_files
from videoar_jax.data.sources.media_files import Names, find_media, is_hidden, list_files
from videoar_jax.evals.sample_files import Out, write_frames

ONE = {"num_frames": 1, "resolution": (32, 64)}


def touch(folder, *files):
  for file in files:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).touch()


def test_hidden_files_and_folders_are_no_data(tmp_path):
  touch(tmp_path / ".data", "cats/a.mp4", "cats/._a.mp4", "cats/.ipynb_checkpoints/a.mp4")
  touch(tmp_path / ".data", ".Trash-1000/files/b.mp4", ".c.mp4")
  # The folder itself may lie in a hidden one.
  assert find_media(tmp_path / ".data") == ["cats/a.mp4"]
  assert not is_hidden("./a/../b.mp4") and is_hidden("a/.b/c.mp4")


def test_links_are_followed_and_loops_end(tmp_path):
  touch(tmp_path / "store", "dogs/a.mp4", "dogs/deep/b.mp4", "c.mp4")
  data = tmp_path / "data"
  touch(data, "birds/d.mp4")
  (data / "dogs").symlink_to(tmp_path / "store" / "dogs")
  (data / "c.mp4").symlink_to(tmp_path / "store" / "c.mp4")
  (data / "birds" / "loop").symlink_to(data)
  (tmp_path / "store" / "dogs" / "up").symlink_to(tmp_path / "store")
  (data / "again").symlink_to(data / "birds")
  (data / "self.mp4").symlink_to(data / "self.mp4")
  (data / "broken.mp4").symlink_to(tmp_path / "gone.mp4")
  os.mkfifo(data / "pipe.mp4")  # Opening it would wait for ever.
  found = ["birds/d.mp4", "broken.mp4", "c.mp4", "dogs/a.mp4", "dogs/deep/b.mp4", "self.mp4"]
  assert find_media(data) == sorted([*found, "dogs/up/c.mp4"])


def test_broken_links_and_unreadable_folders_are_named(tmp_path, caplog, monkeypatch):
  write_image(tmp_path / "a.png", 9)
  (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
  (tmp_path / "locked").mkdir()
  scan = os.scandir

  def scandir(path):
    if str(path).endswith("locked"):
      raise PermissionError(13, "Permission denied")
    return scan(path)

  monkeypatch.setattr(media_files.os, "scandir", scandir)
  source = open_data(tmp_path, **ONE)
  assert source.files == ["a.png"] and [file for file, _ in source.skipped] == ["broken.png"]
  assert "locked is left out: Permission denied" in caplog.text


@pytest.mark.parametrize("root", [False, True])
def test_what_the_package_writes_is_no_data(tmp_path, root, caplog):
  touch(tmp_path, "a.mp4", "config.json", "cats/config.json", "cats/b.mp4")
  run = tmp_path if root else tmp_path / "runs" / "x"
  touch(run, "config.json", "run.json", "samples/c.mp4", "report/samples.webp")
  touch(tmp_path, "shards/prepared.json", "shards/d.mp4")
  touch(tmp_path, "evaluation/generation.json", "evaluation/generation.mp4")
  media_files.mark_output(tmp_path / "more", ["e_0_0.mp4"])
  touch(tmp_path, "more/e_0_0.mp4", "more/contact_sheet.png")
  media_files.mark_output(tmp_path / "cats", ["f_0_0.mp4"])  # Which had files before.
  touch(tmp_path, "cats/f_0_0.mp4")
  assert find_media(tmp_path) == ["a.mp4", "cats/b.mp4"]
  assert "more is left out: videoar_jax has written it" in caplog.text
  assert "cats/f_0_0.mp4 is left out: videoar_jax has written it" in caplog.text
  assert ("samples is left out" in caplog.text) is root  # Which may be a class of the user's.
  assert find_media(tmp_path / "more") == ["contact_sheet.png", "e_0_0.mp4"]  # As is asked for.


def test_samples_below_the_data_do_not_become_data(tmp_path):
  write_image(tmp_path / "a.png", 9)
  clip = np.zeros((1, 1, 8, 8, 3), np.uint8)
  write_frames([tmp_path / "stream" / "x_0"], [clip])
  Out(tmp_path / "samples", 8.0).write(["x_0"], ["x"], clip)
  assert (tmp_path / "samples" / "x_0.mp4").is_file() and find_media(tmp_path) == ["a.png"]
  # Beside data.
  write_frames([tmp_path / "y_0"], [clip])
  out = Out(tmp_path, 8.0)
  out.write(["z_0"], ["z"], clip)
  out.write_sheet()
  written = {"a.png", "contact_sheet.png", "samples", "stream", "y_0", "z_0.mp4"}
  assert {path.name for path in tmp_path.iterdir()} == {".videoar_jax_output", *written}
  assert find_media(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
  ("name", "codec"),
  [
    *[("a.m4v", "libx264"), ("a.MPG", "mpeg1video"), ("a.mpeg", "mpeg2video"), ("a.ts", "libx264")],
    *[("a.m2ts", "libx264"), ("a.wmv", "wmv2"), ("a.ogv", "libvpx"), ("a.3gp", "mpeg4")],
    ("a.flv", "flv1"),
  ],
)
def test_videos_of_all_kinds_are_read(tmp_path, name, codec):
  path = write_video(tmp_path / "made" / name.lower(), 60, 25, codec=codec)
  path.rename(path.with_name(name))
  source = open_data(tmp_path, num_frames=3, resolution=(32, 64), split="test")
  numbers = frame_numbers(source[0]["video"])
  assert source.files == [f"made/{name}"] and 3 <= numbers[1] - numbers[0] <= 4


def test_a_gif_is_a_video(tmp_path):
  frames = [Image.new("L", (64, 32), 10 * i) for i in range(20)]
  frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
  assert len(list(ImageSequence.Iterator(Image.open(tmp_path / "a.gif")))) == 20
  video = open_data(tmp_path, frame_rate=10.0, num_frames=3, resolution=(32, 64))[0]["video"]
  steps = [int(b.mean()) - int(a.mean()) for a, b in itertools.pairwise(video)]
  assert all(18 <= step <= 22 for step in steps)


@pytest.mark.parametrize("name", ["a.bmp", "a.TIF", "a.tiff"])
def test_images_of_more_kinds_are_read(tmp_path, name):
  write_image(tmp_path / name, 90)
  video = open_data(tmp_path, **ONE)[0]["video"]
  assert video.shape == (1, 32, 64, 3) and abs(video - 90.0).max() <= 2


def test_where_nothing_is_found_other_files_are_told(tmp_path):
  touch(tmp_path, "a.heic", "b.HEIC", "c.rmvb", "notes", ".hidden.zip")
  with pytest.raises(
    ValueError, match=r"other files are there: 2 x \.heic, 1 x \.rmvb, 1 x no end"
  ):
    open_data(tmp_path)
  assert sorted(list_files(tmp_path).others) == ["a.heic", "b.HEIC", "c.rmvb", "notes"]


def test_a_name_is_found_in_any_spelling():
  nfc, nfd = (unicodedata.normalize(form, "é/ü.mp4") for form in ("NFC", "NFD"))
  assert nfc != nfd and Names([nfc]).find(nfd) == nfc and Names([nfd]).find(f"./{nfc}") == nfd
  assert Names([nfc, nfd]).find(nfd) == nfd and Names([nfc]).find("e/ü.mp4") is None


def test_names_that_are_not_utf8_are_read_and_named(tmp_path, caplog):
  for i in range(25):
    folder = os.fsencode(tmp_path) + (b"/caf\xe9" if i % 2 else b"/plain")
    os.makedirs(folder, exist_ok=True)
    write_image(tmp_path / "new.png", 9)
    os.rename(tmp_path / "new.png", folder + b"/%d\xe9.png" % i)
  os.rename(os.fsencode(tmp_path) + b"/plain/0\xe9.png", os.fsencode(tmp_path) + b"/0\xe9.png")
  with open(os.fsencode(tmp_path) + b"/bad\xe9.png", "wb") as file:
    file.write(b"text")
  source, test = open_data(tmp_path, **ONE), open_data(tmp_path, split="test", **ONE)
  assert len(source) + len(test) == 25 and not set(source.files) & set(test.files)
  assert {source[i]["caption"] for i in range(len(source))} >= {"caf?", "plain"}
  assert [file for file, _ in source.skipped] == ["bad\\udce9.png"]
  json.dumps([source.skipped, source.class_names], ensure_ascii=False).encode()
