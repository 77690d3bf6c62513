"""Codes clips in tiles of frames, as NOVA's public code does. Source: NOVA section 13."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def in_tiles(
  code: Callable[[Array], Array], x: Float[Array, "b t h w c"], size: int | None
) -> Float[Array, "b u y x o"]:
  """Codes tiles of frames that overlap by one, one after the other.

  The first frame of every tile's result but the first one's is left out. As in the public code,
  frames after the last complete tile are dropped, unless there is only one tile.

  Args:
    code: codes a tile.
    x: clips.
    size: frames of a tile; None for a single one.
  """
  if size is None or x.shape[1] <= size:
    return code(x)
  starts = jnp.arange(0, x.shape[1] - size + 1, size - 1)
  tiles = jax.lax.map(
    lambda start: code(jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)), starts
  )
  later = jnp.moveaxis(tiles[1:, :, 1:], 0, 1)
  return jnp.concatenate([tiles[0], later.reshape(len(x), -1, *tiles.shape[3:])], axis=1)


def tile_ends(num_frames: int, size: int) -> list[int]:
  """Returns where each tile ends; the last one is complete, unless it is the only one."""
  if num_frames <= size:
    return [num_frames]
  return list(range(size, num_frames + 1, size - 1))
