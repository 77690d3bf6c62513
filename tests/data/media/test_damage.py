"""Random damage: nothing but ValueError leaves the reader, and soon.

$VIDEOAR_JAX_FUZZ_TRIES raises the number of tries for each kind of file, $VIDEOAR_JAX_FUZZ_SEED
changes them.
"""

import io
import itertools
import os
import time

import av
import numpy as np
import pytest
from media_files import encode, numbered, write_xvid
from PIL import Image

from videoar_jax.data.media import clips

TRIES = int(os.environ.get("VIDEOAR_JAX_FUZZ_TRIES", "40"))
SEED = int(os.environ.get("VIDEOAR_JAX_FUZZ_SEED", "0"))
LIMIT_S = 10.0
FILES = ["a.mp4", "a.webm", "a.mkv", "a.avi", "packed.avi", "a.gif", "a.jpg", "a.png", "a.webp"]


def build(folder, name):
  """Returns the bytes of a small file."""
  path, stem = folder / name, name.partition(".")[0]
  frames = [numbered(number) for number in range(12)]
  if name.endswith(".avi"):
    return write_xvid(path, 12, is_packed=stem == "packed").read_bytes()
  if name.endswith(("mp4", "mkv")):
    return encode(path, frames, options={"g": "5"}, sample_aspect_ratio=2).read_bytes()
  if name.endswith("webm"):
    return encode(path, frames, codec="libvpx", options={"deadline": "realtime"}).read_bytes()
  images = [Image.fromarray(frame) for frame in frames]
  if name.endswith("gif"):
    images[0].save(path, save_all=True, append_images=images[1:], duration=60)
  else:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    images[5].convert("RGB" if name.endswith("jpg") else "RGBA").save(path, exif=exif)
  return path.read_bytes()


def damaged(data, rng):
  """Returns a file with a few other bytes, or cut off, or with bytes left out or put in."""
  data = bytearray(data)
  # Headers are at the ends of files.
  region = [len(data), min(len(data), 400), len(data)][rng.integers(3)]
  kind = rng.integers(5)
  for _ in range(int(rng.integers(1, 12))):
    at = int(rng.integers(region)) if rng.random() < 0.7 else int(rng.integers(len(data)))
    data[at] = (0, 255, 128, int(rng.integers(256)))[rng.integers(4)]
  at = int(rng.integers(len(data)))
  if kind == 0:
    del data[at:]
  elif kind == 1:
    del data[at : at + int(rng.integers(1, 40))]
  elif kind == 2:
    data[at:at] = rng.integers(0, 256, int(rng.integers(1, 40)), np.uint8).tobytes()
  return bytes(data)


def read_every_way(data):
  for read in (
    clips.probe,
    lambda media: clips.read_clip(media, 0.4, 4, 6.0, (16, 16)),
    lambda media: clips.decode_video(media, (16, 16)),
    lambda media: list(map(shown, itertools.islice(clips.read_frames(media, 8.0), 30))),
  ):
    try:
      read(io.BytesIO(data))
    except ValueError as error:
      assert not isinstance(error, av.FFmpegError | UnicodeError), repr(error)


def shown(picture):
  return clips.resize_and_crop(picture, (16, 16))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_random_damage_is_a_value_error(tmp_path, name):
  whole = build(tmp_path, name)
  for number in range(TRIES):
    data = damaged(whole, np.random.default_rng((SEED, number)))
    begin = time.monotonic()
    try:
      read_every_way(data)
    except Exception as error:
      error.add_note(f"try {number} of seed {SEED}")
      raise
    assert time.monotonic() - begin < LIMIT_S, f"try {number} of seed {SEED} took too long"


def test_a_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
  """Neither is the file blamed for it, nor is a clip cut short in silence."""
  (tmp_path / "a.mp4").write_bytes(build(tmp_path, "a.mp4"))
  resize, count = clips.resize_and_crop, itertools.count()

  def fail(*arguments):
    if next(count) == 3:
      raise MemoryError
    return resize(*arguments)

  monkeypatch.setattr(clips, "resize_and_crop", fail)
  with pytest.raises(MemoryError):
    clips.decode_video(tmp_path / "a.mp4", (16, 16))
