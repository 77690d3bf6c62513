"""Tokens of several latent cells: their layout, and the network with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import GENERATOR, NULL, TEXT, make_model

from videoar_jax.models.request import sample_keys
from videoar_jax.models.videoar import corruption, patches
from videoar_jax.models.videoar.decode import decode
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.nn.resize import area_resize, linear_resize
from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes

LAYOUT = Layout(
  5, 3, ((1, 1), (2, 2), (4, 6)), patch_sizes=(1, 2, 2), prev_frame_input="all_scales"
)
FULL = dataclasses.replace(LAYOUT, context="full_frame", rope_grid="latent")
BITS = GENERATOR.num_bits


def test_order_within_a_token():
  """By channel, row and column, as torch's pixel_unshuffle orders Infinity's."""
  cells = np.arange(24 * 2).reshape(24, 2)
  tokens = np.asarray(patches.to_tokens(jnp.asarray(cells, jnp.float32), LAYOUT, 2, 10))
  assert tokens.shape == (6, 10) and (tokens[:, 8:] == 0).all()
  picture = cells.reshape(4, 6, 2)
  for n in range(6):
    y, x = 2 * (n // 3), 2 * (n % 3)
    for c in range(2):
      for dy in range(2):
        for dx in range(2):
          assert tokens[n, 4 * c + 2 * dy + dx] == picture[y + dy, x + dx, c]


def test_cells_and_tokens_of_a_frame_are_inverse():
  assert LAYOUT.scale_sizes == (1, 1, 6) and LAYOUT.cell_sizes == (1, 4, 24)
  cells = jax.random.normal(jax.random.key(0), (2, 3, LAYOUT.num_cells, BITS))
  tokens = patches.frame_to_tokens(cells, LAYOUT, LAYOUT.logit_width(BITS))
  assert tokens.shape == (2, 3, LAYOUT.frame_size, 4 * BITS)
  np.testing.assert_array_equal(patches.frame_to_cells(tokens, LAYOUT, BITS), cells)
  # A token of a single cell has the cell's values, then zeros.
  np.testing.assert_array_equal(tokens[:, :, 0, :BITS], cells[:, :, 0])
  assert (np.asarray(tokens[:, :, 0, BITS:]) == 0).all()


def test_a_token_is_at_the_centre_of_its_cells():
  latent = dataclasses.replace(LAYOUT, rope_grid="latent")
  assert latent.length == 5 + 3 * 8
  first_frame = latent.frame_positions
  np.testing.assert_allclose(first_frame[0, 1:], (1.5, 2.5))
  np.testing.assert_allclose(
    first_frame[2:, 1:], [(y, x) for y in (0.5, 2.5) for x in (0.5, 2.5, 4.5)]
  )


@pytest.mark.parametrize("layout", [LAYOUT, FULL], ids=["scales", "full_frame"])
def test_cached_decoding_equals_full_forward(layout):
  """The logits that were sampled from are those of the teacher-forced pass over the same bits."""
  config = dataclasses.replace(GENERATOR, has_place_embedding=True)
  model = make_model(config, layout)
  keys = sample_keys(0, jnp.arange(2))
  out = jax.jit(lambda model: decode(model, layout, TEXT, NULL, keys, None))(model)
  frames, before = [], jnp.zeros((2, 4, 6, BITS))
  for t in range(3):
    total, parts = jnp.zeros_like(before), []
    for s, grid in enumerate(layout.schedule):
      resized = area_resize(before, grid)
      own = resized if s == 0 else linear_resize(total, grid)
      parts.append(jnp.concatenate([own, resized], -1).reshape(2, grid[0] * grid[1], -1))
      total = total + linear_resize(bits_to_codes(out.bits[s][:, t]), (4, 6))
    frames.append(jnp.concatenate(parts, 1))
    before = total
  expected = model(TEXT, jnp.stack(frames, 1), layout, quantized=out.quantized)
  assert float(jnp.abs(expected).max()) > 1.0
  np.testing.assert_allclose(out.logits, expected, atol=1e-4)


def test_every_bit_of_a_token_has_its_own_logit():
  """A cell's logits change with its own row of the head, and with no other cell's of its token."""
  model = make_model(GENERATOR, LAYOUT)
  latents = jax.random.normal(jax.random.key(1), (2, 3, 4, 6, BITS))
  batch = corruption.corrupt(latents, LAYOUT.schedule, prev_frame_input="all_scales")
  before = model(TEXT, batch.features, LAYOUT)
  channel, dy, dx = 3, 1, 0
  kernel = model.head.kernel
  kernel[...] = kernel[...].at[:, 4 * channel + 2 * dy + dx].add(1.0)
  changed = np.abs(np.asarray(model(TEXT, batch.features, LAYOUT) - before)).max((0, 1)) > 1e-3
  last = changed[LAYOUT.cell_slice(2)].reshape(4, 6, BITS)
  wanted = np.zeros((4, 6, BITS), bool)
  wanted[dy::2, dx::2, channel] = True
  np.testing.assert_array_equal(last, wanted)


@pytest.mark.parametrize(
  ("sizes", "message"),
  [((1, 2), "are 2, but the schedule has 3"), ((1, 2, 4), r"4 does not divide the scale 4x6")],
)
def test_impossible_patches_are_named(sizes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(LAYOUT, patch_sizes=sizes)
  with pytest.raises(ValueError, match="patch_sizes"):
    dataclasses.replace(GENERATOR, patch_sizes=(0,))
