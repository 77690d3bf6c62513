"""Random access to clips of media files, wherever those come from."""

import logging
from collections.abc import Callable

import numpy as np

from videoar_jax.data import clips
from videoar_jax.data.faults import Faults
from videoar_jax.data.sprites import SPLITS

log = logging.getLogger(__name__)


class ClipSource:
  """Random access to clips of the samples of a split.

  Item i is a clip of sample `i % number of samples`; where it begins is drawn from (seed, i). Items
  beyond the length are further clips of the same samples, in the same order. For the test split the
  places are evenly spaced over the video, and repeat.

  A subclass says what its samples are, with `_read`.

  Args:
    files: names of the samples.
    split: "train" or "test".
    num_frames, frame_rate, resolution: of a clip; see `clips.read_clip`.
    seed: of the places.
    clips_per_file: how many clips of each sample the length counts.
    faults: where samples are listed that cannot be read.
  """

  def __init__(
    self,
    files: list[str],
    split: str,
    *,
    num_frames: int,
    frame_rate: float,
    resolution: tuple[int, int],
    seed: int,
    clips_per_file: int,
    faults: Faults,
  ):
    self.files, self.split, self.faults = files, split, faults
    self.num_frames, self.frame_rate = num_frames, frame_rate
    self.resolution = tuple(resolution)
    self.seed, self.clips_per_file = seed, clips_per_file
    self.span_s = (num_frames - 1) / frame_rate

  @property
  def skipped(self) -> list[tuple[str, str]]:
    """(file, reason) of each sample that cannot be used, also of those found out later."""
    return self.faults.skipped

  def __len__(self) -> int:
    return len(self.files) * self.clips_per_file

  def __getitem__(self, index: int) -> dict:
    """Returns item `index`.

    Returns:
      video: uint8 [f, H, W, 3]; caption; class_id; attributes: None; id: the index.
    Raises:
      ValueError: this sample fails, and so do all others, or too many.
    """
    visit, first = divmod(index, len(self.files))
    where = self._where(index, visit)
    for step in range(len(self.files)):
      # A failing sample is tried each time, so that the result does not depend on what was read
      # before; the one after it stands in for it.
      position = (first + step) % len(self.files)
      try:
        item = self._read(position, where)
      except ValueError as error:
        if self.faults.add(self.files[position], str(error)):
          log.warning(
            "%s: %s: %s; others stand in for it.", self.faults.source, self.files[position], error
          )
        continue
      return item | {"attributes": None, "id": index}
    raise ValueError(self._nothing_left(len(self.files)))

  def _where(self, index: int, visit: int) -> float:
    """Returns where in a video a clip begins, between 0 and 1."""
    if self.split == "test":
      return (visit % self.clips_per_file + 0.5) / self.clips_per_file
    entropy = np.random.SeedSequence((self.seed, SPLITS.index(self.split), index))
    return np.random.Generator(np.random.Philox(entropy)).random()

  def _read(self, position: int, where: float) -> dict:
    """Returns {video, caption, class_id} of a sample; ValueError where it cannot be used."""
    raise NotImplementedError

  def _item(self, open_media: Callable[[], clips.Media], facts: dict, where: float) -> dict:
    """Returns {video, caption, class_id} of a media file that was not looked at before.

    Raises:
      ValueError: the file is damaged or too short, or its facts are wrong.
    """
    caption, class_id = facts.get("caption"), facts.get("class_id")
    if not isinstance(caption, str) or not caption:
      raise ValueError("no caption")
    if class_id is not None and not isinstance(class_id, int):
      raise ValueError("class_id is no integer")
    info = clips.probe(open_media())
    if info.last_s < self.span_s - 1e-3:
      raise ValueError(f"too short for {self.num_frames} frames at {self.frame_rate:g} per second")
    start_s = where * max(info.last_s - self.span_s, 0.0)
    video = clips.read_clip(
      open_media(), start_s, self.num_frames, self.frame_rate, self.resolution
    )
    return {"video": video, "caption": caption, "class_id": class_id or 0}

  def _nothing_left(self, count: int) -> str:
    causes = self.faults.causes()
    return f"{self.faults.source}: none of {count} samples can be used: {causes}."
