"""What encodes the captions of a run's clips, for the stage that reads them."""

import functools
from typing import Any

import numpy as np

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.models.base import CaptionLoss
from videoar_jax.text.completed import CompletedText
from videoar_jax.text.pretrained import PretrainedText


class NoText:
  """Stands for a text encoder where nothing reads captions."""

  @staticmethod
  def encode(text: str) -> np.ndarray:
    return np.zeros(1, np.float32)


def stage_encoder(
  run: RunConfig, stage: StageConfig, data: DataConfig, num_frames: int | None = None
) -> Any:
  """Returns what encodes the captions of a stage's clips, with `encode`.

  A tokenizer reads none: the weights of a pretrained encoder stay on disk.

  Args:
    run: the run.
    stage: the stage.
    data: of the clips.
    num_frames: of a clip; None for those of `data`.
  Raises:
    ValueError: captions name the duration of clips, which is not known before they are read.
  """
  encoder = run.text.encoder
  if stage.kind != "generator":
    return NoText if isinstance(encoder, PretrainedText) else encoder
  if not isinstance(stage.loss, CaptionLoss):
    return encoder
  seconds = ((data.num_frames if num_frames is None else num_frames) - 1) / data.frame_rate
  complete = functools.partial(stage.loss.complete_caption, seconds=seconds)
  if data.frame_rates and complete("", seconds=1) != complete("", seconds=2):
    raise ValueError(
      f"data.frame_rates={data.frame_rates}: captions name the duration of clips, which then "
      f"differs; leave it unset, or set stage.{stage.name}.loss.caption_prefix to ''"
    )
  return CompletedText(encoder, complete)


def source_encoder(run: RunConfig, data: DataConfig) -> Any:
  """Returns what encodes the captions of a source, for the generator's stage that reads it.

  Args:
    run: the run.
    data: the source; if no stage of the generator reads it, its last one sets the captions.
  Raises:
    ValueError: as `stage_encoder`.
  """
  stages = run.generator_stages
  if not stages:
    return run.text.encoder
  readers = (stage for stage in stages if data in (stage.data, *stage.source_data))
  return stage_encoder(run, next(readers, stages[-1]), data)
