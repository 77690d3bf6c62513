"""The log of a stage: a progress bar, `metrics.jsonl` and TensorBoard events.

A run that resumes from step N first removes the records after N, so that no step is logged twice.
"""

import io
import json
import logging
import pathlib
import sys

import numpy as np
import tensorboardX
from jaxtyping import UInt8
from PIL import Image
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from videoar_jax.interop.atomic import write_text
from videoar_jax.interop.strict_json import to_json

log = logging.getLogger(__name__)

# Of the clips in TensorBoard: a larger picture takes as much disk space as a small checkpoint.
_MAX_SIDE = 256  # Of a clip, in pixels.
_NUM_COLUMNS = 4


def gif_bytes(video: np.ndarray, frame_rate: float) -> bytes:
  """Returns uint8 `[f, H, W, 3]` as an animated GIF."""
  frames = [Image.fromarray(frame) for frame in video]
  buffer = io.BytesIO()
  frames[0].save(
    buffer,
    "gif",
    save_all=True,
    append_images=frames[1:],
    duration=round(1000 / frame_rate),
    loop=0,
  )
  return buffer.getvalue()


def tile(videos: UInt8[np.ndarray, "b f H W 3"]) -> UInt8[np.ndarray, "f Y X 3"]:
  """Puts clips into rows, and shrinks large ones: GIF is for small pictures."""
  b, f, height, width, _ = videos.shape
  scale = min(1.0, _MAX_SIDE / max(height, width))
  size = max(1, round(width * scale)), max(1, round(height * scale))
  columns = min(b, _NUM_COLUMNS)
  sheet = np.zeros((f, -(-b // columns) * size[1], columns * size[0], 3), np.uint8)
  for i, video in enumerate(videos):
    top, left = i // columns * size[1], i % columns * size[0]
    for frame, shown in zip(video, sheet, strict=True):
      # Pillow averages over the pixels that one replaces.
      small = Image.fromarray(frame).resize(size, Image.Resampling.BOX)
      shown[top : top + size[1], left : left + size[0]] = np.asarray(small)
  return sheet


def read_metrics(path: pathlib.Path) -> list[dict]:
  """Returns the records of a `metrics.jsonl`, without a truncated last line.

  Numbers that are not finite, as of a step that was skipped, are None.
  """
  records = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        # Files of earlier versions have NaN.
        records.append(json.loads(line, parse_constant=lambda _: None))
      except json.JSONDecodeError:
        break
  return records


class NoLog:
  """A `RunLog` that writes nothing, for all processes but the first."""

  lost_s = 0.0

  def scalars(self, step: int, values: dict[str, float], *, is_line: bool) -> None:
    """Ignores a step's scalars."""

  def videos(self, step: int, videos: dict[str, np.ndarray]) -> None:
    """Ignores clips."""

  def flush(self) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


class RunLog:
  """Writes the scalars and videos of one stage.

  Args:
    directory: folder of the stage.
    first_step: step that the run resumes from.
    num_steps: steps of the stage.
    name: label of the progress bar.
    frame_rate: frames per second of the videos.
  Attributes:
    lost_s: seconds that an earlier run spent on steps after `first_step`, which are repeated.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    *,
    first_step: int,
    num_steps: int,
    name: str,
    frame_rate: float,
  ):
    directory.mkdir(parents=True, exist_ok=True)
    self.frame_rate = frame_rate
    path = directory / "metrics.jsonl"
    records = read_metrics(path)
    kept = [record for record in records if record["step"] <= first_step]
    self.lost_s = sum(1 / record["steps_per_s"] for record in records[len(kept) :])
    write_text(path, "".join(to_json(record) + "\n" for record in kept))
    self._file = path.open("a")
    self._writer = tensorboardX.SummaryWriter(
      str(directory / "tensorboard"), purge_step=first_step + 1, flush_secs=30
    )
    # In a file, each update of the bar is a new line, so update less often.
    interval = 0.5 if sys.stderr.isatty() else 20.0
    self._bar = tqdm(
      total=num_steps,
      initial=first_step,
      desc=name,
      unit="step",
      mininterval=interval,
      dynamic_ncols=True,
    )

  def scalars(self, step: int, values: dict[str, float], *, is_line: bool) -> None:
    """Records a step's scalars; with `is_line`, in TensorBoard, too."""
    self._file.write(to_json({"step": step, **values}) + "\n")
    self._bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
    self._bar.update(step - self._bar.n)
    if is_line:
      for name, value in values.items():
        self._writer.add_scalar(name, value, step)

  def videos(self, step: int, videos: dict[str, np.ndarray]) -> None:
    """Records clips uint8 `[b, f, H, W, 3]` beside each other, as animated images."""
    for name, clips in videos.items():
      row = tile(np.asarray(clips))
      image = Summary.Image(
        height=row.shape[1],
        width=row.shape[2],
        colorspace=3,
        encoded_image_string=gif_bytes(row, self.frame_rate),
      )
      summary = Summary(value=[Summary.Value(tag=name, image=image)])
      self._writer.file_writer.add_summary(summary, step)

  def flush(self) -> None:
    """Flushes everything to disk."""
    self._file.flush()
    self._writer.flush()

  def close(self) -> None:
    """Flushes and closes."""
    self._bar.close()
    self._file.close()
    self._writer.close()
