"""The sequence's layout and attention mask, against a brute-force reference."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from sequences import frame_ids, scale_ids
from tiny_networks import (
  LAYOUT,
  LAYOUTS,
  NAMES,
  TEXT,
)

from videoar_jax.nn.mask import AttentionMask


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_layout_by_brute_force(layout):
  has_final = layout.context == "full_frame"
  tokens = [(-1, -1, i, i, i) for i in range(5)]
  for t in range(3):
    grids = list(enumerate(layout.schedule))
    if has_final and t < 2:
      grids.append((3, (3, 4)))
    for s, (h, w) in grids:
      # In the latent's grid, a cell lies at the mean of the cells that it covers.
      is_latent = layout.rope_grid == "latent"
      rows = [(3 * y + 3 * (y + 1) - h) / (2 * h) if is_latent else y for y in range(h)]
      columns = [(4 * x + 4 * (x + 1) - w) / (2 * w) if is_latent else x for x in range(w)]
      tokens += [(t, s, 5 + t, 5 + y, 5 + x) for y in rows for x in columns]
  assert len(tokens) == layout.length == 5 + 3 * 17 + has_final * 2 * 12
  ids = np.array(tokens)
  np.testing.assert_array_equal(ids[:, 0], frame_ids(layout))
  np.testing.assert_array_equal(ids[:, 1], scale_ids(layout))
  np.testing.assert_allclose(layout.positions, ids[:, 2:], atol=1e-6)

  def sees(query, key, q, k):
    (tq, sq, *_), (tk, sk, *_) = query, key
    if tq == -1:
      return k <= q
    if tk == -1:
      return True
    if tk < tq:
      return sk == 3 or not has_final
    return tk == tq and (sk == 3 if sq == 3 else sk <= sq)

  expected = [[sees(a, b, q, k) for k, b in enumerate(tokens)] for q, a in enumerate(tokens)]
  np.testing.assert_array_equal(layout.visible(), expected)
  for s in range(3):
    frame = scale_ids(layout)[5:22]
    np.testing.assert_array_equal(np.flatnonzero(frame == s), np.r_[layout.scale_slice(s)])


def test_full_text_attention():
  layout = dataclasses.replace(LAYOUT, text_attention="full")
  assert layout.visible()[:5, :5].all() and not layout.visible()[:5, 5:].any()


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_mask_hides_padding_and_dropped_frames(layout):
  text_mask = TEXT != 0
  keep = jnp.ones((2, 3, 3), bool).at[0, 2, 0].set(False)
  mask = np.asarray(AttentionMask(layout.mask(), text_mask, keep).mask())
  # What later frames see of a frame: all of it, or its complete latent.
  frames = np.where(scale_ids(layout) == 3, frame_ids(layout), -2)
  frames = np.where(frame_ids(layout) == 2, 2, frames) if layout.final_size else frame_ids(layout)
  frames = np.where(frame_ids(layout) == -1, -1, frames)
  assert not mask[1, 5:, 2:5].any() and mask[1, 5:, :2].all()
  assert not mask[0][np.ix_(frames == 2, frames == 0)].any()
  assert mask[0][np.ix_(frames == 2, frames == 1)].all()
  assert mask[1][np.ix_(frames == 2, frames == 0)].all()
  assert mask[0][np.ix_(frames == 2, frames == -1)].all()
  assert mask.any(-1).all()
