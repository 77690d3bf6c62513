"""The interactive mode: prompt after prompt, each with a clip that goes on from the one before.

A clip of `clip_length` latent frames is one pyramid, without one for a first frame. All of its
scales see the prompt and two documents of earlier frames, each of which sees itself alone:

  semantic   the clip before, all frames, on the grid of the eighth scale
  detail     the very first frame of all, and the last two of the clip before, at full size

They are latents as they are, not quantized. Frames are counted from the first one of the clip
before, as 1; those of the new clip from 0, and so are the repetitions in rotary ids.

Source: INFINITY sections 6.6, S1 and S9.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from videoar_jax.models.infinity_star.config import InfinityStarConfig
from videoar_jax.models.infinity_star.layout import Layout, grid_positions
from videoar_jax.nn.resize import area_resize

SEMANTIC_SCALE = 7
NUM_DETAILED = 2  # Last frames of the clip before.
# Rotary ids, after those of the prompt.
_SEMANTIC_ID, _DETAIL_ID = 800, 801


class Condition(NamedTuple):
  """Earlier frames as a document.

  Attributes:
    latents: as the network gets them.
    positions: rotary positions of their cells.
  """

  latents: Float[Array, "b t h w c"]
  positions: Float[np.ndarray, "n 4"]


def layout_of_clip(config: InfinityStarConfig, size: tuple[int, int]) -> Layout:
  """Returns the sequence of a clip that goes on from another one.

  Args:
    config: the network.
    size: (H, W) of the latents.
  Raises:
    ValueError: there are too few scales for the conditions.
  """
  pyramid = config.pyramid(size)
  if len(pyramid.grids) <= SEMANTIC_SCALE:
    raise ValueError(
      f"interactive mode needs at least {SEMANTIC_SCALE + 1} scales, for it sees the clip before "
      f"on the grid of that one; clips of {size[0]}x{size[1]} latent cells have "
      f"{len(pyramid.grids)}: set generator.schedule, or a larger resolution"
    )
  if config.clip_length < NUM_DETAILED:
    raise ValueError(
      f"interactive mode needs clips of at least {NUM_DETAILED} latent frames, but "
      f"generator.clip_length={config.clip_length}"
    )
  return Layout(config.text_length, pyramid.whole(config.clip_length))


def conditions_of(
  first: Float[Array, "b 1 H W c"], previous: Float[Array, "b t H W c"], layout: Layout
) -> tuple[Condition, Condition]:
  """Returns the semantic and the detail condition of a clip.

  Args:
    first: the very first latent frame.
    previous: the clip before.
    layout: of the clip.
  """
  num_frames, size = previous.shape[1], layout.grid
  grid, start = layout.scales[SEMANTIC_SCALE].grid, layout.text_length
  last = range(num_frames - NUM_DETAILED, num_frames)
  semantic = Condition(
    area_resize(previous, grid),
    grid_positions(range(1, num_frames + 1), grid, size, start + _SEMANTIC_ID),
  )
  detail = Condition(
    jnp.concatenate([first, previous[:, -NUM_DETAILED:]], axis=1),
    grid_positions([0, *(i + 1 for i in last)], size, size, start + _DETAIL_ID),
  )
  return semantic, detail


class Story:
  """Clips in a row, made one after the other; see `Model.interact`.

  Args:
    frames: of the first clip.
    latents: of the first clip: a frame, and `clip_length` more.
    generate: maps prompts, the number of frames so far, conditions' arguments (`first`, `previous`)
      and settings to the latents of the next clip.
    decode: maps latents to pixels.
    num_new: pixel frames of each later clip.

  Attributes:
    frames: of the first clip, uint8 `[b, f, H, W, 3]`.
  """

  def __init__(
    self,
    frames: UInt8[np.ndarray, "b f H W 3"],
    latents: Float[Array, "b t h w c"],
    generate: Callable[..., Float[Array, "b _t h w c"]],
    decode: Callable[..., np.ndarray],
    num_new: int,
  ):
    self.frames, self._first, self._previous = frames, latents[:, :1], latents[:, 1:]
    self._generate, self._decode, self._num_new = generate, decode, num_new
    self._num_frames = frames.shape[1]

  def extend(self, prompts: list[str], **settings: Any) -> UInt8[np.ndarray, "b f H W 3"]:
    """Generates the next clip; returns its frames alone.

    Args:
      prompts: one for each row.
      **settings: fields of `InfinityStarSampling`; defaults are in the run's config.
    Raises:
      ValueError: a prompt is too long, there are more or fewer of them, or a setting is wrong.
    """
    if len(prompts) != len(self.frames):
      raise ValueError(f"prompts: needs {len(self.frames)}, as for the first clip")
    new = self._generate(prompts, self._num_frames, self._first, self._previous, settings)
    # Decoded after the clip before, so that frames fit together.
    frames = self._decode([self._previous, new])[:, -self._num_new :]
    self._previous, self._num_frames = new, self._num_frames + self._num_new
    return frames
