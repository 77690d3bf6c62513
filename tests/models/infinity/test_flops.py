"""Infinity's estimated FLOPs against the products in its programs, and where plans use them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jaxprs import products
from tiny_infinity import make_config

from videoar_jax.experiment import parse
from videoar_jax.models.infinity import flops, training_work
from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity.decode import decode
from videoar_jax.models.infinity.layout import Layout, layout_of
from videoar_jax.models.infinity.network import template_of
from videoar_jax.models.request import sample_keys

LAYOUT = Layout(((1, 1), (2, 2), (3, 4)), patch_size=2)
CONFIG = InfinityConfig(
  num_layers=3,
  d_model=16,
  num_heads=2,
  mlp_dim=24,
  num_pool_heads=4,
  patch_size=2,
  num_bits=3,
  text_dim=10,
  text_length=5,
  attention="dense",
  scan_layers=False,
  remat="none",
)
TOKENS = dataclasses.replace(CONFIG, text_dim=0, vocabulary_size=9)
IMAGES = 2


def prompts(config):
  if config.text_dim:
    return jax.ShapeDtypeStruct((IMAGES, config.text_length, config.text_dim), jnp.float32)
  return jax.ShapeDtypeStruct((IMAGES, config.text_length), jnp.int32)


def program(config, *, has_gradient):
  """Returns the program of the sum of logits, or of its gradient."""

  def total(net, text, features):
    return jnp.sum(net(net.encode_text(text), features, LAYOUT))

  template = template_of(config)
  features = jax.ShapeDtypeStruct((IMAGES, LAYOUT.length - 1, config.token_width), jnp.float32)
  function = jax.grad(total) if has_gradient else total
  arguments = template.module(template.shapes), prompts(config), features
  return jax.make_jaxpr(function)(*arguments).jaxpr


@pytest.mark.parametrize("config", [CONFIG, TOKENS], ids=["features", "tokens"])
def test_flops_are_those_of_the_program(config):
  """The dense program multiplies all pairs; the estimate has those that the mask allows."""
  pairs = LAYOUT.length**2 - flops.visible_pairs(LAYOUT)
  assert flops.visible_pairs(LAYOUT) == LAYOUT.mask().visible().sum()
  hidden = 4 * pairs * config.d_model * config.num_layers
  forward = flops.forward_flops(config, LAYOUT) + hidden
  assert products(program(config, has_gradient=False)) == IMAGES * forward
  step = flops.training_flops(config, LAYOUT) + 3 * hidden
  assert products(program(config, has_gradient=True)) == IMAGES * step


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_again_is_known(remat):
  programs = [
    program(dataclasses.replace(CONFIG, remat=each), has_gradient=True) for each in ("none", remat)
  ]
  again = products(programs[1]) - products(programs[0])
  all_pairs = 4 * LAYOUT.length**2 + 4 * LAYOUT.length * CONFIG.text_length
  attention = all_pairs * CONFIG.d_model * CONFIG.num_layers
  hidden = attention - flops.attention_flops(CONFIG, LAYOUT)
  expected = {
    "dots": attention,
    "full": flops.layer_flops(CONFIG, LAYOUT) + hidden,
  }[remat]
  # The last product of a layer, or of attention, is not needed.
  assert 0.6 * IMAGES * expected < again <= IMAGES * expected


def test_sampling_runs_as_many_products():
  layout = dataclasses.replace(LAYOUT, patch_size=1)
  config = dataclasses.replace(CONFIG, patch_size=1)
  template = template_of(config)

  def sample(net, text):
    keys = sample_keys(0, jnp.arange(IMAGES))
    guidance = jnp.full(layout.num_scales, 3.0)
    return decode(
      net, layout, text, keys, guidance=guidance, temperature=jnp.ones(layout.num_scales)
    ).quantized

  text = prompts(config)
  found = products(jax.make_jaxpr(sample)(template.module(template.shapes), text).jaxpr)
  # Modulations are computed for each scale.
  more = (layout.num_scales - 1) * 2 * 8 * config.d_model**2
  expected = 2 * IMAGES * (flops.forward_flops(config, layout) + more)
  assert found == pytest.approx(expected, rel=0.02)


def test_plans_count_the_step_of_each_device():
  run = parse.finalize(make_config(**{"generator.num_heads": 4, "generator.d_model": 32}))
  (stage,) = run.generator_stages
  assert run.family.flops(run, stage)[1] == run.family.step_work(run, stage, _mesh()).flops
  # Keys and values of a scale are computed once, as in training. But both halves of guidance share
  # the inputs, and sampling leaves out modulations and the one query of the pool.
  config, forward = run.generator, run.family.flops(run, stage)[0]
  left_out = 9 * config.d_model**2 + 2 * config.text_length * config.d_model
  layout = layout_of(run.tokenizer, stage.data.resolution, config.patch_size, config.rope_grid)
  inputs = (layout.length - 1) * config.token_width * config.d_model
  steps, total = run.family.sampling_work(run, stage, 3)
  assert steps == 3 and total == 3 * (2 * (forward - 2 * left_out) - 2 * inputs)
  whole = run.family.step_work(run, stage, _mesh())
  parts = run.family.step_work(run, stage, _mesh(sequence=2))
  assert parts.activation_bytes == whole.activation_bytes / 2 and whole.sent_bytes == 0
  by_heads = run.family.step_work(run, stage, _mesh(tensor=2))
  assert parts.sent_bytes < by_heads.sent_bytes
  assert parts.activation_bytes < by_heads.activation_bytes < whole.activation_bytes
  kept = []
  for remat in ("none", "dots", "full"):
    config = dataclasses.replace(run.generator, remat=remat)
    kept.append(training_work._activations(config, _mesh(), 1.0)[0])
  assert kept[0] > kept[2] and kept[1] > kept[2]


def _mesh(**sizes):
  names = ("slice", "data", "fsdp", "sequence", "tensor")
  return AbstractMesh(tuple(sizes.get(name, 1) for name in names), names)
