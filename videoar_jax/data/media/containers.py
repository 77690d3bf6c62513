"""Opening files: which of a file's streams is the film, and what is wrong with a file."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

# A path, or the bytes of a file.
Media = str | Path | io.BytesIO

# Headers of damaged files claim any size. This is 16 times 4K, and 0.4 GB as RGB.
MAX_PIXELS = 2**27

_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails
_NO_ASPECT = (0.1, 10.0)  # Pixels of other shapes than between these are an error of the header.


@dataclasses.dataclass(frozen=True)
class Film:
  """The film of an open file, without its other streams.

  Attributes:
    container, stream: of PyAV.
    alpha_decoder: decodes the stream's packets together with their transparency; None where the
      stream's own decoder does.
  """

  container: InputContainer
  stream: VideoStream
  alpha_decoder: av.VideoCodecContext | None = None

  @property
  def pixel_aspect(self) -> float:
    """How much wider a pixel is shown than it is high."""
    aspect = float(self.stream.sample_aspect_ratio or 1)
    return aspect if _NO_ASPECT[0] < aspect < _NO_ASPECT[1] else 1.0

  @property
  def has_times(self) -> bool:
    """Whether the file says when each frame is shown; AVI does not, if frames are reordered."""
    return self.container.format.name != "avi"


@contextlib.contextmanager
def reported_as(what: str) -> Iterator[None]:
  """Turns anything that libraries raise for a damaged file into a ValueError: WHAT (why).

  The text has no file name and no offset: bad samples are counted by it.
  """
  try:
    yield
  except (av.FFmpegError, UnicodeError) as error:  # Some of them are ValueErrors, too.
    raise ValueError(f"{what} ({_reason(error)})") from error
  except (ValueError, MemoryError):  # Sizes are limited: memory is not this file's fault.
    raise
  except Exception as error:  # Libraries raise many types for damaged files.
    raise ValueError(f"{what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
  return getattr(error, "strerror", None) or type(error).__name__


@contextlib.contextmanager
def opened(path: Media) -> Iterator[Film]:
  """Opens a file; errors of the block are ValueErrors that say that it cannot be decoded.

  Raises:
    ValueError: it cannot be opened or decoded, or has no film.
  """
  with contextlib.ExitStack() as stack:
    with reported_as("cannot be opened as a video"):
      container = stack.enter_context(_open(path))
    with reported_as("cannot be decoded"):
      stream = _film_stream(container)
      yield Film(container, stream, _alpha_decoder(stream))


def _open(path: Media) -> InputContainer:
  if isinstance(path, io.BytesIO):
    path.seek(0)  # It may have been read before.
    file = path
  else:
    file = f"file:{os.fspath(path)}"  # A name may look like a URL or a list of files.
  # A file that is a playlist must not reach the network.
  return av.open(file, metadata_errors="replace", options={"protocol_whitelist": "file"})


def _film_stream(container: InputContainer) -> VideoStream:
  films = [stream for stream in container.streams.video if not stream.disposition & _NO_FILM]
  if not films:
    raise ValueError("no video stream")
  chosen = [stream for stream in films if stream.disposition & Disposition.default]
  stream = (chosen or films)[0]
  context = stream.codec_context
  if context is None:
    raise ValueError("cannot be decoded (its codec is not known)")
  check_size(context.height, context.width)
  context.options = {"max_pixels": str(MAX_PIXELS)}
  # Each pipeline thread reads its own file; more threads inside the decoders would only compete.
  context.thread_count = 1
  return stream


def _alpha_decoder(stream: VideoStream) -> av.VideoCodecContext | None:
  """Returns a decoder for a film whose transparency FFmpeg's own decoder would leave out."""
  tags = {name.lower(): value for name, value in stream.metadata.items()}
  name = _ALPHA_DECODERS.get(stream.codec_context.name)
  if name is None or tags.get("alpha_mode") != "1":
    return None
  decoder = av.CodecContext.create(name, "r")
  decoder.thread_count = stream.codec_context.thread_count
  decoder.options = stream.codec_context.options
  return decoder


def check_size(height: int, width: int) -> None:
  """Raises ValueError for pictures that are too large to be decoded."""
  if height * width > MAX_PIXELS:
    raise ValueError(f"its pictures have more than {MAX_PIXELS:,} pixels")
