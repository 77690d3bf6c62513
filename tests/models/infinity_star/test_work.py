"""What a plan says of InfinityStar's sampling, against its programs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jaxprs import products
from tiny_star import CONFIG

from videoar_jax.models.infinity_star import generate, work
from videoar_jax.models.infinity_star.config import InfinityStarSampling
from videoar_jax.models.infinity_star.network import template_of
from videoar_jax.models.infinity_star.sequences import layout_of
from videoar_jax.nn.cache import length_of
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.parallel.rules import ShardingError
from videoar_jax.tokenizers.star.quantizer import code_of_bits, input_of

TEXT = dataclasses.replace(CONFIG, vocabulary_size=0, text_dim=5, num_kv_heads=2)
SAMPLING = InfinityStarSampling(guidance=4.0)
LAYOUT = layout_of(TEXT, (6, 4, 4))  # The first frame, two clips, and a short one.


def calls(guidance, config=TEXT):
  """Returns the FLOPs of sampling a clip, and the arguments of the program of each scale."""
  plan = generate.Plan.of(LAYOUT, InfinityStarSampling(guidance=guidance))
  template, seen = template_of(config), []
  text, keys = jnp.ones((1, TEXT.text_length, 5)), jnp.zeros((1, 2), jnp.uint32)

  def run_scale(*arguments, is_kept):
    seen.append((jax.eval_shape(lambda *_: arguments[3:-1], 0), arguments[1], is_kept))
    return generate.run_scale(*arguments, is_kept=is_kept)

  def sample(net):
    prompts = generate.prompts_of(net, text, None, guidance != 1)
    return generate.generate(net, plan, prompts, keys, run=run_scale)

  program = jax.make_jaxpr(sample)(template.module(template.shapes))
  return products(program.jaxpr), seen


def resizing():
  """Returns the FLOPs of resizing codes."""
  total = 0
  for scale in LAYOUT.scales:
    codes = jnp.zeros((1, scale.num_frames, *LAYOUT.grid, TEXT.num_channels))
    bits = jnp.zeros((1, scale.num_frames, *scale.grid, scale.num_bits), jnp.uint8)
    down = jax.make_jaxpr(lambda x, scale=scale: input_of(x, scale.grid))(codes)
    up = jax.make_jaxpr(lambda x: code_of_bits(x, LAYOUT.grid, TEXT.num_channels))(bits)
    total += scale.repetitions * (products(down.jaxpr) + products(up.jaxpr))
  return total


@pytest.mark.parametrize(("guidance", "passes"), [(1.0, 1), (4.0, 2)])
def test_flops_are_those_of_the_program(guidance, passes):
  found, _ = calls(guidance)
  assert found == work.sampling_flops(TEXT, LAYOUT, passes) + resizing()


def test_the_planned_program_is_that_of_the_largest_scale():
  """Its arguments have the shapes that the sampler gives it, and are split as it splits them."""
  _, seen = calls(4.0)
  mesh = make_mesh(MeshConfig(data=1, tensor=2), jax.devices()[:2])
  planned = work.sampling_program(TEXT, SAMPLING, LAYOUT, mesh, 1, jnp.dtype(jnp.float32))
  _, scale, size, *arguments = planned.arguments
  # Both clips have a scale of that size, but the second one sees more: that of the first.
  wanted, largest, is_kept = max(
    seen, key=lambda call: (call[1].num_tokens, sum(map(length_of, call[0][2])))
  )
  assert (scale, size) == (largest, LAYOUT.grid) and planned.settings == {"is_kept": is_kept}
  assert is_kept

  def shape_of(x):
    return x.shape, x.dtype

  assert jax.tree.map(shape_of, tuple(arguments)) == jax.tree.map(shape_of, wanted)
  prompt, context = arguments[2]
  assert context.keys.sharding.shard_shape(context.keys.shape)[2] == 1
  # Two passes of two layers, keys and values, in float32: half of the heads are here.
  length = length_of(prompt) + length_of(context) + scale.num_tokens
  assert planned.work.cache_bytes == 2 * 2 * 2 * length * CONFIG.head_dim * 4
  assert planned.work.num_steps == 1 + sum(scale.repetitions for scale in LAYOUT.scales)


def test_heads_that_do_not_divide_are_named():
  mesh = make_mesh(MeshConfig(data=1, tensor=2), jax.devices()[:2])
  odd = dataclasses.replace(TEXT, num_kv_heads=1)
  with pytest.raises(ShardingError, match="kv_heads"):
    work.sampling_program(odd, SAMPLING, LAYOUT, mesh, 1, jnp.dtype(jnp.float32))
