"""A template, which is made without tracing initial values, is that of the real module."""

import jax
import pytest
import tiny_nova
import tiny_runs
import tiny_star
from flax import nnx

from videoar_jax.experiment import parse
from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity.network import Infinity
from videoar_jax.models.infinity_star.network import InfinityStar
from videoar_jax.train.state import Template


def nova():
  run = parse.finalize(tiny_nova.make_config())
  return run.family.make_module(run)


def nova_tokenizer():
  run = parse.finalize(tiny_nova.make_config())
  return run.tokenizer_family.make_module(run.tokenizer)


def videoar():
  run = parse.finalize(tiny_runs.make_config())
  return run.family.make_module(run)


def videoar_tokenizer():
  run = parse.finalize(tiny_runs.make_config())
  return run.tokenizer_family.make_module(run.tokenizer)


def star():
  return lambda key: InfinityStar(nnx.Rngs(params=key), tiny_star.CONFIG)


def infinity():
  sizes = {"num_layers": 2, "d_model": 16, "num_heads": 2, "num_pool_heads": 2, "mlp_dim": 16}
  kinds = {"num_levels": 2, "num_bits": 4, "text_dim": 8, "text_length": 8}
  config = InfinityConfig(**sizes, **kinds)
  return lambda key: Infinity(nnx.Rngs(params=key), config)


@pytest.mark.parametrize("make", [videoar, videoar_tokenizer, nova, nova_tokenizer, star, infinity])
def test_structure_and_shapes_are_those_of_the_module(make):
  make = make()
  found = Template.of(make)
  graphdef, variables = nnx.split(jax.eval_shape(make, jax.random.key(0)))
  assert found.graphdef == graphdef
  expected = nnx.to_pure_dict(variables)
  assert jax.tree.structure(found.shapes) == jax.tree.structure(expected)
  for ours, real in zip(jax.tree.leaves(found.shapes), jax.tree.leaves(expected), strict=True):
    assert (ours.shape, ours.dtype) == (real.shape, real.dtype)
