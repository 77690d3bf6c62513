"""Video, audio and image files for tests; each frame of a video shows its number."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image

CELL = 16  # Pixels of a cell that shows one bit of a frame's number.


def write_video(
  path, num_frames, rate, codec="libx264", first_tick=0, b_frames=2, value=None, container=None
):
  """Writes a video whose frames show their numbers, in 8 bits, as black and white columns."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w", options=container or {}) as container:
    stream = container.add_stream(codec, rate=rate)
    stream.width, stream.height, stream.pix_fmt = 8 * CELL, 4 * CELL, "yuv420p"
    if codec == "libx264":
      stream.options = {"crf": "20", "g": "12", "bf": str(b_frames), "preset": "ultrafast"}
      stream.codec_context.max_b_frames = b_frames
    stream.codec_context.time_base = Fraction(1, rate)
    for number in range(num_frames):
      bits = (number if value is None else value) >> np.arange(8) & 1
      row = np.repeat(bits.astype(np.uint8) * 255, CELL)
      image = np.broadcast_to(row[None, :, None], (4 * CELL, 8 * CELL, 3)).copy()
      frame = av.VideoFrame.from_ndarray(image, format="rgb24")
      frame.pts, frame.time_base = number + first_tick, Fraction(1, rate)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def frame_numbers(clip):
  """Reads the frames' numbers from 8 columns over the width of the clip."""
  cell = clip.shape[2] // 8
  middle = clip[:, clip.shape[1] // 2, cell // 2 :: cell].mean(axis=-1)
  return ((middle > 127) @ (1 << np.arange(8))).tolist()


def write_audio(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    stream = container.add_stream("aac", rate=16000, layout="mono")
    for _ in range(10):
      frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
      frame.sample_rate = 16000
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_image(path, value, size=(32, 64), **options):
  """Writes an image of one grey value; `size` is (width, height)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, (value, value, value)).save(path, **options)
