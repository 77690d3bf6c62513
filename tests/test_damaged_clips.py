"""Training on a data set with a tenth of damaged files, of five kinds, which are reported."""

import collections
import json
from fractions import Fraction

import av
import numpy as np
import pytest
from commands import command, run
from PIL import Image

from videoar_jax.data.synthetic.sprites import SpritesSource

NUM_FRAMES, FRAME_RATE = 17, 8
UNREADABLE = "cannot be opened as a video (Invalid data found when processing input)"


def write(path, frames, *, has_keyframe=True, container=None):
  """Writes frames as mp4; without the key frame, no other frame can be decoded."""
  with av.open(str(path), "w", options=container or {}) as output:
    stream = output.add_stream("libx264", rate=FRAME_RATE)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt, stream.options = "yuv420p", {"preset": "ultrafast", "bf": "0"}
    stream.codec_context.time_base = Fraction(1, FRAME_RATE)
    for number, pixels in enumerate([*frames, None]):
      frame = None if pixels is None else av.VideoFrame.from_ndarray(pixels, format="rgb24")
      if frame is not None:
        frame.pts, frame.time_base = number, Fraction(1, FRAME_RATE)
      for packet in stream.encode(frame):
        if has_keyframe or not packet.is_keyframe:
          output.mux(packet)


def write_part(path, frames, container=None):
  write(path, frames, container=container)
  data = path.read_bytes()
  path.write_bytes(data[: len(data) * 7 // 10])


# What is written in place of a clip, and what is said of it.
OTHERS = [
  (lambda path, frames: path.touch(), "empty file"),
  (
    lambda path, frames: Image.fromarray(frames[0]).save(path, "png"),
    "too short for 9 frames at 8 per second",
  ),
  (lambda path, frames: path.write_text("this is not a video\n" * 100), UNREADABLE),
  (lambda path, frames: write(path, frames, has_keyframe=False), "no frame could be decoded"),
]
# The index of a clip that is cut off is gone with its end, or is at its beginning.
INDEX_FIRST = {"movflags": "faststart"}
DAMAGE = [
  *[(write_part, UNREADABLE), *OTHERS],
  *[(lambda *clip: write_part(*clip, INDEX_FIRST), "ends before the clip does"), *OTHERS],
]


def write_clips(folder, num_clips):
  """Writes sprites clips at 320x240, a tenth of them damaged; returns the causes by file."""
  source = SpritesSource(
    "train", num_frames=NUM_FRAMES, resolution=(240, 320), frame_rate=FRAME_RATE
  )
  damaged = np.random.default_rng(0).choice(num_clips, num_clips // 10, replace=False).tolist()
  causes = {}
  for number in range(num_clips):
    path, make = folder / f"{number:04d}.mp4", write
    if number in damaged:
      make, causes[path.name] = DAMAGE[damaged.index(number) % len(DAMAGE)]
    make(path, source[number]["video"])
  return causes


@pytest.mark.slow
@pytest.mark.parametrize("num_clips", [100])
def test_a_tenth_that_is_damaged_is_replaced_and_counted(tmp_path, num_clips):
  (tmp_path / "clips").mkdir()
  causes = write_clips(tmp_path / "clips", num_clips)
  flags = {
    "stages": "('tokenizer',)",
    "data.num_frames": 9,
    "data.frame_rate": FRAME_RATE,
    "data.clips_per_file": 1,
    # Every clip of both splits is read.
    "stage.tokenizer.loop.num_steps": num_clips // 4,
    "stage.tokenizer.loop.save_every": 1000,
    "report.num_clips": num_clips,
  }
  config = f"configs/quickstart.py:size=tiny,data={tmp_path / 'clips'}"
  settings = [f"--config.{name}={value}" for name, value in flags.items()]
  done = run(command(tmp_path / "run", *settings, config=config))
  assert done.returncode == 0, done.stderr[-3000:]
  lines = (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()
  found = {entry["key"]: entry["cause"] for entry in map(json.loads, lines)}
  assert collections.Counter(found.values()) == collections.Counter(causes.values())
  assert found == causes and len(lines) == num_clips // 10
  records = (tmp_path / "run" / "tokenizer" / "metrics.jsonl").read_text().splitlines()
  losses = [json.loads(record)["loss"] for record in records]
  assert len(losses) == num_clips // 4 and np.mean(losses[-5:]) < np.mean(losses[:5])
  assert f"Skipped: {num_clips // 10}." in (tmp_path / "run" / "report.md").read_text()
