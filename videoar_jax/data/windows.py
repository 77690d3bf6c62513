"""Windows: parts of a clip's frames, so that a network first learns on small pictures."""

import dataclasses

import numpy as np
from jaxtyping import UInt8


@dataclasses.dataclass(frozen=True)
class Windows:
  """Cuts a window out of each clip, the same one of all its frames.

  Attributes:
    size: (height, width) of the window in pixels, at most those of the clip.
    num_candidates: windows to draw for each clip; the one with the most contrast is taken.
    seed: of the draws.
  """

  size: tuple[int, int]
  num_candidates: int = 1
  seed: int = 0

  def cut(self, video: UInt8[np.ndarray, "f H W 3"], index: int) -> UInt8[np.ndarray, "f h w 3"]:
    """Returns the window of a clip; `index` is the clip's number, which decides the draw."""
    height, width = self.size
    entropy = np.random.SeedSequence((self.seed, index))
    rng = np.random.Generator(np.random.Philox(entropy))
    room = (video.shape[1] - height + 1, video.shape[2] - width + 1)
    corners = rng.integers(room, size=(self.num_candidates, 2))
    windows = [video[:, y : y + height, x : x + width] for y, x in corners]
    if len(windows) == 1:
      return windows[0]
    return max(windows, key=lambda window: window.std((0, 1, 2)).sum())
