"""Colours: what a decoded frame's numbers look like, as 8-bit RGB with the curve of SDR video.

The file's tags say which matrix and range made its YUV. A file without a tag has BT.709 from 720
lines up, else BT.601. What is written here is BT.709 of limited range, and tagged so.
"""

import functools
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from jaxtyping import Float, UInt8, UInt16
from PIL import Image

Colour = tuple[int, int, int]

# What is behind transparent pixels, unless a caller says otherwise.
WHITE: Colour = (255, 255, 255)

_HD_LINES = 720
# Values of H.273's MatrixCoefficients; PyAV's `Colorspace` numbers the matrices differently.
_RGB, _UNSPECIFIED = (0, 2)
_UNSUPPORTED = {8: "YCgCo", 11: "SMPTE ST 2085", 13: "chromaticity-derived", 14: "ICtCp"}
_TRANSFERS = {int(ColorTrc.SMPTE2084): "pq", int(ColorTrc.ARIB_STD_B67): "hlg"}

# BT.2408: diffuse white of graphics and paper, in cd/m^2; the peak of BT.2100's HLG display.
_WHITE_NITS, _PQ_NITS, _HLG_NITS = 203.0, 10_000.0, 1_000.0
_KNEE = 0.9  # Of diffuse white, from which on highlights are compressed.
_SDR_GAMMA = 2.4  # BT.1886.
_HLG_GAMMA = 1.2
_TO_BT709 = {
  int(ColorPrimaries.BT709): np.eye(3),
  int(ColorPrimaries.SMPTE432): np.array(  # Display P3.
    [[1.2249, -0.2249, 0.0], [-0.0420, 1.0420, 0.0], [-0.0197, -0.0786, 1.0983]]
  ),
}
_BT2020_TO_BT709 = np.array(
  [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
)


def to_image(frame: av.VideoFrame, cover: tuple[int, int], background: Colour) -> Image.Image:
  """Returns a decoded frame as it is shown, as RGB, before it is turned or resized.

  Args:
    frame: as decoded.
    cover: (H, W) that it will be resized to cover: HDR frames are reduced towards it already.
    background: colour behind transparent pixels.
  Raises:
    ValueError: its colours cannot be converted.
  """
  if frame.interlaced_frame:
    frame = _deinterlaced(frame)
  if frame.color_trc in _TRANSFERS:
    return Image.fromarray(_tone_mapped(_reduced(frame, cover), frame))
  if _is_transparent(frame.format.name):
    array = frame.reformat(format="rgba", src_colorspace=_matrix(frame)).to_ndarray()
    return flattened(Image.fromarray(array), background)
  return Image.fromarray(
    frame.reformat(format="rgb24", src_colorspace=_matrix(frame), threads=1).to_ndarray()
  )


def flattened(image: Image.Image, background: Colour) -> Image.Image:
  """Returns an image with an alpha channel as RGB, in front of a background of one colour."""
  behind = Image.new("RGBA", image.size, (*background, 255))
  return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")


def tag(context: av.VideoCodecContext) -> None:
  """Tags the stream of an encoder as what `to_frame` makes."""
  context.colorspace = int(Colorspace.ITU709)
  context.color_primaries = int(ColorPrimaries.BT709)
  context.color_trc = int(ColorTrc.BT709)
  context.color_range = int(ColorRange.MPEG)


def to_frame(array: UInt8[np.ndarray, "H W 3"]) -> av.VideoFrame:
  """Returns RGB as a frame for an encoder, in YUV 4:2:0 by BT.709, limited range."""
  return av.VideoFrame.from_ndarray(array, format="rgb24").reformat(
    format="yuv420p",
    dst_colorspace=Colorspace.ITU709,
    dst_color_range=ColorRange.MPEG,
    interpolation="BICUBIC",
  )


@functools.cache
def _is_transparent(name: str) -> bool:
  pixels = av.VideoFormat(name)
  return pixels.has_palette or any(component.is_alpha for component in pixels.components)


def _matrix(frame: av.VideoFrame) -> Colorspace | None:
  """Returns the matrix of an untagged frame; None where the frame's own tag is to be used."""
  if frame.colorspace in _UNSUPPORTED:
    name = _UNSUPPORTED[frame.colorspace]
    raise ValueError(f"cannot be decoded (colours of the matrix {name} are not supported)")
  if frame.colorspace != _UNSPECIFIED and not (
    frame.colorspace == _RGB and not frame.format.is_rgb
  ):
    return None
  if frame.color_trc in _TRANSFERS:
    return Colorspace.BT2020
  return Colorspace.ITU709 if frame.height >= _HD_LINES else Colorspace.ITU601


def _deinterlaced(frame: av.VideoFrame) -> av.VideoFrame:
  """Returns a frame of which one field is kept and the other's lines are interpolated.

  It needs no other frame, so that a clip is the same wherever decoding began, and times are kept.
  """
  graph = Graph()
  source = graph.add_buffer(
    width=frame.width, height=frame.height, format=frame.format.name, time_base=Fraction(1, 25)
  )
  sink = graph.add("buffersink")
  lines = graph.add("estdif", "mode=frame:deint=all")
  source.link_to(lines)
  lines.link_to(sink)
  graph.configure()
  graph.push(frame)
  graph.push(None)
  return graph.pull()


def _reduced(frame: av.VideoFrame, cover: tuple[int, int]) -> UInt16[np.ndarray, "h w 3"]:
  """Returns a frame in 16 bits, with at most about twice the sides that are needed."""
  scale = min(1.0, 2 * max(cover[0] / frame.height, cover[1] / frame.width))
  size = {"height": round(frame.height * scale), "width": round(frame.width * scale)}
  return frame.reformat(
    **size, format="rgb48le", src_colorspace=_matrix(frame), interpolation="AREA", threads=1
  ).to_ndarray()


def _tone_mapped(
  array: UInt16[np.ndarray, "h w 3"], frame: av.VideoFrame
) -> UInt8[np.ndarray, "h w 3"]:
  """Returns HDR as SDR: up to about diffuse white as it is, above with less and less contrast."""
  light = _linear(_TRANSFERS[frame.color_trc])[array]
  matrix = _TO_BT709.get(frame.color_primaries, _BT2020_TO_BT709)
  light = np.maximum(light @ matrix.T.astype(np.float32), 0)
  brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
  # All three are scaled alike, which keeps the hue.
  above = np.maximum(brightest - _KNEE, 0)
  rolled = np.minimum(brightest, _KNEE) + (1 - _KNEE) * (1 - np.exp(-above / (1 - _KNEE)))
  light = light * (rolled / brightest)
  return np.rint(255 * light ** (1 / _SDR_GAMMA)).astype(np.uint8)


@functools.cache
def _linear(transfer: str) -> Float[np.ndarray, "65536"]:
  """Returns the light of each 16-bit value, in units of diffuse white."""
  value = np.arange(65536) / 65535
  if transfer == "pq":  # SMPTE ST 2084.
    root = value ** (32 / 2523)
    ratio = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
    light = ratio ** (8192 / 1305) * (_PQ_NITS / _WHITE_NITS)
  else:  # ARIB STD-B67.
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    # The display's part, one colour at a time, as FFmpeg's zscale has it; in BT.2100 it follows
    # luminance, which differs in saturated colours.
    light = scene**_HLG_GAMMA * (_HLG_NITS / _WHITE_NITS)
  return light.astype(np.float32)
