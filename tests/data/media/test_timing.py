"""Times: each clip is that of the same pictures in mp4 at a constant rate, in any container."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from media_files import encode, film_packets, frame_numbers, numbered, write_xvid

from videoar_jax.data import clip_encoding, conditioning
from videoar_jax.data.media import clips
from videoar_jax.data.sources.folder import FolderSource

SIZE = (16, 32)
NUM = 40


class Pipe(io.RawIOBase):
  """A file that can only be written on, as a pipe."""

  def __init__(self):
    self.data = b""

  def writable(self):
    return True

  def write(self, data):
    self.data += bytes(data)
    return len(data)


def without_index(path):
  data = path.read_bytes()
  path.write_bytes(data[: data.rindex(b"idx1")])


def write_avi(path, kind):
  if kind.startswith("packed"):
    write_xvid(path, NUM, is_packed=True)
  elif kind.startswith("xvid"):
    write_xvid(path, NUM)
  else:
    codec, pix_fmt = ("mjpeg", "yuvj420p") if kind == "mjpeg" else ("libx264", "yuv420p")
    options = {} if kind == "mjpeg" else {"bf": "3", "g": "12", "b-pyramid": "normal", "crf": "16"}
    encode(path, map(numbered, range(NUM)), 25, codec, pix_fmt, options=options)
  if kind.endswith("without index"):
    without_index(path)
  if kind.endswith("from a pipe"):
    pipe = Pipe()
    with av.open(str(path)) as source, av.open(pipe, "w", format="avi") as container:
      stream = container.add_stream_from_template(source.streams.video[0])
      for packet in source.demux(video=0):
        if packet.dts is not None:
          packet.stream = stream
          container.mux(packet)
    path.write_bytes(pipe.data)


KINDS = ["xvid", "packed", "x264", "mjpeg", "xvid without index", "packed without index"]
KINDS += ["xvid from a pipe"]


@pytest.mark.parametrize("kind", KINDS)
def test_avi_is_read_in_the_order_and_at_the_times_of_its_frames(tmp_path, kind):
  path = tmp_path / "a.avi"
  write_avi(path, kind)
  info = clips.probe(path)
  assert (info.num_frames, info.frame_rate, info.last_s) == (NUM, 25, pytest.approx((NUM - 1) / 25))
  assert frame_numbers(clips.decode_video(path, SIZE).frames) == list(range(NUM))
  for first in range(NUM - 3):
    clip = clips.read_clip(path, first / 25, 4, 25.0, SIZE)
    assert frame_numbers(clip) == list(range(first, first + 4))
  assert frame_numbers(clips.read_clip(path, 0.01, 8, 8.0, SIZE)) == [0, 3, 6, 9, 12, 15, 19, 22]
  pictures = [clips.resize_and_crop(picture, SIZE) for picture in clips.read_frames(path, 25.0)]
  assert frame_numbers(np.stack(pictures)) == list(range(NUM))
  options = {"lengths": range(1, NUM + 1), "is_resized": True}
  given = conditioning.read_video(str(path), SIZE, 25.0, **options)
  assert frame_numbers(given) == list(range(NUM))
  with pytest.raises(ValueError, match="ends before the clip does"):
    clips.read_clip(path, 1.0, NUM, 25.0, SIZE)


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_a_folder_like_ucf101_is_read_whole_and_as_if_it_were_mp4(tmp_path, cache_bytes):
  for number in range(6):
    name = f"Juggling/v_Juggling_g{number // 2 + 1:02}_c{number % 2 + 1:02}"
    num_frames = NUM + 3 * number
    write_xvid(tmp_path / "avi" / f"{name}.avi", num_frames, is_packed=number % 2 == 0)
    write_xvid(tmp_path / "mp4" / f"{name}.mp4", num_frames)
  shape = {"num_frames": 9, "frame_rate": 8.0, "resolution": SIZE, "cache_bytes": cache_bytes}
  avi, mp4 = (FolderSource(tmp_path / suffix, "train", **shape) for suffix in ("avi", "mp4"))
  assert len(avi.files) == 6 and not avi.skipped
  for index in range(24):
    assert np.array_equal(avi[index]["video"], mp4[index]["video"])
  assert not avi.skipped


@pytest.mark.parametrize(("codec", "pix_fmt"), [("mpeg4", "yuv420p"), ("mjpeg", "yuvj420p")])
def test_frames_that_avi_leaves_out_are_shown_longer(tmp_path, codec, pix_fmt):
  shown_at = [0, 1, 2, 5, 6, 11, 12, 13]
  with av.open(str(tmp_path / "a.avi"), "w") as container:
    packets = list(film_packets(container, map(numbered, range(8)), 25, codec, pix_fmt))
    for packet, tick in zip(packets, shown_at, strict=True):
      packet.pts = packet.dts = tick
      container.mux(packet)
  expected = [sum(at <= tick for at in shown_at) - 1 for tick in range(14)]
  for first in range(10):
    clip = clips.read_clip(tmp_path / "a.avi", first / 25, 4, 25.0, SIZE)
    assert frame_numbers(clip) == expected[first : first + 4]
  assert clips.probe(tmp_path / "a.avi").last_s == pytest.approx(13 / 25)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
def test_the_last_frame_lasts_as_long_as_the_file_says(tmp_path, suffix):
  path = tmp_path / f"a.{suffix}"
  with av.open(str(path), "w") as container:
    codec = "libvpx" if suffix == "webm" else "libx264"
    options = {} if suffix == "webm" else {"bf": "0"}
    packets = list(film_packets(container, map(numbered, range(30)), 30, codec, options=options))
    packets[-1].duration = round(6 / packets[-1].time_base)
    container.mux(packets)
  info = clips.probe(path)
  assert info.frame_rate == 30
  assert info.last_s == pytest.approx(29 / 30 + 6 - 1 / 30, abs=0.01)
  for start in np.linspace(0, info.last_s - 1, 12):
    clip = clips.read_clip(path, start, 9, 8.0, SIZE)
    times = start + np.arange(9) / 8
    assert frame_numbers(clip) == np.minimum(np.floor(times * 30 + 1e-2), 29).astype(int).tolist()
  with pytest.raises(ValueError, match="ends before the clip does"):
    clips.read_clip(path, info.last_s, 9, 8.0, SIZE)
  decoded = clips.decode_video(path, SIZE)
  assert frame_numbers(clips.clip_of(decoded, 5.5, 9, 8.0)) == [29] * 9
  assert sum(1 for _ in clips.read_frames(path, 10.0)) == pytest.approx(70, abs=1)
  prepared = list(clip_encoding.encode_clips(str(path), clip_encoding.Settings(min_s=0.1)))
  assert sum(facts["duration"] for _, facts in prepared) == pytest.approx(29 / 30 + 6, abs=0.1)


def write_recording(path):
  """A browser's recording: no rate, no durations, times in milliseconds that wander."""
  rng, at, packets = np.random.default_rng(0), 0, []
  with av.open(str(path), "w", options={"live": "1"}) as container:
    stream = container.add_stream("libvpx", rate=1000, options={"deadline": "realtime"})
    stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
    stream.codec_context.time_base = Fraction(1, 1000)
    times = []
    for number in range(60):
      frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
      frame.pts, frame.time_base = at, Fraction(1, 1000)
      times.append(at)
      packets += stream.encode(frame)
      at += int(rng.integers(20, 47))
    container.mux(packets + stream.encode())
  data = path.read_bytes()
  mark = data.index(b"\x23\xe3\x83")  # The duration of a frame, from which readers guess a rate.
  length = 4 + (data[mark + 3] & 0x7F)
  void = bytes([0xEC, 0x80 | (length - 2)]) + bytes(length - 2)
  path.write_bytes(data[:mark] + void + data[mark + length :])
  return np.array(times) / 1000


def test_a_recording_without_a_rate_has_that_of_its_frames(tmp_path):
  times_s = write_recording(tmp_path / "a.webm")
  info = clips.probe(tmp_path / "a.webm")
  assert float(info.frame_rate) == pytest.approx(59 / times_s[-1], rel=0.01)
  assert info.num_frames == pytest.approx(60, abs=1)
  assert info.last_s == pytest.approx(times_s[-1], abs=0.001)
  for start in (0.0, 0.3, 0.777):
    wanted = start + np.arange(9) / 8 + 1e-3
    clip = clips.read_clip(tmp_path / "a.webm", start, 9, 8.0, SIZE)
    expected = [int(np.searchsorted(times_s, time, side="right")) - 1 for time in wanted]
    assert frame_numbers(clip) == expected
  _, facts = next(
    clip_encoding.encode_clips(str(tmp_path / "a.webm"), clip_encoding.Settings(min_s=0.1))
  )
  assert facts["frame_rate"] == pytest.approx(float(info.frame_rate))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rates(tmp_path, suffix):
  """Each picture is shown from its own time on; the reader may begin anywhere."""
  ticks = np.cumsum([0, *np.random.default_rng(1).integers(10, 120, 39)])
  path = tmp_path / f"a.{suffix}"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=1000, options={"bf": "2", "g": "8"})
    stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
    stream.codec_context.time_base = Fraction(1, 1000)
    for number, tick in enumerate(ticks.tolist()):
      frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
      frame.pts, frame.time_base = tick, Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  assert float(clips.probe(path).frame_rate) == pytest.approx(39000 / ticks[-1], rel=0.05)
  for start in np.arange(0, ticks[-1] / 1000 - 0.5, 0.137):
    # Matroska rounds times to milliseconds, which the reader allows for.
    wanted = (start + np.arange(5) / 8) * 1000 + (1 if suffix == "mkv" else 0.05)
    expected = (np.searchsorted(ticks, wanted, side="right") - 1).tolist()
    assert frame_numbers(clips.read_clip(path, start, 5, 8.0, SIZE)) == expected


def test_a_frame_of_hours_is_damage(tmp_path):
  with av.open(str(tmp_path / "a.mkv"), "w") as container:
    packets = list(film_packets(container, map(numbered, range(3)), 25, options={"bf": "0"}))
    packets[-1].pts = packets[-1].dts = 25 * 10**7
    container.mux(packets)
  frames = clips.read_frames(tmp_path / "a.mkv", 1000.0)
  with pytest.raises(ValueError, match="lasts longer than 3600 s"):
    list(frames)
