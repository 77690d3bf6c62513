"""The sequence: text, then frame after frame, scale after scale, each scale row-major.

`[text (P) | t=0: s=0..K-1 | t=1: s=0..K-1 | ...]`. The layout is static: numpy arrays and Python
integers, and the one place that knows who sees whom.

Source: VIDEOAR sections 3.1 to 3.3.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Int

from videoar_jax.tokenizer.schedules import Schedule

TEXT = -1  # Frame and scale of a text token.


@dataclasses.dataclass(frozen=True)
class Layout:
  """Static sequence layout of text, frames and scales.

  Attributes:
    text_length: `P`, the padded length of the text.
    num_frames: `t`, latent frames.
    schedule: grids (h, w) of the scales.
    text_attention: "causal", or "full" for text that sees all of itself.
  """

  text_length: int
  num_frames: int
  schedule: Schedule
  text_attention: str = "causal"

  def __post_init__(self):
    object.__setattr__(self, "schedule", tuple(tuple(grid) for grid in self.schedule))
    if self.text_attention not in ("causal", "full"):
      raise ValueError(
        f"generator.text_attention={self.text_attention!r} must be 'causal' or 'full'"
      )

  @property
  def num_scales(self) -> int:
    """`K`."""
    return len(self.schedule)

  @property
  def scale_sizes(self) -> tuple[int, ...]:
    """Tokens of each scale."""
    return tuple(h * w for h, w in self.schedule)

  @property
  def frame_size(self) -> int:
    """Tokens of a frame, all scales together."""
    return sum(self.scale_sizes)

  @property
  def length(self) -> int:
    """`l`, tokens of the whole sequence."""
    return self.text_length + self.num_frames * self.frame_size

  @property
  def grid(self) -> tuple[int, int]:
    """The latent grid (h, w), which is the last scale."""
    return self.schedule[-1]

  def scale_slice(self, scale: int) -> slice:
    """Returns where a scale's tokens lie within their frame."""
    start = sum(self.scale_sizes[:scale])
    return slice(start, start + self.scale_sizes[scale])

  @functools.cached_property
  def frame_ids(self) -> Int[np.ndarray, "l"]:
    """Frame of each token; `TEXT` for text."""
    video = np.repeat(np.arange(self.num_frames), self.frame_size)
    return np.concatenate([np.full(self.text_length, TEXT), video])

  @functools.cached_property
  def scale_ids(self) -> Int[np.ndarray, "l"]:
    """Scale of each token; `TEXT` for text."""
    frame = np.repeat(np.arange(self.num_scales), self.scale_sizes)
    return np.concatenate([np.full(self.text_length, TEXT), np.tile(frame, self.num_frames)])

  @functools.cached_property
  def frame_positions(self) -> Int[np.ndarray, "n 3"]:
    """Offsets (0, y, x) of a frame's tokens, each scale in its own grid."""
    grids = [np.stack(np.mgrid[:1, :h, :w], -1).reshape(-1, 3) for h, w in self.schedule]
    return np.concatenate(grids)

  @functools.cached_property
  def positions(self) -> Int[np.ndarray, "l 3"]:
    """Rotary positions (time, height, width): text (i, i, i), video (P + t, P + y, P + x)."""
    text = np.repeat(np.arange(self.text_length)[:, None], 3, axis=1)
    time = np.arange(self.num_frames)[:, None, None] * np.array([1, 0, 0])
    video = self.text_length + time + self.frame_positions
    return np.concatenate([text, video.reshape(-1, 3)])

  @functools.cached_property
  def last_visible(self) -> Int[np.ndarray, "l"]:
    """Last position each token may attend to: what it sees is a prefix of the sequence.

    A video token sees the text, every earlier frame, and scales up to its own in its own frame.
    """
    text = np.arange(self.text_length)
    if self.text_attention == "full":
      text = np.full(self.text_length, self.text_length - 1)
    ends = np.repeat(np.cumsum(self.scale_sizes), self.scale_sizes) - 1
    starts = self.text_length + np.arange(self.num_frames)[:, None] * self.frame_size
    return np.concatenate([text, (starts + ends).reshape(-1)])

  def visible(self, queries: slice = slice(None)) -> Bool[np.ndarray, "q l"]:
    """Returns which tokens each query may attend to, before masks that depend on the sample."""
    return np.arange(self.length)[None, :] <= self.last_visible[queries, None]
