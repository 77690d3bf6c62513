"""What a plan says of Infinity's sampling, against its program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import products

from videoar_jax.models.infinity import work
from videoar_jax.models.infinity.config import InfinityConfig, InfinitySampling
from videoar_jax.models.infinity.layout import Layout
from videoar_jax.nn.resize import linear_resize
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.parallel.rules import ShardingError

CONFIG = InfinityConfig(
  num_layers=3, d_model=16, num_heads=2, mlp_dim=24, num_pool_heads=2, num_bits=3, patch_size=2
)
CONFIG = dataclasses.replace(CONFIG, text_dim=6, text_length=5)
LAYOUT = Layout(((1, 1), (2, 2), (3, 3)), patch_size=2)


class Features:
  """Encodes every prompt alike."""

  def null(self):
    return np.ones((CONFIG.text_length, CONFIG.text_dim), np.float32)


def planned(guidance, tensor=1, config=CONFIG):
  mesh = make_mesh(MeshConfig(data=1, tensor=tensor), jax.devices()[:tensor])
  settings = config, InfinitySampling(guidance=guidance), Features()
  return work.sampling_program(*settings, LAYOUT, mesh, 1, jnp.dtype(jnp.float32))


def outside_of_layers(passes):
  """Returns the FLOPs of resizing codes, of modulation, and of the one query that pools."""
  cells, d, m = LAYOUT.cell_grids, CONFIG.num_bits, CONFIG.d_model
  total = 0
  for s, grid in enumerate(cells):
    pairs = [(grid, cells[-1])] + ([(cells[-1], cells[s + 1])] if s + 1 < len(cells) else [])
    for size, other in pairs:
      codes = jnp.zeros((1, *size, d))
      total += products(jax.make_jaxpr(lambda x, o=other: linear_resize(x, o))(codes).jaxpr)
  pooling = 2 * CONFIG.text_length * m + m**2
  return total + 2 * passes * (len(cells) * (6 + 2) * m**2 + pooling)


@pytest.mark.parametrize(("guidance", "passes"), [("1", 1), ("3,1", 2)])
def test_flops_are_those_of_the_program(guidance, passes):
  plan = planned(guidance)
  found = products(jax.make_jaxpr(plan.program)(*plan.arguments).jaxpr)
  expected = work.sampling_flops(CONFIG, LAYOUT, passes)
  assert found == expected + outside_of_layers(passes)
  assert plan.work.flops == expected and plan.work.num_steps == 3


def test_the_cache_is_that_of_all_scales_but_the_last():
  whole, half = planned("3"), planned("3", tensor=2)
  positions = CONFIG.text_length + 1 + 4
  # Keys and values of two passes, in float32.
  assert whole.work.cache_bytes == 2 * 2 * CONFIG.num_layers * positions * CONFIG.d_model * 4
  assert half.work.cache_bytes == whole.work.cache_bytes / 2
  assert whole.work.link_traffic == 0 < half.work.link_traffic
  assert half.work.memory_traffic < whole.work.memory_traffic


def test_heads_that_do_not_divide_are_named():
  with pytest.raises(ShardingError, match="heads"):
    planned("3", tensor=2, config=dataclasses.replace(CONFIG, num_heads=1))
