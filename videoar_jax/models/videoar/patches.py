"""Tokens of several latent cells, see `nn.patches`, of a frame with several scales.

Tokens of scales with smaller patches are filled up with zeros, so that all have one width.

Source: Infinity's 8B model, which takes 2x2 cells of a tokenizer of 8 pixels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from videoar_jax.models.videoar.layout import Layout
from videoar_jax.nn.patches import join_cells, split_tokens


def to_tokens(
  cells: Float[Array, "*b q c"], layout: Layout, scale: int, width: int
) -> Float[Array, "*b n i"]:
  """Joins the cells of one scale to tokens.

  Args:
    cells: row-major.
    layout: the sequence.
    scale: number of the scale.
    width: of a token; at least `p * p * c`.
  """
  cells = join_cells(cells, layout.token_grids[scale], layout.patch_sizes[scale])
  missing = width - cells.shape[-1]
  return jnp.pad(cells, [(0, 0)] * (cells.ndim - 1) + [(0, missing)]) if missing else cells


def to_cells(
  tokens: Float[Array, "*b n i"], layout: Layout, scale: int, channels: int
) -> Float[Array, "*b q c"]:
  """Splits the tokens of one scale to row-major cells of so many channels."""
  p = layout.patch_sizes[scale]
  return split_tokens(tokens[..., : channels * p * p], layout.token_grids[scale], p)


def frame_to_tokens(
  cells: Float[Array, "*b q c"], layout: Layout, width: int
) -> Float[Array, "*b n i"]:
  """Joins the cells of all scales of a frame to tokens."""
  if layout.max_patch_size == 1:
    return cells
  scales = range(layout.num_scales)
  parts = [to_tokens(cells[..., layout.cell_slice(s), :], layout, s, width) for s in scales]
  return jnp.concatenate(parts, axis=-2)


def frame_to_cells(
  tokens: Float[Array, "*b n i"], layout: Layout, channels: int
) -> Float[Array, "*b q c"]:
  """Splits the tokens of all scales of a frame to cells."""
  if layout.max_patch_size == 1:
    return tokens
  scales = range(layout.num_scales)
  parts = [to_cells(tokens[..., layout.scale_slice(s), :], layout, s, channels) for s in scales]
  return jnp.concatenate(parts, axis=-2)
