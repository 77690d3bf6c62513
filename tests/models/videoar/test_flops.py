"""Estimated FLOPs against the products in the program, and against the number of parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxprs import products
from tiny_networks import GENERATOR, LAYOUT

from configs.common import generator_size
from videoar_jax.models.videoar import flops
from videoar_jax.models.videoar.config import GeneratorConfig
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.nn.layers import count_parameters

FULL = dataclasses.replace(LAYOUT, context="full_frame", prev_frame_input="all_scales")
PATCHES = Layout(5, 3, ((1, 1), (2, 2), (4, 4)), patch_sizes=(1, 2, 2))
LAYOUTS = (LAYOUT, FULL, PATCHES)
NAMES = ("paper", "full_frame", "patches")
CONFIG = dataclasses.replace(GENERATOR, scan_layers=False, remat="none", attention="dense")

FEATURES = dataclasses.replace(CONFIG, vocabulary_size=0, text_dim=9)


def abstract_model(layout, config=CONFIG):
  return jax.eval_shape(lambda: Generator(nnx.Rngs(params=0), config, layout))


def program(layout, config=CONFIG, *, has_gradient):
  def loss(model, text, features, latents):
    return jnp.sum(model(text, features, layout, quantized=latents))

  num_features = 12 if layout.prev_frame_input == "all_scales" else 6
  shapes = (2, 3, layout.num_cells, num_features), (2, 3, *layout.grid, 6)
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  function = jax.grad(loss) if has_gradient else loss
  text = jax.ShapeDtypeStruct((2, 5), jnp.int32)
  if config.text_dim:
    text = jax.ShapeDtypeStruct((2, 5, config.text_dim), jnp.float32)
  return jax.make_jaxpr(function)(abstract_model(layout, config), text, *arrays).jaxpr


@pytest.mark.parametrize("config", [CONFIG, FEATURES], ids=["tokens", "features"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_flops_are_those_of_the_program(layout, config):
  """The dense program multiplies all pairs; the estimate has those that the mask allows."""
  pairs = flops.visible_pairs(layout.mask())
  attention = 2 * 2 * CONFIG.num_layers * CONFIG.num_heads * CONFIG.head_dim
  hidden = attention * (layout.length**2 - pairs)
  # The program embeds the features that follow the last frame too, and drops them.
  num_features = 12 if layout.prev_frame_input == "all_scales" else 6
  dropped = 2 * layout.final_size * num_features * CONFIG.d_model
  # Complete latents go through the head as well, where they are not the last frame's.
  heads = 2 * (layout.num_frames - 1) * layout.final_size * CONFIG.d_model * CONFIG.num_bits
  forward = flops.forward_flops(config, layout) + hidden + dropped + heads
  assert products(program(layout, config, has_gradient=False)) == 2 * forward
  step = flops.training_flops(config, layout) + 3 * hidden + 2 * dropped + 3 * heads
  assert products(program(layout, config, has_gradient=True)) == 2 * step


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
@pytest.mark.parametrize("window", [None, 1])
def test_pairs_are_those_of_the_rule(layout, window):
  rule = layout.mask(window)
  assert flops.visible_pairs(rule) == np.sum(rule.visible())


@pytest.mark.parametrize(("size", "total"), [("l", 926e6), ("xl", 2.0e9), ("4b", 4.0e9)])
def test_named_sizes_are_the_papers(size, total):
  """With a text embedding of about 1.5e5 rows, as in the paper's totals."""
  fields = {"num_bits": 48, "vocabulary_size": 150_000}
  config = GeneratorConfig(**generator_size(size).to_dict(), **fields)
  layout = Layout(64, 5, ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)))
  num = count_parameters(abstract_model(layout, config))
  assert abs(num / total - 1) < 0.03, num
