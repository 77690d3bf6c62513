"""The sequence: text, then frame after frame, scale after scale, each scale row-major.

`[text (P) | t=0: s=0..K-1 | t=1: s=0..K-1 | ...]`. The layout is static: numpy arrays and Python
integers. It alone defines the attention mask.

In the paper, `context="scales"`, later frames see the scales of earlier ones. But the input of a
token at scale s is the sum of the scales before it, so they see almost nothing of a frame's last
scale. With `context="full_frame"`, ours, a block with its complete latent follows each frame but
the last, and later frames see this block instead of the scales.

In the paper, only a frame's first scale takes the previous frame as input, resized to that scale,
often one cell. With `prev_frame_input="all_scales"`, ours, every token's input also contains the
previous frame at the same place, so attention need not find what hardly moved.

Rotary positions count cells in each scale's own grid. With `rope_grid="latent"`, as in Infinity's
code, a cell's position is its centre in the latent grid, so the distance across a frame is the same
at every scale.

A token is one cell of its scale's grid or, with a patch size of 2, a square of 2x2 cells.

Source: VIDEOAR sections 3.1 to 3.3.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Int

from videoar_jax.nn.mask import BlockCausalMask
from videoar_jax.tokenizers.bsq.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Layout:
  """Static sequence layout of text, frames and scales.

  Attributes:
    text_length: `P`, the padded length of the text.
    num_frames: `t`, latent frames.
    schedule: grids (h, w) of the scales.
    text_attention: "causal", or "full" for bidirectional attention within the text.
    context: tokens of earlier frames that are seen: "scales", or "full_frame", the complete latent.
    prev_frame_input: inputs that include the previous frame: "first_scale" or "all_scales".
    rope_grid: grid in which positions are counted: "scale", each scale's own, or "latent".
    patch_sizes: side in cells of the tokens of each scale; a single one serves all scales.
  """

  text_length: int
  num_frames: int
  schedule: Schedule
  text_attention: str = "causal"
  context: str = "scales"
  prev_frame_input: str = "first_scale"
  rope_grid: str = "scale"
  patch_sizes: tuple[int, ...] = (1,)

  def __post_init__(self):
    object.__setattr__(self, "schedule", tuple(tuple(grid) for grid in self.schedule))
    sizes = tuple(self.patch_sizes)
    sizes = sizes * len(self.schedule) if len(sizes) == 1 else sizes
    object.__setattr__(self, "patch_sizes", sizes)
    if len(sizes) != len(self.schedule):
      raise ValueError(
        f"generator.patch_sizes={sizes} are {len(sizes)}, but the schedule has "
        f"{len(self.schedule)} scales; set one for each, or a single one for all"
      )
    for size, (h, w) in zip(sizes, self.schedule, strict=True):
      if h % size or w % size:
        raise ValueError(
          f"generator.patch_sizes={sizes}: {size} does not divide the scale {h}x{w}; set other "
          "patch sizes or another tokenizer.schedule"
        )
    if self.text_attention not in ("causal", "full"):
      raise ValueError(f"text.attention={self.text_attention!r} must be 'causal' or 'full'")
    if self.context not in ("scales", "full_frame"):
      raise ValueError(f"generator.context={self.context!r} must be 'scales' or 'full_frame'")
    if self.prev_frame_input not in ("first_scale", "all_scales"):
      raise ValueError(
        f"generator.prev_frame_input={self.prev_frame_input!r} must be 'first_scale' or "
        "'all_scales'"
      )
    if self.rope_grid not in ("scale", "latent"):
      raise ValueError(f"generator.rope_grid={self.rope_grid!r} must be 'scale' or 'latent'")

  @property
  def num_scales(self) -> int:
    """`K`."""
    return len(self.schedule)

  @property
  def max_patch_size(self) -> int:
    """The largest patch size."""
    return max(self.patch_sizes)

  @property
  def token_grids(self) -> Schedule:
    """Grids (h, w) of the scales' tokens."""
    pairs = zip(self.schedule, self.patch_sizes, strict=True)
    return tuple((h // p, w // p) for (h, w), p in pairs)

  @property
  def scale_sizes(self) -> tuple[int, ...]:
    """Tokens of each scale."""
    return tuple(h * w for h, w in self.token_grids)

  @property
  def cell_sizes(self) -> tuple[int, ...]:
    """Cells of each scale."""
    return tuple(h * w for h, w in self.schedule)

  @property
  def num_cells(self) -> int:
    """Cells of a frame, over all scales: `q`."""
    return sum(self.cell_sizes)

  def feature_width(self, num_bits: int) -> int:
    """Returns the width of a token's input: its cells' codes, perhaps with the previous frame."""
    inputs = 2 if self.prev_frame_input == "all_scales" else 1
    return inputs * self.logit_width(num_bits)

  def logit_width(self, num_bits: int) -> int:
    """Returns the number of bits of the largest tokens."""
    return self.max_patch_size**2 * num_bits

  @property
  def frame_size(self) -> int:
    """Predicted tokens of a frame, over all scales: `n`."""
    return sum(self.scale_sizes)

  @property
  def final_size(self) -> int:
    """Tokens of the complete latent that follows a frame; 0 if there is none."""
    return self.scale_sizes[-1] if self.context == "full_frame" else 0

  @property
  def num_steps(self) -> int:
    """Calls of the transformer that decode a clip: one per block of tokens, without the text."""
    num_latents = self.num_frames - 1 if self.final_size else 0
    return self.num_frames * self.num_scales + num_latents

  @property
  def frame_stride(self) -> int:
    """Tokens from the start of a frame to the start of the next."""
    return self.frame_size + self.final_size

  @property
  def length(self) -> int:
    """`l`, tokens of the whole sequence."""
    return self.text_length + self.num_frames * self.frame_stride - self.final_size

  @property
  def grid(self) -> tuple[int, int]:
    """The latent grid (h, w), which is the last scale."""
    return self.schedule[-1]

  def scale_slice(self, scale: int) -> slice:
    """Returns the slice of a scale's tokens within their frame."""
    start = sum(self.scale_sizes[:scale])
    return slice(start, start + self.scale_sizes[scale])

  def cell_slice(self, scale: int) -> slice:
    """Returns the slice of a scale's cells within their frame."""
    start = sum(self.cell_sizes[:scale])
    return slice(start, start + self.cell_sizes[scale])

  @functools.cached_property
  def frame_scale_ids(self) -> Int[np.ndarray, "n_final"]:
    """Scale of each token of a frame; the complete latent counts as one more scale."""
    final = np.full(self.final_size, self.num_scales)
    return np.concatenate([np.repeat(np.arange(self.num_scales), self.scale_sizes), final])

  @functools.cached_property
  def frame_positions(self) -> Float[np.ndarray, "n_final 3"]:
    """Offsets (0, y, x) of a frame's tokens, in cells of their own or of the latent's grid."""
    grids = self.token_grids
    grids = (*grids, grids[-1]) if self.final_size else grids
    scales = []
    for h, w in grids:
      cells = np.stack(np.mgrid[:1, :h, :w], -1).reshape(-1, 3).astype(np.float32)
      if self.rope_grid == "latent":
        size = np.array([1, self.grid[0] / h, self.grid[1] / w], np.float32)
        cells = (cells + 0.5) * size - 0.5
      scales.append(cells)
    return np.concatenate(scales)

  @functools.cached_property
  def positions(self) -> Float[np.ndarray, "l 3"]:
    """Rotary positions (time, height, width): text (i, i, i), video (P + t, P + y, P + x)."""
    text = np.repeat(np.arange(self.text_length)[:, None], 3, axis=1)
    time = np.arange(self.num_frames)[:, None, None] * np.array([1, 0, 0])
    video = self.text_length + time + self.frame_positions
    return np.concatenate([text, video.reshape(-1, 3)])[: self.length].astype(np.float32)

  def mask(self, window: int | None = None) -> BlockCausalMask:
    """Returns the attention mask that all samples share.

    A video token sees the text, earlier frames, and scales up to its own in its own frame. A
    frame's complete latent sees the text, those of earlier frames, and itself.

    Args:
      window: earlier frames that a frame sees; None for all.
    """
    return BlockCausalMask(
      self.text_length,
      self.text_attention == "causal",
      self.num_frames,
      self.scale_sizes,
      self.final_size,
      window,
    )

  def visible(self, queries: slice = slice(None)) -> Bool[np.ndarray, "q l"]:
    """Returns `mask` as a dense array: which tokens each query sees."""
    return self.mask().visible(queries)
