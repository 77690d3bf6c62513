"""Rotary position embedding over several axes.

A head's k/2 frequencies are those of ordinary RoPE; each rotates by the position on one axis. With
equal positions on all axes it is ordinary RoPE.

Source: VIDEOAR section 3.3.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def frequency_axes(
  head_dim: int, fractions: Sequence[float], *, is_interleaved: bool
) -> Int[np.ndarray, "p"]:
  """Returns the axis of each of a head's k/2 frequencies, highest frequency first.

  Args:
    head_dim: `k`, even.
    fractions: share of the frequencies for each axis; the last axis gets the remainder.
    is_interleaved: assign frequencies to axes in turn, so that each axis has high and low ones.
      Else each axis has a contiguous section, and the last axis has low frequencies only, which
      barely distinguish neighbouring cells of a small grid.
  """
  pairs = head_dim // 2
  counts = []
  for fraction in fractions[:-1]:
    counts.append(min(round(pairs * fraction / sum(fractions)), pairs - sum(counts)))
  counts.append(pairs - sum(counts))
  axes = np.repeat(np.arange(len(counts)), counts)
  if is_interleaved:
    turns = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    axes = axes[np.argsort(turns, kind="stable")]
  return axes


def rope_angles(
  positions: Float[Array | np.ndarray, "*b a"] | Int[Array | np.ndarray, "*b a"],
  head_dim: int,
  *,
  base: float,
  fractions: Sequence[float],
  is_interleaved: bool = False,
) -> Float[Array, "*b p"]:
  """Returns the angle of each frequency pair.

  Args:
    positions: position on each axis.
    head_dim: `k`, even.
    base: base of the geometric series of wavelengths.
    fractions: see `frequency_axes`.
    is_interleaved: see `frequency_axes`.
  """
  pairs = head_dim // 2
  frequencies = base ** (-np.arange(pairs, dtype=np.float32) / pairs)
  axis = frequency_axes(head_dim, fractions, is_interleaved=is_interleaved)
  return jnp.asarray(positions, jnp.float32)[..., axis] * frequencies


def rotate(x: Float[Array, "b l n k"], angles: Float[Array, "*b l p"]) -> Float[Array, "b l n k"]:
  """Rotates the pairs (first half, second half) of each head by their angles."""
  cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
  return rotated.astype(x.dtype)
