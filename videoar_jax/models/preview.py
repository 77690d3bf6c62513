"""What clips look like while they are made."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from videoar_jax.models.base import Sampler


class Preview(NamedTuple):
  """Some frames of clips, as far as they have been made.

  Attributes:
    frames: their pixels.
    start: number of the first of them in its clip.
    num_done: scales that they consist of; later previews replace frames that lack some.
    num_scales: scales of a finished frame.
  """

  frames: UInt8[np.ndarray, "b f H W 3"]
  start: int
  num_done: int = 1
  num_scales: int = 1


@runtime_checkable
class Previewer(Protocol):
  """A model whose clips can be watched while they are made."""

  def preview(
    self,
    prompts: list[str],
    num_frames: int,
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    clips: UInt8[np.ndarray, "b u H W 3"] | None = None,
    overlap_frames: int = 1,
    **settings: Any,
  ) -> Iterator[Preview]:
    """Generates clips, see `preview`."""


def preview(
  model: Sampler,
  prompts: list[str],
  num_frames: int,
  seed: int = 0,
  *,
  image: UInt8[np.ndarray, "*b H W 3"] | None = None,
  clips: UInt8[np.ndarray, "b u H W 3"] | None = None,
  overlap_frames: int = 1,
  **settings: Any,
) -> Iterator[Preview]:
  """Generates clips as `Model.sample` does, or continues some as `Model.extend` does.

  Nothing is computed before the next preview is asked for. A model without a method `preview` shows
  frames as it streams them, or whole clips.

  Args:
    model: of any family.
    prompts: texts.
    num_frames: of the result.
    seed: random seed.
    image: the first frame, if any.
    clips: instead, clips to continue; their own frames are not among the previews.
    overlap_frames: how many last frames of clips that are continued each window starts from.
    **settings: fields of the family's `sampling`.
  Raises:
    ValueError: as `Model.sample` and `Model.extend`, at the latest with the first preview.
  """
  given: dict[str, Any] = {} if image is None else {"image": image}
  if isinstance(model, Previewer):
    if clips is not None:
      given = {"clips": clips, "overlap_frames": overlap_frames}
    return model.preview(prompts, num_frames, seed, **given, **settings)
  if clips is not None:
    return _extended(model, prompts, num_frames, seed, clips, overlap_frames, settings)
  return _streamed(model, prompts, num_frames, seed, given | settings)


def _extended(
  model: Any, prompts, num_frames, seed, clips, overlap_frames, settings
) -> Iterator[Preview]:
  if not hasattr(model, "extend"):
    raise ValueError("clips: this model makes images, which have no frames that follow")
  longer = model.extend(clips, prompts, num_frames, seed, overlap_frames=overlap_frames, **settings)
  yield Preview(longer[:, clips.shape[1] :], clips.shape[1])


def _streamed(model: Any, prompts, num_frames, seed, settings) -> Iterator[Preview]:
  if not hasattr(model, "stream"):
    yield Preview(model.sample(prompts, num_frames, seed, **settings), 0)
    return
  start = 0
  for frames in model.stream(prompts, num_frames, seed, **settings):
    yield Preview(frames, start)
    start += frames.shape[1]
