"""Frames by number, and torchvision's way of resizing."""

import av
import numpy as np
import pytest
from media_files import CELL, numbered, write_video
from PIL import Image

from videoar_jax.data.media.numbered import count_frames, read_numbered, resize_short_side

SIZE = (4 * CELL, 8 * CELL)


def numbers_of(clip):
  """Reads the numbers that the frames of `write_video` show."""
  bits = clip[:, SIZE[0] // 2, CELL // 2 :: CELL, 0] > 127
  return (bits << np.arange(8)).sum(-1).tolist()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  """The same frames as UCF-101 has them, and with reordered frames and late time stamps."""
  folder = tmp_path_factory.mktemp("numbered")
  return [
    write_video(folder / "a.avi", 50, 25, codec="mpeg4"),
    write_video(folder / "b.mp4", 50, 25, first_tick=7),
  ]


def test_frames_have_their_numbers_whatever_their_times(videos):
  for video in videos:
    assert count_frames(video) == 50
    assert numbers_of(read_numbered(video, 0, 16, 3, SIZE)) == list(range(0, 48, 3))
    assert numbers_of(read_numbered(video, 34, 16, 1, SIZE)) == list(range(34, 50))
    with pytest.raises(ValueError, match="ends before the clip does"):
      read_numbered(video, 35, 16, 1, SIZE)


def test_packets_are_counted_where_the_header_is_silent(tmp_path):
  path = write_video(tmp_path / "a.ts", 21, 25)
  with av.open(str(path)) as container:
    assert container.streams.video[0].frames == 0
  assert count_frames(path) == 21
  (tmp_path / "no.avi").write_bytes(b"RIFF")
  with pytest.raises(ValueError, match="cannot be opened"):
    count_frames(tmp_path / "no.avi")


def test_sides_and_offsets_are_those_of_torchvision():
  rng = np.random.default_rng(0)
  for sides, offsets, size in (
    ((240, 320), (0, 21), (128, 170)),  # UCF-101: 170.7 is cut off, 21 of 42 pixels go left.
    ((320, 240), (21, 0), (170, 128)),
    ((128, 128), (0, 0), (128, 128)),
  ):
    image = Image.fromarray(rng.integers(0, 256, (*sides, 3), dtype=np.uint8))
    large = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    top, left = offsets
    found = resize_short_side(image, (128, 128))
    np.testing.assert_array_equal(found, large[top : top + 128, left : left + 128])


def test_resizing_equals_torch():
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  array = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
  pixels = torch.from_numpy(array).permute(2, 0, 1)[None].float()
  settings = {"mode": "bilinear", "antialias": True, "align_corners": False}
  large = torch.nn.functional.interpolate(pixels, size=(128, 170), **settings)
  wanted = large[0].permute(1, 2, 0).numpy()[:, 21 : 21 + 128]
  found = resize_short_side(Image.fromarray(array), (128, 128))
  # Pillow rounds after each of the two axes.
  assert np.abs(found - wanted).max() < 1.01


def test_numbered_frames_are_what_they_show():
  assert numbers_of(np.stack([numbered(5), numbered(200)])) == [5, 200]
