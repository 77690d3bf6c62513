"""Rotary position embedding over several axes.

A head's k/2 frequencies are those of ordinary RoPE; each section of them turns by its own axis'
position. Equal positions on all axes are therefore ordinary RoPE.

Source: VIDEOAR section 3.3.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def split_sections(head_width: int, fractions: Sequence[float]) -> tuple[int, ...]:
  """Splits a head's k/2 frequency pairs among the axes; the last one takes what is left."""
  pairs = head_width // 2
  sections = [round(pairs * fraction / sum(fractions)) for fraction in fractions[:-1]]
  return (*sections, pairs - sum(sections))


def rope_angles(
  positions: Int[Array, "*b a"],
  head_width: int,
  *,
  base: float,
  fractions: Sequence[float],
) -> Float[Array, "*b p"]:
  """Returns the angle of each frequency pair.

  Args:
    positions: position on each axis.
    head_width: `k`, even.
    base: wavelength ratio.
    fractions: share of the frequencies of each axis.
  """
  pairs = head_width // 2
  frequencies = base ** (-np.arange(pairs, dtype=np.float32) / pairs)
  axis = np.repeat(np.arange(len(fractions)), split_sections(head_width, fractions))
  return jnp.asarray(positions, jnp.float32)[..., axis] * frequencies


def rotate(x: Float[Array, "b l n k"], angles: Float[Array, "*b l p"]) -> Float[Array, "b l n k"]:
  """Rotates the halves of each head by their angles."""
  cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
  return rotated.astype(x.dtype)
