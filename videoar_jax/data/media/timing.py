"""Time: when each frame of a file is shown, and how to reach one in the middle.

Times are in ticks of the stream's time base, from the first frame.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from videoar_jax.data.bad_samples import bad_sample
from videoar_jax.data.media.containers import Film

_MAX_RATE = 480  # Readers guess 1000 where times are in milliseconds and no rate is stated.
_MIN_RATE, _DEFAULT_RATE = Fraction(1, 1001), Fraction(25)
_MAX_GAP_S = 3600.0


class TimedFrame(NamedTuple):
  """A frame, the tick at which it begins, and the one at which it ends if no other begins."""

  tick: int
  end: int
  frame: av.VideoFrame


@dataclasses.dataclass(frozen=True)
class Clock:
  """A stream's time base: converts seconds and frames to ticks."""

  seconds_per_tick: float
  ticks_per_frame: float

  @property
  def _slack(self) -> float:
    # Coarse time bases count frames exactly, and fine ones are nearly exact: only our own rounding
    # needs slack, the same in all formats. Those between, of milliseconds, round.
    return 1 if 8 < self.ticks_per_frame < 256 else 1e-3 * self.ticks_per_frame

  def wanted(self, start_s: float, num_frames: int, frame_rate: float) -> np.ndarray:
    """Returns the latest tick at which each of a clip's frames may begin."""
    ticks = (start_s + np.arange(num_frames) / frame_rate) / self.seconds_per_tick
    return np.floor(ticks + self._slack).astype(np.int64)

  def count(self, last: int | np.integer, frame_rate: float) -> int:
    """Returns how many frames at a rate begin from tick 0 up to tick `last`."""
    return 1 + int((last + self._slack) * self.seconds_per_tick * frame_rate)

  def last(self, frame: TimedFrame) -> int:
    """Returns the tick of a file's last frame, or a later one up to which it stays."""
    return max(frame.tick, int(frame.end - self.ticks_per_frame))

  def check_end(self, wanted: int | np.integer, last: int | np.integer) -> None:
    """Raises ValueError if the last frame, at tick `last`, has ended by tick `wanted`."""
    if wanted > last + 1.5 * self.ticks_per_frame:
      times_s = [ticks * self.seconds_per_tick for ticks in (last, wanted)]
      raise bad_sample("ends before the clip does", "at {:.2f} s, not {:.2f} s".format(*times_s))

  def check_gap(self, ticks: int) -> None:
    """Raises ValueError if a frame lasts so long that its time must be wrong."""
    if ticks * self.seconds_per_tick > _MAX_GAP_S:
      raise ValueError(f"a frame lasts longer than {_MAX_GAP_S:g} s")


def clock_of(film: Film) -> Clock:
  """Returns the clock of a film."""
  tick_s = float(film.stream.time_base)
  return Clock(tick_s, 1 / float(stated_rate(film) or _DEFAULT_RATE) / tick_s)


def stated_rate(film: Film) -> Fraction | None:
  """Returns the average frame rate that the file states; None if that is missing or a guess."""
  rate = film.stream.average_rate or film.stream.guessed_rate
  return Fraction(rate) if rate and 0 < rate <= _MAX_RATE else None


def duration_and_rate(film: Film) -> tuple[float, Fraction]:
  """Returns the duration in seconds, and the average rate of all frames but the last.

  Where the headers do not have them, all packets are read, but not decoded.

  Raises:
    ValueError: the film has no frame.
  """
  stream, rate = film.stream, stated_rate(film)
  if rate and stream.duration and _is_duration_right(film) and _is_steady(film, rate):
    return float(stream.duration * stream.time_base), rate
  film.container.seek(0)
  packets = [
    (stamp, packet.duration or 0)
    for packet in film.container.demux(stream)
    if (stamp := packet.pts if film.has_times else packet.dts) is not None
  ]
  if not packets:
    raise ValueError("no frame could be decoded")
  first, (last, last_duration) = min(packets)[0], max(packets)
  span_s = float((last - first) * stream.time_base)
  if span_s > 0 and not (rate and _is_steady(film, rate)):
    rate = max(Fraction((len(packets) - 1) / span_s).limit_denominator(1001), _MIN_RATE)
  rate = rate or _DEFAULT_RATE
  return span_s + max(float(last_duration * stream.time_base), 1 / float(rate)), rate


def _is_duration_right(film: Film) -> bool:
  """Returns whether the duration may be trusted.

  That of an AVI from a pipe is a placeholder; that of an MPEG program stream is an estimate.
  """
  if film.has_times:
    return film.container.format.name != "mpeg"
  index = film.stream.index_entries
  return len(index) > 0 and index[-1].timestamp + 1 == film.stream.duration


def _is_steady(film: Film, rate: Fraction) -> bool:
  """Returns whether an average rate is about that of most frames, not that of one long frame."""
  common = film.stream.guessed_rate
  return common is None or common > _MAX_RATE or rate > 0.9 * common


def first_frame(film: Film) -> av.VideoFrame:
  """Returns the first frame of a film of which nothing was read yet.

  Raises:
    ValueError: there is none.
  """
  first = next(_decoded(film), None)
  if first is None:
    raise ValueError("no frame could be decoded")
  return first.frame


def frames_from(film: Film, tick: int) -> Iterator[TimedFrame]:
  """Yields frames in display order, beginning with one at or before `tick`."""
  origin = _origin(film)
  second, back = round(1 / film.stream.time_base), 0
  if tick > 0 and not film.has_times:
    # Only the first packet says whether MPEG-4 is packed; the decoder remembers it.
    first = next(film.container.demux(film.stream))
    if first.size > 1:
      with contextlib.suppress(av.FFmpegError):  # It may be damaged, and not be needed.
        first.decode()
  while True:
    _seek(film, origin + tick - back)
    frames = _decoded(film)
    first = next(frames, None)
    if first is not None and first.tick - origin <= tick:
      break
    if back > tick + second:
      if first is None:
        raise ValueError("no frame could be decoded")
      break
    # With reordered frames, a seek may land on a key frame that is shown after the target. Then
    # seek further back, even to before the first frame.
    back = max(2 * back, second)
  # If the stream claims to start before its first frame, that frame is shown from the start.
  latest = min(first.tick - origin, tick)
  yield TimedFrame(latest, first.end - origin, first.frame)
  for frame in frames:
    latest = max(frame.tick - origin, latest)  # Times that run backwards are damage.
    yield TimedFrame(latest, frame.end - origin, frame.frame)


def _seek(film: Film, stamp: int) -> None:
  try:
    film.container.seek(stamp, stream=film.stream, backward=True)
  except av.FFmpegError:
    # AVI has no key frame before this, or its index is missing.
    film.container.seek(0)


def _origin(film: Film) -> int:
  """Returns the time stamp of the first frame."""
  if not film.has_times:
    return next((entry.timestamp for entry in film.stream.index_entries if entry.size > 1), 0)
  if film.stream.start_time is not None:
    return film.stream.start_time
  first = next(_decoded(film), None)
  return first.tick if first else 0


def _decoded(film: Film) -> Iterator[TimedFrame]:
  """Decodes on from where the file is; ticks are the file's time stamps."""
  if not film.has_times:
    yield from _decoded_in_turn(film)
    return
  for frame in _frames(film):
    if frame.pts is not None:
      yield TimedFrame(frame.pts, frame.pts + (frame.duration or 0), frame)


def _frames(film: Film) -> Iterator[av.VideoFrame]:
  decoder = film.alpha_decoder
  if decoder is None:
    yield from film.container.decode(film.stream)
    return
  decoder.flush_buffers()  # It may have decoded elsewhere in the file, even to its end.
  for packet in film.container.demux(film.stream):
    yield from decoder.decode(packet if packet.size else None)


def _decoded_in_turn(film: Film) -> Iterator[TimedFrame]:
  """Decodes a file whose packets only have a place each, in the order of decoding.

  The places are those of the frames, but reordered frames are shown in another order: of all frames
  the decoder returns the first one next, and it takes the first place that is left.
  """
  context = film.stream.codec_context
  places: deque[int] = deque()
  place, held = -1, None
  for packet in film.container.demux(film.stream):
    if packet.dts is not None:
      place = packet.dts
      if packet.size <= 1:  # Nothing new: the frame before is shown on.
        continue
      places.append(place)
    frames = packet.decode()
    if not frames and len(places) > context.reorder_depth:
      # The decoder has left it out: the frame before is shown on. Or it follows a key frame, but is
      # shown before it, and needs frames before the place at which decoding began.
      places.popleft() if held is None else places.pop()
    for frame in frames:
      if held is not None:
        yield held
      tick = places.popleft() if places else place
      held = TimedFrame(tick, tick + 1, frame)
  if held is not None:
    yield TimedFrame(held.tick, max(place, held.tick) + 1, held.frame)
