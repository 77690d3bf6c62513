"""Files of unknown codecs, with odd names or texts: read, or a ValueError that says why."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from media_files import encode, frame_numbers, numbered, write_image, write_video

import videoar_jax
from videoar_jax.data import conditioning
from videoar_jax.data.media import clips, containers

SIZE = (16, 32)


def test_text_that_is_not_utf8_does_no_harm(tmp_path):
  path = write_video(tmp_path / "a.avi", 16, 8, codec="mpeg4")
  data = path.read_bytes()
  software = data.index(b"ISFT")
  path.write_bytes(data[: software + 8] + b"Caf\xe9 \x8c" + data[software + 14 :])
  assert clips.probe(path).num_frames == 16
  assert frame_numbers(clips.read_clip(path, 0.0, 9, 8.0, SIZE)) == list(range(9))


@pytest.mark.parametrize(
  "name",
  [os.fsdecode(b"caf\xe9.mp4"), "what: is it.mp4", "http:a.mp4", "100%d.mp4", "-.mp4", "é\n.mp4"],
)
def test_any_file_name(tmp_path, monkeypatch, name):
  os.rename(write_video(tmp_path / "a.mp4", 16, 8), os.fsencode(tmp_path / name))
  monkeypatch.chdir(tmp_path)
  for path in (name, tmp_path / name):
    assert clips.probe(path).num_frames == 16
    assert frame_numbers(clips.read_clip(path, 0.0, 9, 8.0, SIZE)) == list(range(9))


def test_an_unknown_codec_is_a_sentence(tmp_path):
  path = write_video(tmp_path / "a.mp4", 16, 8)
  path.write_bytes(path.read_bytes().replace(b"avc1\0\0\0\0\0\0\0\1", b"zzzz\0\0\0\0\0\0\0\1"))
  for read in (
    clips.probe,
    clips.read_clip,
    lambda path: next(clips.read_frames(path, 8.0)),
    lambda path: clips.decode_video(path, SIZE),
  ):
    with pytest.raises(ValueError, match="its codec is not known"):
      read(path)


def test_a_playlist_opens_no_other_file(tmp_path):
  (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://localhost:1/b.ts\n#EXT-X-ENDLIST\n")
  with pytest.raises(ValueError, match="cannot be opened"):
    clips.probe(tmp_path / "a.mp4")


def test_absurd_sizes_are_refused(tmp_path, monkeypatch):
  path = write_video(tmp_path / "a.mp4", 16, 8)
  monkeypatch.setattr(containers, "MAX_PIXELS", 128 * 64 - 1)
  with pytest.raises(ValueError, match="more than 8,191 pixels"):
    clips.probe(path)


@pytest.mark.parametrize(
  "given",
  [
    *({"num_frames": value} for value in (0, 10**12, 2.5, "9")),
    *({"frame_rate": value} for value in (0.0, math.inf, "8")),
    *({"start_s": value} for value in (-1.0, math.nan, math.inf, None)),
    *({"resolution": value} for value in (64, (0, 0), (64,), (64.5, 64), (10**6, 10**6))),
    *({"crop": value} for value in ((2, 2), 0.5, (0.5, math.nan))),
    *({"background": value} for value in ((0, 0), (0, 0, 256), "white")),
  ],
)
def test_clips_that_cannot_be_are_refused(tmp_path, given, without_type_checks):
  path = write_video(tmp_path / "a.mp4", 16, 8)
  [name] = given
  with pytest.raises(ValueError, match=f"^{name} is .*; set it to"):
    clips.read_clip(path, **given)


@pytest.mark.parametrize("num_frames", [2, 9, 14])
def test_an_image_is_one_frame(tmp_path, num_frames):
  write_image(tmp_path / "a.png", 9)
  with pytest.raises(ValueError, match=f"num_frames is {num_frames}, but this is an image"):
    clips.read_clip(tmp_path / "a.png", num_frames=num_frames)


def test_the_public_reader(tmp_path):
  path = encode(tmp_path / "a.mp4", map(numbered, range(16)))
  clip = videoar_jax.read_clip(path)
  assert clip.shape == (9, 64, 64, 3) and clip.dtype == np.uint8
  code = "import sys, videoar_jax; videoar_jax.read_clip; print('jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout == "False\n"


def test_conditions_name_the_file(tmp_path):
  (tmp_path / "a.mp4").write_bytes(b"no video")
  options = {"lengths": range(1, 9), "is_resized": True}
  with pytest.raises(ValueError, match=r"a\.mp4: cannot be opened as a video"):
    conditioning.read_video(str(tmp_path / "a.mp4"), SIZE, 8.0, **options)
