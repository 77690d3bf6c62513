"""Clips of a TensorFlow Datasets builder that was prepared in ArrayRecord format.

Reading one does not need TensorFlow. Features are found by type, in alphabetical order of their
names: the first `Video`, sequence of images or image is the media, the first `Text` the caption
(if there is none, the class name is), and the first `ClassLabel` the class.
"""

import importlib.util
import types
from pathlib import Path

import numpy as np
from PIL import Image

from videoar_jax.data.bad_samples import BadSamples, bad_sample
from videoar_jax.data.media import clips
from videoar_jax.data.sources import remote, splits
from videoar_jax.data.sources.base import ClipParams, ClipSource
from videoar_jax.data.sources.folder import MIN_FILES_TO_SPLIT


class TfdsSource(ClipSource):
  """Random access to clips of a builder's examples.

  Builders store no frame rate, so a clip has consecutive stored frames. If a builder has no "test"
  split, a tenth of its examples is for testing, provided there are at least 20.

  Args:
    path: folder of the builder's version, such as `DATA/ucf101/ucf101_1/2.0.0`.
    split: "train" or "test".
    max_bad_share: largest allowed share of unusable examples.
    **clip: see `ClipSource`.

  Attributes:
    files: the examples in use, as SPLIT/NUMBER.
    has_test_split: False if both splits have all examples.

  Raises:
    ValueError: there is no such builder, it is not in ArrayRecord format, or it has no media.
  """

  def __init__(self, path: str | Path, split: str, *, max_bad_share: float = 1.0, **clip):
    builder = _open(remote.local_folder(path), path)
    self._media, self._caption, self._class = _find_features(builder.info.features, path)
    self._class_names = builder.info.features[self._class].names if self._class else []
    has_both = {"train", "test"} <= set(builder.info.splits)
    own = split if has_both else next(iter(builder.info.splits))
    self._examples = builder.as_data_source(split=own)
    files = [f"{own}/{number}" for number in range(len(self._examples))]
    self.has_test_split = has_both or len(files) >= MIN_FILES_TO_SPLIT
    if self.has_test_split and not has_both:
      files = splits.split_by_hash(files, split)
    bad_samples = BadSamples(str(path), len(self._examples), max_bad_share)
    super().__init__(files, split, bad_samples=bad_samples, **clip)

  def longest_captions(self) -> list[str]:
    """Returns the class names if these are the captions; else an empty list."""
    return [] if self._caption else list(self._class_names)

  def _read(self, position: int, params: ClipParams) -> dict:
    number = int(self.files[position].rpartition("/")[2])
    try:
      example = self._examples[number]
    except (OSError, RuntimeError) as error:
      raise ValueError(f"cannot be read ({type(error).__name__})") from error
    class_id = int(example[self._class]) if self._class else 0
    caption = self._class_names[class_id] if self._class_names else ""
    if self._caption:
      caption = example[self._caption]
      caption = caption.decode(errors="replace") if isinstance(caption, bytes) else caption
    if not caption:
      raise ValueError("no caption")
    frames = example[self._media]
    # An image is one array [H, W, C], a video a sequence of them.
    frames = [frames] if np.ndim(frames[0]) == 2 else frames
    if len(frames) < self.num_frames:
      raise bad_sample(f"fewer than {self.num_frames} frames", f"it has {len(frames)}")
    start = int(params.where * (len(frames) - self.num_frames + 1))
    chosen = [_to_image(frame) for frame in frames[start : start + self.num_frames]]
    video = np.stack(
      [clips.resize_and_crop_image(image, self.resolution, params.crop) for image in chosen]
    )
    return {"video": video, "caption": caption, "class_id": class_id}


def _to_image(frame: np.ndarray) -> Image.Image:
  return Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).convert("RGB")


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
