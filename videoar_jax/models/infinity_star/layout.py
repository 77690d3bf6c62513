"""The sequence of a clip: its scales, then its prompt. Each of them is a document.

A scale sees itself, the prompt, and the largest scale of the pyramid before its own: nothing of the
smaller scales, whose sum is its input. The prompt sees itself.

Rotary positions are (scale id, frame, row, column). A prompt's token has its number for an id. A
repetition of a scale has an id of its own: all repetitions are counted, from `text_length` on, also
those that training leaves out. Rows and columns are those of the largest scale.

Source: INFINITY sections S1, S4 and S6.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from videoar_jax.nn.documents import DocumentRule
from videoar_jax.tokenizers.star.schedules import Scale, Schedule


@dataclasses.dataclass(frozen=True)
class Layout:
  """The static sequence of a clip.

  Attributes:
    text_length: `P`, the padded length of a prompt.
    schedule: all scales of the clip.
    kept: numbers of the scales in the sequence; None for all.
  Raises:
    ValueError: the largest scale of an earlier pyramid is left out, but a later one sees it.
  """

  text_length: int
  schedule: Schedule
  kept: tuple[int, ...] | None = None

  def __post_init__(self):
    if self.kept is None:
      object.__setattr__(self, "kept", tuple(range(len(self.schedule))))
    for s, context in zip(self.kept, self.contexts, strict=True):
      if context is not None and context not in self.kept:
        raise ValueError(f"kept={self.kept}: scale {s} sees scale {context}, which is left out")

  @property
  def scales(self) -> tuple[Scale, ...]:
    """The scales in the sequence."""
    return tuple(self.schedule[s] for s in self.kept)

  @functools.cached_property
  def contexts(self) -> tuple[int | None, ...]:
    """Number of the scale that each scale in the sequence sees besides itself, or None."""
    ends = [s for s, scale in enumerate(self.schedule) if scale.is_last]
    pyramids = (self.schedule[s].pyramid for s in self.kept)
    return tuple(ends[pyramid - 1] if pyramid else None for pyramid in pyramids)

  @property
  def grid(self) -> tuple[int, int]:
    """(H, W) of the latents."""
    return self.schedule[-1].grid

  @property
  def num_tokens(self) -> int:
    """`n`, tokens of the scales."""
    return sum(scale.num_tokens for scale in self.scales)

  @property
  def length(self) -> int:
    """`l`, tokens of the sequence."""
    return self.num_tokens + self.text_length

  @functools.cached_property
  def slices(self) -> tuple[slice, ...]:
    """The tokens of each scale."""
    ends = itertools.accumulate((scale.num_tokens for scale in self.scales), initial=0)
    return tuple(itertools.starmap(slice, itertools.pairwise(ends)))

  @functools.cached_property
  def rule(self) -> DocumentRule:
    """Which documents see which; the prompt is the last one."""
    text = len(self.kept)
    seen = [
      (s, text) if context is None else (s, text, self.kept.index(context))
      for s, context in enumerate(self.contexts)
    ]
    sizes = (*(scale.num_tokens for scale in self.scales), self.text_length)
    return DocumentRule(sizes, (*seen, (text,)))

  @functools.cached_property
  def first_ids(self) -> tuple[int, ...]:
    """Id of the first repetition of each scale."""
    counts = [scale.repetitions for scale in self.schedule]
    ids = list(itertools.accumulate(counts, initial=self.text_length))
    return tuple(ids[s] for s in self.kept)

  @functools.cached_property
  def positions(self) -> Float[np.ndarray, "l 4"]:
    """Rotary positions of all tokens, of each scale's first repetition."""
    parts = [
      positions(scale, self.grid, first)
      for scale, first in zip(self.scales, self.first_ids, strict=True)
    ]
    text = np.zeros((self.text_length, 4), np.float32)
    text[:, 0] = np.arange(self.text_length)
    return np.concatenate([*parts, text])

  @functools.cached_property
  def scale_of_token(self) -> Int[np.ndarray, "n"]:
    """Which of the scales in the sequence each token is of."""
    return np.repeat(np.arange(len(self.kept)), [scale.num_tokens for scale in self.scales])

  def runs(self, is_detail: bool) -> tuple[slice, ...]:
    """Returns the tokens of all detail, or of all semantic scales; adjacent ones together."""
    runs = []
    for kind, group in itertools.groupby(
      zip(self.scales, self.slices, strict=True), key=lambda pair: pair[0].is_detail
    ):
      tokens = [part for _, part in group]
      if kind == is_detail:
        runs.append(slice(tokens[0].start, tokens[-1].stop))
    return tuple(runs)

  def weights(self, reweight: float) -> Float[np.ndarray, "n"]:
    """Returns the weight of each token in the loss, not normalised.

    A scale of n tokens has the weight n (N / n)^(1 / (1 + reweight)), at most 40 n, for its mean
    loss, where N is the size of the clip's last scale, kept or not.

    Args:
      reweight: the larger, the less the tokens of small scales count; 0 for equal scales' tokens.
    """
    largest = self.schedule[-1].num_tokens
    sizes = np.array([scale.num_tokens for scale in self.scales], np.float64)
    factors = np.ones_like(sizes)
    if reweight > 0:
      factors = np.minimum(_MAX_FACTOR, (largest / sizes) ** (1 / (1 + reweight)))
    return factors[self.scale_of_token].astype(np.float32)


_MAX_FACTOR = 40.0


def positions(scale: Scale, size: tuple[int, int], scale_id: int) -> Float[np.ndarray, "n 4"]:
  """Returns the rotary positions of a scale's tokens.

  Args:
    scale: the scale.
    size: (H, W) of the latents.
    scale_id: of the repetition.
  """
  return grid_positions(range(scale.start, scale.stop), scale.grid, size, scale_id)


def grid_positions(
  frames: Sequence[int], grid: tuple[int, int], size: tuple[int, int], scale_id: int
) -> Float[np.ndarray, "n 4"]:
  """Returns the rotary positions of the cells of frames.

  Args:
    frames: their numbers.
    grid: (h, w) of their cells.
    size: (H, W) of the latents.
    scale_id: of all.
  """
  # In single precision: double precision rounds some rows and columns to others.
  rows, columns = (
    np.rint(np.arange(num, dtype=np.float32) * np.float32(whole / num))
    for num, whole in zip(grid, size, strict=True)
  )
  axes = (np.float32([scale_id]), np.asarray(frames, np.float32), rows, columns)
  return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 4)
