"""Tokens of several cells: each square of `p x p` cells is one token.

A token's values are ordered by channel, then row, then column of its square.

Source: Infinity's 8B model, which takes 2x2 cells of a tokenizer of 8 pixels.
"""

from einops import rearrange
from jaxtyping import Array, Shaped


def join_cells(cells: Shaped[Array, "*b q c"], grid: tuple[int, int], size: int):
  """Joins cells to tokens `[*b, n, c p p]`.

  Args:
    cells: row-major.
    grid: (h, w) of the tokens.
    size: `p`, side of a token in cells.
  """
  if size == 1:
    return cells
  sides = {"h": grid[0], "w": grid[1], "p": size, "q": size}
  return rearrange(cells, "... (h p w q) c -> ... (h w) (c p q)", **sides)


def split_tokens(tokens: Shaped[Array, "*b n i"], grid: tuple[int, int], size: int):
  """Splits tokens to row-major cells `[*b, q, c]`; undoes `join_cells`."""
  if size == 1:
    return tokens
  sides = {"h": grid[0], "w": grid[1], "p": size, "q": size}
  return rearrange(tokens, "... (h w) (c p q) -> ... (h p w q) c", **sides)
