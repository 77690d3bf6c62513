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


def numbered(number):
  """Returns the frame of `write_video` with a number, as RGB."""
  row = np.repeat((number >> np.arange(8) & 1).astype(np.uint8) * 255, CELL)
  return np.broadcast_to(row[None, :, None], (4 * CELL, 8 * CELL, 3)).copy()


def encode(path, frames, rate=8, codec="libx264", pix_fmt="yuv420p", **settings):
  """Writes frames (RGB arrays, or frames of PyAV) as a video; settings are of the codec context."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    container.mux(film_packets(container, frames, rate, codec, pix_fmt, **settings))
  return path


def film_packets(container, frames, rate=8, codec="libx264", pix_fmt="yuv420p", **settings):
  """Encodes frames for a new stream of a container; yields the packets to mux."""
  frames = [
    av.VideoFrame.from_ndarray(frame, format="rgb24") if isinstance(frame, np.ndarray) else frame
    for frame in frames
  ]
  stream = container.add_stream(codec, rate=rate)
  stream.height, stream.width, stream.pix_fmt = frames[0].height, frames[0].width, pix_fmt
  matrix = settings.pop("matrix", None)
  if matrix is not None:
    stream.set_display_matrix(matrix)
  for name in ("disposition", "options"):
    if name in settings:
      setattr(stream, name, settings.pop(name))
  for name, value in settings.items():
    setattr(stream.codec_context, name, value)
  for number, frame in enumerate(frames):
    frame.pts, frame.time_base = number, 1 / Fraction(rate)
    yield from stream.encode(frame)
  yield from stream.encode()


def write_xvid(path, num_frames, rate=25, is_packed=False):
  """Writes MPEG-4 with pairs of B-frames, each frame with its number, as XviD does in AVI.

  Packed, a packet has a P-frame and the first B-frame, and after the second one is an empty frame.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=rate)
    stream.width, stream.height, stream.pix_fmt = 8 * CELL, 4 * CELL, "yuv420p"
    stream.codec_context.max_b_frames, stream.codec_context.gop_size = 2, 12
    stream.codec_context.thread_count = 1
    stream.options = {"qmin": "2", "qmax": "2", "b_strategy": "0"}
    frames = (av.VideoFrame.from_ndarray(numbered(i), format="rgb24") for i in range(num_frames))
    packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
    for packet in _packed(packets, stream) if is_packed else packets:
      container.mux(packet)
  return path


_VOP, _PACKED_MARK = b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p"
_EMPTY_VOP = _VOP + b"\x50\x80\x00"


def _packed(packets, stream):
  def is_b(data):
    return data[data.index(_VOP) + 4] >> 6 == 2

  data = [bytes(packet) for packet in packets]
  data[0] = data[0].replace(_VOP, _PACKED_MARK + _VOP, 1)
  chunks = []
  for at, chunk in enumerate(data):
    if not is_b(chunk):
      follows = at + 1 < len(data) and is_b(data[at + 1])
      chunks.append(chunk + data[at + 1] if follows else chunk)
    elif is_b(data[at - 1]):
      chunks.append(chunk)
    if is_b(chunk) and (at + 1 == len(data) or not is_b(data[at + 1])):
      chunks.append(_EMPTY_VOP)
  for at, chunk in enumerate(chunks):
    packet = av.Packet(chunk)
    packet.stream, packet.time_base = stream, 1 / stream.codec_context.rate
    packet.pts = packet.dts = at
    packet.is_keyframe = _VOP in chunk and chunk[chunk.index(_VOP) + 4] >> 6 == 0
    yield packet


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
