"""Rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np

from videoar_jax.nn.rope import frequency_axes, rope_angles, rotate


def test_rope_depends_on_differences_per_axis():
  x, y = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
  settings = {"base": 10000.0, "fractions": (0.25, 0.375, 0.375)}

  def score(p, q):

    def turn(z, position):
      return rotate(z, rope_angles(np.array([position]), 16, **settings))

    return float(jnp.sum(turn(x, p) * turn(y, q)))

  assert abs(score((3, 4, 5), (1, 1, 1)) - score((5, 7, 9), (3, 4, 5))) < 1e-4
  for axis in range(3):
    moved = [1, 1, 1]
    moved[axis] += 1
    assert abs(score((3, 4, 5), (1, 1, 1)) - score((3, 4, 5), tuple(moved))) > 1e-4
  # Equal positions are ordinary RoPE: frequency i turns by base^(-i / pairs).
  angles = rope_angles(np.array([[7, 7, 7]]), 16, **settings)[0]
  np.testing.assert_allclose(angles, 7 * 10000.0 ** (-np.arange(8) / 8), rtol=1e-6)


def test_interleaved_rope_gives_each_axis_high_and_low_frequencies():
  fractions = (0.25, 0.375, 0.375)
  sections = frequency_axes(64, fractions, is_interleaved=False)
  np.testing.assert_array_equal(sections, np.repeat([0, 1, 2], [8, 12, 12]))
  dealt = frequency_axes(64, fractions, is_interleaved=True)
  np.testing.assert_array_equal(np.bincount(dealt), [8, 12, 12])
  for axis in range(3):
    places = np.flatnonzero(dealt == axis)
    assert places[0] <= 2 and places[-1] >= 29 and np.diff(places).max() <= 5
  # Equal positions remain ordinary RoPE, whichever axis a frequency belongs to.
  settings = {"base": 100.0, "fractions": fractions}
  plain = rope_angles(np.array([[3, 3, 3]]), 64, **settings)
  np.testing.assert_array_equal(
    rope_angles(np.array([[3, 3, 3]]), 64, **settings, is_interleaved=True), plain
  )
