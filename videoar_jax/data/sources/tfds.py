"""Clips of a TensorFlow Datasets builder that was prepared in ArrayRecord format.

Reading one does not need TensorFlow. Features are found by type, in alphabetical order of their
names: the first `Video`, sequence of images or image is the media, the first `Text` the caption
(if there is none, the class name is), and the first `ClassLabel` the class. A number named `fps` or
`frame_rate`, among the features or in the builder's metadata, is the rate of the stored frames.
"""

import importlib.util
import logging
import math
import types
from pathlib import Path

import numpy as np

from videoar_jax.data.bad_samples import BadSamples, bad_sample
from videoar_jax.data.media import clips
from videoar_jax.data.media.images import image_of
from videoar_jax.data.sources import remote, splits
from videoar_jax.data.sources.base import ClipParams, ClipSource, Sample
from videoar_jax.data.sources.captions import captions_of

log = logging.getLogger(__name__)

_RATES = ("fps", "frame_rate", "framerate", "frames_per_second", "video_fps")


class TfdsSource(ClipSource):
  """Random access to clips of a builder's examples.

  If a builder has no "test" split, a tenth of its examples is for testing, provided there are at
  least 20.

  Args:
    path: folder of the builder's version, such as `DATA/ucf101/ucf101_1/2.0.0`.
    split: "train" or "test".
    stored_frame_rate: frames per second of the stored frames; None for what the builder says. If it
      says nothing, clips have consecutive stored frames, with a warning.
    max_bad_share: largest allowed share of unusable examples.
    **clip: see `ClipSource`.

  Attributes:
    files: the examples in use, as SPLIT/NUMBER.
    class_names: of the builder.
    has_test_split: False if both splits have all examples.

  Raises:
    ValueError: there is no such builder, it is not in ArrayRecord format, or it has no media.
  """

  def __init__(
    self,
    path: str | Path,
    split: str,
    *,
    stored_frame_rate: float | None = None,
    max_bad_share: float = 1.0,
    **clip,
  ):
    builder = _open(remote.local_folder(path), path)
    self._media, self._caption, self._class = _find_features(builder.info.features, path)
    has_both = {"train", "test"} <= set(builder.info.splits)
    own = split if has_both else next(iter(builder.info.splits))
    self._examples = builder.as_data_source(split=own)
    files = [f"{own}/{number}" for number in range(len(self._examples))]
    self.has_test_split = has_both
    if not has_both:
      samples = {file: file for file in files}
      files, self.has_test_split = splits.choose(splits.parts_by_hash(files), samples, split)
    bad_samples = BadSamples(str(path), len(self._examples), max_bad_share)
    super().__init__(files, split, bad_samples=bad_samples, **clip)
    if self._class:
      self.class_names = list(builder.info.features[self._class].names)
    self._find_rate(builder.info, stored_frame_rate)

  def _find_rate(self, info, stored_frame_rate: float | None) -> None:
    """Sets the rate of the stored frames, or the name of the feature that has it."""
    self._rate_feature = None
    metadata = info.metadata or {}
    if stored_frame_rate is not None:
      self._rate = stored_frame_rate
    elif names := [name for name in _RATES if name in info.features]:
      self._rate_feature = names[0]
    elif names := [name for name in _RATES if name in metadata]:
      self._rate = _checked_rate(metadata[names[0]])
    else:
      self._rate = max(self.frame_rates)
      if self.num_frames > 1:
        log.warning(
          "%s does not say how many frames a second it has stored; %g are assumed, so that clips "
          "have consecutive frames. data.stored_frame_rate sets another rate; UCF-101 has 25",
          *(self.bad_samples.source, self._rate),
        )

  def known_captions(self) -> list[str]:
    """Returns the class names if these are the captions; else an empty list."""
    return [] if self._caption else list(self.class_names)

  def _find(self, position: int) -> Sample:
    example = self._examples[int(self.files[position].rpartition("/")[2])]
    class_id = int(example[self._class]) if self._class else None
    caption = self.class_names[class_id] if self.class_names else ""
    if self._caption:
      caption = example[self._caption]
      caption = caption.decode(errors="replace") if isinstance(caption, bytes) else caption
    frames = example[self._media]
    # An image is one array [H, W, C], a video a sequence of them.
    frames = [frames] if np.ndim(frames[0]) == 2 else frames
    stored = _checked_rate(example[self._rate_feature]) if self._rate_feature else self._rate

    def read(params: ClipParams):
      rate = self._choose_rate((len(frames) - 1) / stored, params)
      step = stored / rate
      # A clip may begin at any time at which its last frame is not over.
      start = params.where * max(len(frames) - (self.num_frames - 1) * step, 0.0)
      numbers = np.floor(start + step * np.arange(self.num_frames) + 1e-6).astype(int)
      images = [
        image_of(frames[number], self.background) for number in numbers.clip(max=len(frames) - 1)
      ]
      return np.stack(
        [clips.resize_and_crop_image(image, self.resolution, params.crop) for image in images]
      )

    return Sample(captions_of({"caption": caption}), class_id, read)


def _checked_rate(value) -> float:
  """Returns a stored frame rate as a number; raises ValueError if it is none."""
  rate = float(value)
  if not 0 < rate < math.inf:
    raise bad_sample("its frame rate is not a positive number", f"it is {rate:g}")
  return rate


def _open(folder: Path, path: str | Path):
  import tensorflow_datasets as tfds  # Slow to import, and rarely needed.
  from tensorflow_datasets.core.features import video_feature

  if importlib.util.find_spec("tensorflow") is None:
    # Reading a `Video` needs TensorFlow only for the names of types.
    types_only = types.SimpleNamespace(as_dtype=np.dtype)
    video_feature.tf = types.SimpleNamespace(
      dtypes=types_only, uint8=np.dtype(np.uint8), uint16=np.dtype(np.uint16)
    )
  if not (folder / "dataset_info.json").is_file():
    raise ValueError(
      f"data.path is {str(path)!r}, which has no dataset_info.json; set it to the folder of a "
      "builder's version, such as DATA/ucf101/ucf101_1/2.0.0"
    )
  builder = tfds.builder_from_directory(str(folder))
  if builder.info.file_format.value != "array_record":
    raise ValueError(
      f"{path} is in {builder.info.file_format.value} format; prepare it as ArrayRecord, with "
      "tfds.builder(NAME, file_format='array_record').download_and_prepare()"
    )
  return builder


def _find_features(features, path: str | Path) -> tuple[str, str | None, str | None]:
  """Returns the names of the media, caption and class features; None for a missing one."""
  from tensorflow_datasets import features as kinds

  def is_media(feature) -> bool:
    inner = getattr(feature, "feature", feature)  # Of a sequence.
    return isinstance(inner, kinds.Image)

  def first(is_kind) -> str | None:
    return next((name for name in sorted(features) if is_kind(features[name])), None)

  media = first(is_media)
  caption = first(lambda feature: isinstance(feature, kinds.Text))
  class_name = first(lambda feature: isinstance(feature, kinds.ClassLabel))
  if media is None or not (caption or class_name):
    missing = "Video, sequence of images or Image" if media is None else "Text or ClassLabel"
    raise ValueError(
      f"{path} has no feature of type {missing}; it has {', '.join(sorted(features))}"
    )
  return media, caption, class_name
