"""What is shown upright, with square pixels, of which stream: as players do it."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from media_files import encode, film_packets

from videoar_jax.data import clip_encoding, conditioning
from videoar_jax.data.media import clips

ONE = 1 << 16
# Display matrices (a, b, c, d), and what they make of stored pixels.
MATRICES = {
  "none": ((ONE, 0, 0, ONE), lambda x: x),
  "90 clockwise": ((0, ONE, -ONE, 0), lambda x: np.rot90(x, -1)),
  "180": ((-ONE, 0, 0, -ONE), lambda x: np.rot90(x, 2)),
  "90 counter-clockwise": ((0, -ONE, ONE, 0), np.rot90),
  "mirrored": ((-ONE, 0, 0, ONE), lambda x: x[:, ::-1]),
  "upside down": ((ONE, 0, 0, -ONE), lambda x: x[::-1]),
  "transposed": ((0, ONE, ONE, 0), lambda x: x.swapaxes(0, 1)),
  "transverse": ((0, -ONE, -ONE, 0), lambda x: np.rot90(x, 2).swapaxes(0, 1)),
}


def corners(height, width):
  """A frame with four colours, one in each corner."""
  frame = np.zeros((height, width, 3), np.uint8)
  h, w = height // 2, width // 2
  frame[:h, :w], frame[:h, w:], frame[h:, :w] = (220, 30, 30), (30, 200, 30), (30, 30, 220)
  return frame


def every_way(path, resolution, crop=(0.5, 0.5)):
  """Yields the first frame by each way of reading a file."""
  yield clips.read_clip(path, 0.0, 1, 8.0, resolution, crop)[0]
  yield clips.read_clip(path, 0.5, 2, 8.0, resolution, crop)[1]
  yield clips.resize_and_crop(next(clips.read_frames(path, 8.0)), resolution, crop)
  if crop == (0.5, 0.5):
    yield clips.clip_of(clips.decode_video(path, resolution), 0.0, 1, 8.0)[0]
    options = {"lengths": range(1, 2), "is_resized": True}
    yield conditioning.read_video(str(path), resolution, 8.0, **options)[0]


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_the_display_matrix_is_applied(tmp_path, name, suffix):
  (a, b, c, d), turn = MATRICES[name]
  matrix = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
  stored = corners(64, 96)
  path = encode(tmp_path / f"a.{suffix}", [stored] * 8, matrix=matrix)
  expected = turn(stored)
  assert clips.probe(path).aspect_ratio == expected.shape[0] / expected.shape[1]
  for frame in every_way(path, expected.shape[:2]):
    assert np.abs(frame.astype(int) - expected).mean() < 6
  # A crop is of what is shown, too.
  for frame in every_way(path, (32, 32), crop=(0.0, 1.0)):
    assert np.abs(frame[:14, -14:].astype(int) - expected[0, -1]).mean() < 6
  data, facts = next(clip_encoding.encode_clips(str(path), clip_encoding.Settings(min_s=0.1)))
  assert (facts["height"], facts["width"]) == expected.shape[:2]
  (tmp_path / "prepared.mp4").write_bytes(data)
  prepared = clips.read_clip(tmp_path / "prepared.mp4", 0.0, 1, 8.0, expected.shape[:2])[0]
  assert np.abs(prepared.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2), Fraction(8, 9)])
def test_pixels_become_square(tmp_path, aspect):
  y, x = np.mgrid[:96, : round(96 / aspect)]
  disc = (x * float(aspect) - 47.5) ** 2 + (y - 47.5) ** 2 < 40**2
  stored = (disc[..., None] * np.full(3, 255)).astype(np.uint8)
  stored = stored[:, : stored.shape[1] // 2 * 2]
  path = encode(tmp_path / "a.mp4", [stored] * 8, sample_aspect_ratio=aspect)
  assert clips.probe(path).aspect_ratio == pytest.approx(1, abs=0.02)
  y, x = np.mgrid[:96, :96]
  disc = (x - 47.5) ** 2 + (y - 47.5) ** 2 < 40**2
  for frame in every_way(path, (96, 96)):
    assert np.abs(frame.mean(-1) - 255 * disc).mean() < 8


def test_a_size_that_must_match_is_the_shown_one(tmp_path):
  path = encode(tmp_path / "a.mp4", [corners(64, 32)] * 8, sample_aspect_ratio=Fraction(2))
  options = {"lengths": range(1, 9), "is_resized": False}
  assert conditioning.read_video(str(path), (64, 64), 8.0, **options).shape == (8, 64, 64, 3)
  with pytest.raises(ValueError, match="is 64x64 pixels"):
    conditioning.read_video(str(path), (64, 32), 8.0, **options)


@pytest.mark.parametrize("cover_is_first", [True, False])
def test_a_cover_picture_is_not_the_film(tmp_path, cover_is_first):
  path = tmp_path / "a.mp4"
  with av.open(str(path), "w") as container:
    film, cover = [np.full((64, 96, 3), 90, np.uint8)] * 8, [np.full((64, 64, 3), 250, np.uint8)]
    cover = av.VideoFrame.from_ndarray(cover[0], format="rgb24").reformat(format="yuvj420p")
    options = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "disposition": Disposition.attached_pic}
    tracks = [([cover], {"rate": 1, **options}), (film, {})]
    tracks = tracks if cover_is_first else tracks[::-1]
    for packets in [list(film_packets(container, track, **given)) for track, given in tracks]:
      container.mux(packets)
  assert clips.probe(path).num_frames == 8
  for frame in every_way(path, (64, 96)):
    assert np.abs(frame.astype(int) - 90).max() < 6


def test_the_default_track_is_the_film(tmp_path):
  with av.open(str(tmp_path / "a.mkv"), "w") as container:
    tracks = [(200, Disposition.dub), (90, Disposition.default)]
    films = [
      list(film_packets(container, [np.full((64, 64, 3), grey, np.uint8)] * 8, disposition=kind))
      for grey, kind in tracks
    ]
    for packets in films:
      container.mux(packets)
  for frame in every_way(tmp_path / "a.mkv", (64, 64)):
    assert np.abs(frame.astype(int) - 90).max() < 6


def test_each_frame_has_its_own_size(tmp_path):
  """A call whose other side turns the phone: MJPEG may change its size at any frame."""
  lying, upright = np.full((64, 96, 3), 60, np.uint8), np.full((96, 64, 3), 180, np.uint8)
  packets = []
  for number, array in enumerate([lying] * 4 + [upright] * 4):
    codec = av.CodecContext.create("mjpeg", "w")
    codec.height, codec.width, codec.pix_fmt = *array.shape[:2], "yuvj420p"
    codec.time_base = Fraction(1, 8)
    frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format="yuvj420p")
    frame.pts = number
    packets += codec.encode(frame)
  with av.open(str(tmp_path / "a.mkv"), "w") as container:
    stream = container.add_stream("mjpeg", rate=8)
    stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj420p"
    for packet in packets:
      packet.stream = stream
      container.mux(packet)
  for clip in (
    clips.read_clip(tmp_path / "a.mkv", 0.0, 8, 8.0, (32, 32)),
    clips.decode_video(tmp_path / "a.mkv", (32, 32)).frames,
  ):
    np.testing.assert_allclose(clip.mean((1, 2, 3)), [60] * 4 + [180] * 4, atol=3)
