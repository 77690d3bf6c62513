"""Conditioning videos: their number of frames, in any container."""

import av
import numpy as np
import pytest
from PIL import Image

from videoar_jax.data.conditioning import read_image, read_video
from videoar_jax.data.media import clips

SIZE = (32, 32)


def write(path, num_frames, codec):
  """Writes frames of rising brightness, at 8 per second."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=8)
    stream.height, stream.width = SIZE
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    for i in range(num_frames):
      frame = np.full((*SIZE, 3), min(20 * i, 255), np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())


def read(path, *, frame_rate=8.0, max_frames=9, is_resized=False):
  options = {"lengths": range(1, max_frames + 1, 4), "is_resized": is_resized}
  return read_video(str(path), SIZE, frame_rate, **options)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mjpeg"), ("a.mp4", "libx264")])
def test_every_frame_counts_once(tmp_path, name, codec):
  """Also if the file's time base is one frame, as in AVI."""
  path = tmp_path / name
  write(path, 9, codec)
  np.testing.assert_allclose(read(path).mean((1, 2, 3)), 20 * np.arange(9), atol=5)
  halved = read(path, frame_rate=4.0)
  np.testing.assert_allclose(halved.mean((1, 2, 3)), 40 * np.arange(5), atol=5)
  for num_frames in (8, 10):
    write(path, num_frames, codec)
    number = "more than 9" if num_frames > 9 else num_frames
    with pytest.raises(ValueError, match=f"has {number} frames at 8 a second"):
      read(path)
  assert len(read(path, is_resized=True)) == 9


def test_what_is_not_wanted_is_not_decoded(tmp_path, monkeypatch):
  resize, calls = clips.resize_and_crop, []
  monkeypatch.setattr(clips, "resize_and_crop", lambda *given: calls.append(1) or resize(*given))
  write(tmp_path / "long.mp4", 40, "libx264")
  assert len(read(tmp_path / "long.mp4", max_frames=5, is_resized=True)) == 5
  assert len(calls) == 7


def test_what_is_behind_transparent_pixels(tmp_path):
  background = (10, 200, 30)
  Image.new("RGBA", SIZE).save(tmp_path / "a.png")
  image = read_image(str(tmp_path / "a.png"), SIZE, is_resized=False, background=background)
  with av.open(str(tmp_path / "a.mov"), "w") as container:
    stream = container.add_stream("png", rate=8)
    stream.height, stream.width, stream.pix_fmt = *SIZE, "rgba"
    frame = av.VideoFrame.from_ndarray(np.zeros((*SIZE, 4), np.uint8), format="rgba")
    container.mux([*stream.encode(frame), *stream.encode()])
  options = {"lengths": (1,), "is_resized": False, "background": background}
  video = read_video(str(tmp_path / "a.mov"), SIZE, 8.0, **options)
  for found in (image, video):
    assert (found == background).all()
