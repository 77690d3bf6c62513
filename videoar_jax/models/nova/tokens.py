"""Patches of latents as tokens, and embeddings of places, times and scalars.

Source: NOVA sections 5 to 7.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from videoar_jax.nn import layers

NUM_FREQUENCIES = 128  # Of the sines that embed a time, a motion or a noise level.


def patchify(latents: Float[Array, "*b h w c"], size: int) -> Float[Array, "*b l p"]:
  """Returns tokens in row-major order, each a patch of cells: (row, column, channel).

  Args:
    latents: of frames.
    size: side of a patch, in cells.
  """
  *_, h, w, _ = latents.shape
  tokens = rearrange(latents, "... (h p) (w q) c -> ... h w (p q c)", p=size, q=size)
  return tokens.reshape(*latents.shape[:-3], (h // size) * (w // size), -1)


def unpatchify(
  tokens: Float[Array, "*b l p"], grid: tuple[int, int], size: int
) -> Float[Array, "*b h w c"]:
  """Undoes `patchify`.

  Args:
    tokens: of frames.
    grid: tokens per column and per row.
    size: side of a patch, in cells.
  """
  tokens = tokens.reshape(*tokens.shape[:-2], *grid, -1)
  return rearrange(tokens, "... h w (p q c) -> ... (h p) (w q) c", p=size, q=size)


def waves(values: Float[Array | np.ndarray, "*b"]) -> tuple[Array, Array]:
  """Returns sines and cosines of scalars at `NUM_FREQUENCIES` frequencies, 1 down to 1/10000."""
  frequencies = 10000.0 ** (-np.arange(NUM_FREQUENCIES, dtype=np.float32) / NUM_FREQUENCIES)
  angles = jnp.asarray(values, jnp.float32)[..., None] * frequencies
  return jnp.sin(angles), jnp.cos(angles)


def places(grid: tuple[int, int], width: int, base: float = 10_000.0) -> Float[np.ndarray, "l m"]:
  """Returns the embedding of each place of a grid: a quarter each of sines and cosines of columns,
  then of rows.

  Args:
    grid: tokens per column and per row.
    width: `m`, a multiple of 4.
    base: the lowest frequency is about 1 radian in `base` tokens.
  """
  frequencies = base ** (-np.arange(width // 4) / (width // 4))
  rows, columns = np.divmod(np.arange(math.prod(grid)), grid[1])
  angles = [place[:, None] * frequencies for place in (columns, rows)]
  parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
  return np.concatenate(parts, axis=1).astype(np.float32)


def rotary_angles(
  positions: Float[Array, "l 3"], head_dim: int, base: float = 10_000.0
) -> Float[Array, "l p"]:
  """Returns the angle of each pair of a head, for the variant with rotary positions.

  Args:
    positions: (time, row, column); an eighth of a head is for time, the rest for the others.
    head_dim: `k`.
    base: see `places`.
  """
  time = head_dim // 8
  sizes = (time, (head_dim - time) // 2, (head_dim - time) // 2)
  parts = []
  for position, size in zip(positions.T, sizes, strict=True):
    frequencies = base ** (-np.arange(0, size, 2) / size)
    parts.append(position[:, None] * frequencies.astype(np.float32))
  return jnp.concatenate(parts, axis=1)


class WaveMLP(nnx.Module):
  """Embeds scalars: an MLP of their sines and cosines."""

  def __init__(self, rngs: nnx.Rngs, width: int, *, is_cosine_first: bool = False):
    self.into = layers.Linear(rngs, 2 * NUM_FREQUENCIES, width, (None, "embed"), use_bias=True)
    self.out = layers.Linear(rngs, width, width, ("embed", None), use_bias=True)
    self.is_cosine_first = is_cosine_first

  def __call__(self, values: Float[Array | np.ndarray, "*b"]) -> Float[Array, "*b m"]:
    sines, cosines = waves(values)
    parts = (cosines, sines) if self.is_cosine_first else (sines, cosines)
    return self.out(jax.nn.silu(self.into(jnp.concatenate(parts, -1))))
