"""Files of clips are complete, have the right size, and show the right content."""

import av
import numpy as np
import pytest
from PIL import Image

from videoar_jax.evals import media
from videoar_jax.evals.media import (
  contact_sheet,
  moving_sheet,
  slug,
  write_mp4,
  write_png,
  write_webp,
)

COLOURS = np.array([(220, 30, 30), (30, 200, 40), (30, 40, 220), (240, 240, 240)], np.uint8)


def plain_clips(num_clips, num_frames, height, width):
  """Clips in which each frame has a single colour of its own."""
  which = (np.arange(num_clips)[:, None] + np.arange(num_frames)) % len(COLOURS)
  clips = np.empty((num_clips, num_frames, height, width, 3), np.uint8)
  clips[:] = COLOURS[which][:, :, None, None]
  return clips


@pytest.mark.parametrize(
  ("num_frames", "height", "width", "size"),
  [(9, 64, 64, (256, 256)), (1, 64, 96, (256, 384)), (5, 33, 101, (264, 808)), (2, 257, 301, None)],
)
def test_mp4_has_the_frames_and_their_size(tmp_path, num_frames, height, width, size):
  clip = plain_clips(1, num_frames, height, width)[0]
  write_mp4(tmp_path / "clip.mp4", clip, frame_rate=7.5)
  with av.open(str(tmp_path / "clip.mp4")) as container:
    stream = container.streams.video[0]
    rate = float(stream.average_rate)
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
  assert len(frames) == num_frames
  assert frames[0].shape[:2] == (size or (256, 300))
  assert num_frames == 1 or rate == pytest.approx(7.5)
  for frame, original in zip(frames, clip, strict=True):
    middle = frame[frame.shape[0] // 2, frame.shape[1] // 2]
    assert np.abs(middle.astype(int) - original[0, 0]).max() < 12


def test_a_failed_mp4_leaves_nothing(tmp_path, monkeypatch):
  def fail(path, frames, frame_rate):
    path.write_bytes(b"half of it")
    raise OSError("No space left on device")

  monkeypatch.setattr(media, "_encode", fail)
  with pytest.raises(OSError, match="No space"):
    write_mp4(tmp_path / "clip.mp4", np.zeros((2, 64, 64, 3), np.uint8), 8.0)
  assert not list(tmp_path.iterdir())


def test_contact_sheet_puts_frames_in_rows():
  clips = plain_clips(2, 3, 48, 48)
  sheet = np.asarray(contact_sheet(clips, min_side=96))
  # Cells of 2 x 48 pixels, with a margin of 2 around each.
  assert sheet.shape == (2 * 98 + 2, 3 * 98 + 2, 3)
  for row in range(2):
    for column in range(3):
      top, left = 2 + 98 * row, 2 + 98 * column
      cell = sheet[top : top + 96, left : left + 96]
      assert (cell == clips[row, column, 0, 0]).all()
      assert (sheet[top - 2 : top, left : left + 96] == 255).all()


def test_contact_sheet_shows_first_and_last_of_many_frames():
  clips = np.zeros((1, 33, 96, 96, 3), np.uint8)
  clips[0] += np.arange(33, dtype=np.uint8)[:, None, None, None]
  sheet = np.asarray(contact_sheet(clips, num_columns=5))
  assert sheet.shape[1] == 5 * 98 + 2
  assert [sheet[50, 50 + 98 * column, 0] for column in range(5)] == [0, 8, 16, 24, 32]


def test_contact_sheet_has_room_for_captions():
  clips = plain_clips(2, 1, 96, 96)
  captions = ["a caption that is much wider than the one frame below it, to its very end", "b"]
  sheet = np.asarray(contact_sheet(clips, captions))
  assert sheet.shape[0] == 2 * (98 + 15) + 2
  ink = sheet[2:17].min(axis=(0, 2)) < 128
  last = np.nonzero(ink)[0][-1]
  assert sheet.shape[1] > 98 + 2
  assert sheet.shape[1] - 10 < last < sheet.shape[1] - 1
  assert (sheet[17:113, 2:98] == clips[0, 0, 0, 0]).all()


def test_png_replaces_what_was_there(tmp_path):
  path = tmp_path / "sheet.png"
  path.write_text("old")
  write_png(path, Image.new("RGB", (3, 2), (9, 8, 7)))
  assert Image.open(path).size == (3, 2)
  assert list(tmp_path.iterdir()) == [path]


def test_slug_is_a_file_name():
  assert slug("A large, red circle: moves left!") == "a_large_red_circle_moves_left"
  assert slug("../../etc") == "etc"
  assert slug("?!") == "empty"
  assert len(slug("word " * 100)) <= 80


def is_red(picture):
  r, g, b = np.moveaxis(np.asarray(picture).astype(int), -1, 0)
  return (r - np.maximum(g, b)) > 100


def test_wrong_words_are_red_and_only_they():
  clips = np.zeros((2, 3, 48, 48, 3), np.uint8)
  notes = [[("a", True), ("circle", False)], []]
  sheet = contact_sheet(clips, ["one", "two"], notes=notes)
  plain = contact_sheet(clips, ["one", "two"])
  assert sheet.height == plain.height + 15 and not is_red(plain).any()
  rows = np.flatnonzero(is_red(sheet).any(1))
  assert rows.min() > 15 and rows.max() < 35  # In the second line of the first clip.


def test_moving_sheet_has_every_clip_at_its_place(tmp_path):
  clips = plain_clips(5, 4, 32, 48)
  notes = [[("seen:", True), ("a very wrong thing", False)], *[[]] * 4]
  frames = moving_sheet(clips, ["some words to break"] * 5, notes, num_columns=3, side=96)
  assert len(frames) == 4 and len({frame.size for frame in frames}) == 1
  assert frames[0].width == 3 * (96 + 8) and is_red(frames[0]).any()
  for t, frame in enumerate(frames):
    picture = np.asarray(frame)
    for i in range(5):
      top = picture.shape[0] // 2 * (i // 3 + 1) - 4 - 32
      left = (i % 3) * 104 + 4 + 48
      np.testing.assert_array_equal(picture[top, left], clips[i, t, 0, 0])
  write_webp(tmp_path / "moving.webp", frames, 8.0)
  with Image.open(tmp_path / "moving.webp") as moving:
    assert moving.n_frames == 4 and moving.info["loop"] == 0
    durations, shown = [], []
    for t in range(4):
      moving.seek(t)
      moving.load()
      durations.append(moving.info["duration"])
      shown.append(np.asarray(moving.convert("RGB")).astype(int))
  assert durations[:3] == [125] * 3 and durations[3] == 825
  for t in range(4):
    assert np.abs(shown[t] - np.asarray(frames[t])).mean() < 4
  assert [path.name for path in tmp_path.iterdir()] == ["moving.webp"]
