"""Base of the sources: random access to clips of media files."""

import copy
import dataclasses
import itertools
import logging
import math
import os
import stat
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np

from videoar_jax.data.bad_samples import BadSamples, bad_sample, cause_of
from videoar_jax.data.media import clips
from videoar_jax.data.media.colour import WHITE, Colour
from videoar_jax.data.sources.captions import CutCaptions, first_sentence
from videoar_jax.data.sources.media_files import printable
from videoar_jax.data.sources.motion import UNKNOWN
from videoar_jax.data.synthetic.sprites import SPLITS
from videoar_jax.data.windows import Windows

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ClipParams:
  """The random choices of a clip; all numbers are in [0, 1).

  Attributes:
    where: start of the clip, between the first and the last possible one.
    rate: which of the frame rates.
    crop: (y, x) of the crop, between the first and the last possible position.
    is_flipped: whether the clip is mirrored, left to right.
    caption: which of the captions; None for the empty one.
    is_short: whether a caption that is the only one is cut to its first sentence.
  """

  where: float
  rate: float = 0.0
  crop: tuple[float, float] = (0.5, 0.5)
  is_flipped: bool = False
  caption: float | None = 0.0
  is_short: bool = False


@dataclasses.dataclass(frozen=True)
class Sample:
  """A sample that was found, but not decoded.

  Attributes:
    captions: one of them is drawn for each clip.
    class_id: None if it has no class.
    read: returns a clip, uint8 [f, H, W, 3]; raises ValueError if it cannot be decoded.
    flow: how much moves, see `motion.py`.
  """

  captions: list[str]
  class_id: int | None
  read: Callable[[ClipParams], np.ndarray]
  flow: float = UNKNOWN


def choose(options: list | tuple, chance: float):
  """Returns the option that a number in [0, 1) selects."""
  return options[int(chance * len(options))]


class ClipSource:
  """Random access to clips of the samples of a split.

  Item i is a clip of sample `i % number of samples`; its `ClipParams` are drawn from (seed, i).
  Items beyond the length are further clips of the same samples, in the same order. In the test
  split, clips begin at evenly spaced times, the same in every epoch, and nothing else is random.

  A bad sample is replaced by another one, drawn from (seed, i), so that the places of bad samples
  are shared out among all others.

  A subclass defines `_find`, which finds a sample, `_file_of`, if it has files, and
  `_known_captions` and `_known_flow`, if it knows any.

  Args:
    files: names of the samples.
    split: "train" or "test".
    num_frames, resolution: shape of a clip; see `clips.read_clip`.
    frame_rate: frames per second of a clip; from several, one at which the video is long enough is
      drawn.
    seed: seed of the draws.
    clips_per_file: how often the length counts each sample.
    is_flipped: mirror half of the clips.
    is_randomly_cropped: crop a clip of another aspect ratio at random; else at the centre.
    background: RGB colour behind transparent pixels.
    p_drop_caption: share of the captions that are replaced by the empty one.
    p_short_caption: share of the captions that are cut to their first sentence, of samples that
      have one alone.
    bad_samples: list of the samples that cannot be read.

  Attributes:
    class_names: names of the classes, an item's class_id is an index into them; empty if unknown.
    cut_captions: count of the captions that were cut.
  """

  has_test_split = True  # False where both splits have the same samples.

  def __init__(
    self,
    files: list[str],
    split: str,
    *,
    num_frames: int,
    frame_rate: float | tuple[float, ...],
    resolution: tuple[int, int],
    bad_samples: BadSamples,
    seed: int = 0,
    clips_per_file: int = 1,
    is_flipped: bool = False,
    is_randomly_cropped: bool = False,
    background: Colour = WHITE,
    p_drop_caption: float = 0.0,
    p_short_caption: float = 0.0,
  ):
    self.files, self.split, self.bad_samples = files, split, bad_samples
    self.num_frames, self.resolution = num_frames, tuple(resolution)
    self.frame_rates = frame_rate if isinstance(frame_rate, tuple) else (frame_rate,)
    self.seed, self.clips_per_file = seed, clips_per_file
    self.is_flipped, self.is_randomly_cropped = is_flipped, is_randomly_cropped
    self.background, self.p_drop_caption = background, p_drop_caption
    self.p_short_caption = p_short_caption
    self.class_names: list[str] = []
    self.cut_captions = CutCaptions(bad_samples.source)

  def reshaped(self, num_frames: int, resolution: tuple[int, int]) -> Self:
    """Returns the same samples as clips of another shape, with the same list of bad samples."""
    other = copy.copy(self)
    other.num_frames, other.resolution = num_frames, tuple(resolution)
    return other

  def _known_captions(self, position: int) -> list[str]:
    """Returns the captions of a sample that are known without reading it."""
    return []

  def known_captions(self) -> list[str]:
    """Returns the captions that are known without reading samples."""
    return [caption for i in range(len(self.files)) for caption in self._known_captions(i)]

  def _known_flow(self, position: int) -> float:
    """Returns how much moves in a sample, if that is known without reading it; else `UNKNOWN`."""
    return UNKNOWN

  def known_flows(self) -> dict[str, float]:
    """Returns how much moves in the samples of which that is known without reading them."""
    flows = {file: self._known_flow(position) for position, file in enumerate(self.files)}
    return {file: flow for file, flow in flows.items() if not math.isnan(flow)}

  def check_captions(self, encode: Callable[[str], np.ndarray]) -> None:
    """Finds captions that have to be cut, and samples without one that can be encoded.

    Only captions that are known without reading samples are checked; others are when they are read.

    Raises:
      ValueError: too many samples have no caption that can be encoded.
    """
    for position, file in enumerate(self.files):
      errors, captions = [], self._known_captions(position)
      if self.p_short_caption and len(captions) == 1:
        captions = [*captions, first_sentence(captions[0])]
      for caption in captions:
        try:
          self.cut_captions.fit(file, caption, encode)
        except ValueError as error:
          errors.append(error)
      if errors and len(errors) == len(captions):
        self._add_bad(position, _not_encoded(errors[0]))

  def listing(self) -> dict[str, int | None]:
    """Returns the size in bytes of each sample's file or shard; None where it is not known.

    With it, a run notices that its data changed.
    """
    sizes: dict[str | None, int | None] = {}  # Many samples may be in one file.
    files = [self._file_of(position) for position in range(len(self.files))]
    for file in files:
      if file not in sizes:
        sizes[file] = None if file is None else _size_of(file)
    return {sample: sizes[file] for sample, file in zip(self.files, files, strict=True)}

  def _file_of(self, position: int) -> str | None:
    """Returns the path of the local file that has a sample; None if there is none."""
    return None

  def aspect_ratios(self) -> list[float]:
    """Returns height / width of each sample, in the order of `files`.

    Raises:
      ValueError: they are not known without reading the samples.
    """
    raise ValueError(
      f"{self.bad_samples.source}: the sizes of its samples are not known; prepare it with "
      "`python -m videoar_jax.prepare`, or use a single resolution"
    )

  @property
  def span_s(self) -> float:
    """Duration of the shortest clip, the one at the highest frame rate, in seconds."""
    return self._span_s(max(self.frame_rates))

  def _span_s(self, frame_rate: float) -> float:
    return (self.num_frames - 1) / frame_rate

  def _place(self, last_s: float, params: ClipParams) -> tuple[float, float]:
    """Returns the start of a clip, in seconds, and its frame rate.

    Args:
      last_s: time of the video's last frame, in seconds.
      params: random choices of the clip.
    Raises:
      ValueError: the video is too short.
    """
    rate = self._choose_rate(last_s, params)
    return params.where * max(last_s - self._span_s(rate), 0.0), rate

  def _choose_rate(self, last_s: float, params: ClipParams) -> float:
    """Returns the frame rate of a clip; raises ValueError if the video is too short."""
    rates = [rate for rate in self.frame_rates if last_s >= self._span_s(rate) - 1e-3]
    if not rates:
      raise ValueError(self._too_short())
    return choose(rates, params.rate)

  def _too_short(self) -> str:
    return f"too short for {self.num_frames} frames at {max(self.frame_rates):g} per second"

  @property
  def skipped(self) -> list[tuple[str, str]]:
    """(file, reason) of each sample found to be unusable so far."""
    return self.bad_samples.skipped

  def __len__(self) -> int:
    return len(self.files) * self.clips_per_file

  def __getitem__(self, index: int) -> dict:
    """Returns item `index`, see `read`."""
    return self.read(index)

  def read(self, index: int, encode: Callable[[str], np.ndarray] | None = None) -> dict:
    """Returns item `index`.

    Args:
      index: index of the item.
      encode: maps captions to `text`, see `CutCaptions.fit`; where it raises ValueError, the sample
        counts as bad.
    Returns:
      video: uint8 [f, H, W, 3]; caption; class_id; flow: see `motion.py`; attributes: None; id: the
      index; text, if `encode` is given.
    Raises:
      ValueError: no sample can be used, or too many cannot.
    """
    visit, first = divmod(index, len(self.files))
    params = self._draw(index, visit)
    # A bad sample is tried again at every visit, so that the result does not depend on what was
    # read before.
    for position in itertools.chain([first], self._replacements(index, first)):
      self.bad_samples.num_reads += 1
      try:
        item = self._read(position, params, encode)
      except MemoryError:
        raise
      except Exception as error:
        self._add_bad(position, error)
        continue
      return item | {"attributes": None, "id": index}
    raise ValueError(self._nothing_left(len(self.files)))

  def _replacements(self, index: int, first: int) -> Iterator[int]:
    """Yields all samples but the first, in an order that depends on (seed, index) alone."""
    num = len(self.files)
    # The clips of the test split are the same in every epoch.
    number = index % len(self) if self.split == "test" else index
    entropy = np.random.SeedSequence((self.seed, SPLITS.index(self.split), number, 1))
    rng = np.random.Generator(np.random.Philox(entropy))
    start, stride = int(rng.integers(num)), int(rng.integers(1, max(num, 2)))
    while math.gcd(stride, num) > 1:  # A stride that shares no factor visits all samples.
      stride += 1
    for step in range(num):
      position = (start + step * stride) % num
      if position != first:
        yield position

  def _add_bad(self, position: int, error: Exception) -> None:
    """Lists a sample as bad, and logs why, once.

    Raises:
      ValueError: there are too many bad samples.
    """
    cause, details, is_foreseen = cause_of(error)
    if self.bad_samples.add(self.files[position], cause, details):
      file, reason = printable(self.files[position]), ": ".join(filter(None, (cause, details)))
      log.warning(
        "%s: %s: %s; replaced by other samples.",
        *(self.bad_samples.source, file, reason),
        exc_info=None if is_foreseen else error,
      )

  def _read(
    self, position: int, params: ClipParams, encode: Callable[[str], np.ndarray] | None
  ) -> dict:
    """Returns a clip with its caption; the caption is encoded before the clip is decoded."""
    sample = self._find(position)
    captions = sample.captions
    if params.is_short and len(captions) == 1:  # Of several, some are short already.
      captions = [first_sentence(captions[0])]
    caption = "" if params.caption is None else choose(captions, params.caption)
    item = {"caption": caption, "class_id": sample.class_id or 0, "flow": np.float32(sample.flow)}
    if encode is not None:
      try:
        item["caption"], item["text"] = self.cut_captions.fit(self.files[position], caption, encode)
      except ValueError as error:
        raise _not_encoded(error) from error
    video = sample.read(params)
    return item | {"video": video[:, :, ::-1] if params.is_flipped else video}

  def _draw(self, index: int, visit: int) -> ClipParams:
    if self.split == "test":
      return ClipParams((visit % self.clips_per_file + 0.5) / self.clips_per_file)
    entropy = np.random.SeedSequence((self.seed, SPLITS.index(self.split), index))
    chance = np.random.Generator(np.random.Philox(entropy)).random(8).tolist()
    return ClipParams(
      where=chance[0],
      rate=chance[1],
      crop=(chance[2], chance[3]) if self.is_randomly_cropped else (0.5, 0.5),
      is_flipped=self.is_flipped and chance[4] < 0.5,
      caption=None if chance[5] < self.p_drop_caption else chance[6],
      is_short=chance[7] < self.p_short_caption,
    )

  def _find(self, position: int) -> Sample:
    """Returns a sample; raises ValueError if it cannot be used."""
    raise NotImplementedError

  def _clip(
    self,
    open_media: Callable[[], clips.Media],
    params: ClipParams,
    start_s: float = 0.0,
    end_s: float = math.inf,
  ) -> np.ndarray:
    """Returns a clip of a media file, or of a part of it, that was not probed before.

    Raises:
      ValueError: the file is damaged or too short.
    """
    info = clips.probe(open_media())
    # The last frame of a part is the one that ends with it.
    last_s = min(info.last_s, max(end_s - 1 / float(info.frame_rate), start_s)) - start_s
    if last_s < 0:
      raise bad_sample("ends before its segment begins", f"at {info.last_s:g} s, not {start_s:g} s")
    offset_s, rate = self._place(last_s, params)
    size = self.num_frames, rate, self.resolution
    return clips.read_clip(open_media(), start_s + offset_s, *size, params.crop, self.background)

  def _nothing_left(self, count: int) -> str:
    causes = self.bad_samples.causes()
    return f"{self.bad_samples.source}: none of {count} samples can be used: {causes}."


def _size_of(file: str) -> int | None:
  try:
    status = os.stat(file)
  except (OSError, ValueError):
    return None
  return status.st_size if stat.S_ISREG(status.st_mode) else None


class EncodedSource:
  """A source whose items also have `text`, the encoded caption.

  Captions that are too long are cut. A sample whose caption cannot be encoded is replaced, like a
  damaged one.

  Args:
    source: from `make_source`, or a `LatentsSource`.
    encode: maps a caption to an array; raises ValueError if it cannot, see `CutCaptions.fit`.
    windows: to cut out of clips; None for whole frames.
  """

  def __init__(self, source, encode: Callable[[str], np.ndarray], windows: Windows | None = None):
    self._source, self._encode, self._windows = source, encode, windows
    self._cut_captions = getattr(source, "cut_captions", None) or CutCaptions("captions")

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict:
    """Returns item `index`."""
    if isinstance(self._source, ClipSource):
      item = self._source.read(index, self._encode)
    else:
      item = self._source[index]
      caption, text = self._cut_captions.fit(f"item {index}", item["caption"], self._encode)
      item = item | {"caption": caption, "text": text}
    if self._windows is not None:
      item = item | {"video": self._windows.cut(item["video"], index)}
    return item


def _not_encoded(error: ValueError) -> ValueError:
  return bad_sample("the caption cannot be encoded", str(error))
