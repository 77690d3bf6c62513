"""Colours: what comes out of files by the matrix, range and curve that they state."""

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from media_files import encode, film_packets

from videoar_jax.data import clip_encoding
from videoar_jax.data.media import clips, colour, containers, timing
from videoar_jax.evals.media import write_mp4

COLOURS = [(220, 30, 30), (30, 200, 30), (30, 30, 220), (220, 200, 30), (255, 255, 255), (9, 9, 9)]
LUMA = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593)}
TAGS = {"bt709": 1, "bt601": 6, "bt2020": 9}


def yuv_frame(rgb, matrix, is_full, size=(64, 64)):
  """Returns a frame of one colour, converted by the definition of the matrix (H.273)."""
  kr, kb = LUMA[matrix]
  r, g, b = np.array(rgb) / 255
  y = kr * r + (1 - kr - kb) * g + kb * b
  u, v = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
  scale, low, chroma = (255, 0, 255) if is_full else (219, 16, 224)
  values = np.rint([low + scale * y, 128 + chroma * u, 128 + chroma * v]).clip(0, 255)
  h, w = size
  sizes = (h * w, h * w // 4, h * w // 4)
  planes = [np.full(n, value, np.uint8) for n, value in zip(sizes, values, strict=True)]
  return av.VideoFrame.from_ndarray(np.concatenate(planes).reshape(-1, w), format="yuv420p")


def write_colours(path, matrix, is_full, tagged, size=(64, 64)):
  """Writes a lossless frame for each colour; tags are of the stream."""
  tags = {}
  if tagged:
    tags = {"colorspace": TAGS[matrix], "color_range": 2 if is_full else 1}
  frames = [yuv_frame(rgb, matrix, is_full, size) for rgb in COLOURS]
  options = {"crf": "0", "preset": "ultrafast"}
  return encode(path, frames, options=options, **tags)


def check_colours(path, atol=3):
  for frames in (
    clips.read_clip(path, 0.0, len(COLOURS), 8.0, (32, 32)),
    clips.decode_video(path, (32, 32)).frames,
    [clips.resize_and_crop(p, (32, 32)) for p in clips.read_frames(path, 8.0)],
  ):
    for frame, rgb in zip(frames, COLOURS, strict=True):
      np.testing.assert_allclose(frame[16, 16].astype(int), rgb, atol=atol)


@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_tagged_colours(tmp_path, matrix, is_full, suffix):
  check_colours(write_colours(tmp_path / f"a.{suffix}", matrix, is_full, tagged=True))


@pytest.mark.parametrize(("lines", "matrix"), [(718, "bt601"), (720, "bt709")])
def test_untagged_colours_follow_the_number_of_lines(tmp_path, lines, matrix):
  path = write_colours(tmp_path / "a.mp4", matrix, False, tagged=False, size=(lines, 64))
  check_colours(path)


@pytest.mark.parametrize("height", [64, 768])
def test_what_we_write_is_tagged_and_reads_back(tmp_path, height):
  clip = np.stack([np.full((height, 64, 3), rgb, np.uint8) for rgb in COLOURS])
  write_mp4(tmp_path / "sample.mp4", clip, 8.0)
  settings = clip_encoding.Settings(min_s=0.1, short_side=768)
  data, _ = next(clip_encoding.encode_clips(str(tmp_path / "sample.mp4"), settings))
  (tmp_path / "prepared.mp4").write_bytes(data)
  for name in ("sample.mp4", "prepared.mp4"):
    with av.open(str(tmp_path / name)) as container:
      context = container.streams.video[0].codec_context
      tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
    assert tags == (1, 1, 1, 1)
    check_colours(tmp_path / name, atol=4)


# Signals of BT.2100 (R, G, B) of SDR's red (220, 30, 30), and of greys up to diffuse white, made by
# zscale of FFmpeg 5.1 with diffuse white at 203 cd/m^2.
RED = {"pq": (0.49337, 0.30437, 0.22152), "hlg": (0.60586, 0.26258, 0.16277)}


def hdr_frame(signal, transfer, size=(64, 64)):
  array = np.broadcast_to(np.rint(np.array(signal) * 65535), (*size, 3)).astype(np.uint16)
  frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb48le").reformat(
    format="yuv420p10le", dst_colorspace=Colorspace.BT2020, dst_color_range=ColorRange.MPEG
  )
  frame.color_trc = {"pq": ColorTrc.SMPTE2084, "hlg": ColorTrc.ARIB_STD_B67}[transfer]
  frame.color_primaries = ColorPrimaries.BT2020
  return frame


def shown(signal, transfer, **options):
  picture = clips.Picture(hdr_frame(signal, transfer, **options))
  return clips.resize_and_crop(picture, (16, 16))[8, 8].astype(int)


@pytest.mark.parametrize("transfer", RED)
def test_hdr_becomes_sdr(transfer):
  np.testing.assert_allclose(shown(RED[transfer], transfer), (217, 30, 28), atol=3)
  white = {"pq": 0.5807, "hlg": 0.75}[transfer]  # 203 cd/m^2: ITU-R BT.2408.
  assert 240 <= shown((white,) * 3, transfer).min() <= 254
  greys = [shown((level,) * 3, transfer) for level in np.linspace(0, 1, 12)]
  assert greys[0].max() == 0 and greys[-1].min() >= 253
  levels = np.array(greys)
  assert (np.diff(levels[:, 1]) >= 0).all() and np.ptp(levels, axis=1).max() <= 3


@pytest.mark.parametrize("transfer", RED)
def test_hdr_files_are_tone_mapped_and_large_frames_first_reduced(tmp_path, transfer):
  frames = [hdr_frame(RED[transfer], transfer, size=(512, 1024))] * 4
  trc = {"pq": ColorTrc.SMPTE2084, "hlg": ColorTrc.ARIB_STD_B67}[transfer]
  path = encode(
    tmp_path / "a.mkv",
    frames,
    codec="ffv1",
    pix_fmt="yuv420p10le",
    color_trc=int(trc),
    colorspace=9,
    color_primaries=9,
    color_range=1,
  )
  clip = clips.read_clip(path, 0.0, 2, 8.0, (16, 16))
  np.testing.assert_allclose(clip[:, 8, 8].astype(int), [(217, 30, 28)] * 2, atol=4)


def test_films_with_transparency_show_the_background(tmp_path):
  rgba = np.zeros((64, 64, 4), np.uint8)
  rgba[..., :3] = (255, 0, 255)
  rgba[16:48, 16:48] = (30, 160, 30, 255)
  frames = [av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="argb")] * 4
  path = encode(tmp_path / "a.mov", frames, codec="qtrle", pix_fmt="argb")
  frame = clips.read_clip(path, 0.0, 1, 8.0, (64, 64), background=(0, 0, 90))[0]
  assert frame[4, 4].tolist() == [0, 0, 90] and frame[32, 32].tolist() == [30, 160, 30]


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparency_of_webm_shows_the_background(tmp_path, codec):
  """It is a second picture in each packet; a frame's number is its shade of green."""
  frames = []
  for number in range(40):
    rgba = np.full((64, 64, 4), (255, 0, 255, 0), np.uint8)
    rgba[16:48, 16:48] = (30, 60 + 4 * number, 30, 255)
    frames.append(av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p"))
  settings = {"options": {"auto-alt-ref": "0", "g": "12"}, "bit_rate": 20_000_000}
  path = tmp_path / "a.webm"
  with av.open(str(path), "w") as container:
    packets = list(film_packets(container, frames, 8, codec, "yuva420p", **settings))
    container.streams.video[0].metadata["alpha_mode"] = "1"
    container.mux(packets)
  for start_s, numbers in ((0.0, [0, 4, 8]), (2.25, [18, 22, 26]), (3.9, [31, 35, 39])):
    clip = clips.read_clip(path, start_s, 3, 2.0, (64, 64), background=(0, 0, 90)).astype(int)
    expected = [(30, 60 + 4 * number, 30) for number in numbers]
    np.testing.assert_allclose(clip[:, 4, 4], [(0, 0, 90)] * 3, atol=3)
    np.testing.assert_allclose(clip[:, 32, 32], expected, atol=3)
  whole = clips.decode_video(path, (64, 64), background=(0, 0, 90))
  np.testing.assert_array_equal(clips.clip_of(whole, 3.9, 3, 2.0), clip)
  assert clips.probe(path).num_frames == 40
  with containers.opened(path) as film:
    assert [len(list(timing.frames_from(film, 0))) for _ in range(2)] == [40, 40]


def test_interlaced_frames_show_one_moment(tmp_path):
  """The fields show a bar at two places; a frame shows it at one of them, over its whole height."""
  frame = np.zeros((96, 96, 3), np.uint8)
  frame[0::2, 16:32], frame[1::2, 56:72] = 255, 255
  options = {"flags": "+ilme+ildct", "qmin": "1", "qmax": "2"}
  path = encode(tmp_path / "a.mpg", [frame] * 8, 25, "mpeg2video", options=options)
  with av.open(str(path)) as container:
    assert next(container.decode(video=0)).interlaced_frame
  cached = clips.decode_video(path, (96, 96))
  assert len(cached.frames) == 8
  for start in (0.0, 0.12, 0.2):
    clip = clips.read_clip(path, start, 2, 25.0, (96, 96))
    assert np.array_equal(clip, clips.clip_of(cached, start, 2, 25.0))
    bars = clip[0, 8:-8].mean(-1)
    first, second = bars[:, 20:28].mean(), bars[:, 60:68].mean()
    assert max(first, second) > 235 and min(first, second) < 20
    assert np.abs(np.diff(bars, axis=0)).max() < 60


def test_colours_that_cannot_be_converted_are_refused():
  frame = yuv_frame(COLOURS[0], "bt709", False)
  frame.colorspace = 8
  with pytest.raises(ValueError, match="YCgCo are not supported"):
    colour.to_image(frame, (16, 16), colour.WHITE)
