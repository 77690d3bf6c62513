"""Infinity's network: prompts of any padding, order of scales, cached sampling, guidance."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videoar_jax.models.infinity.config import InfinityConfig, InfinitySampling, as_text, by_scale
from videoar_jax.models.infinity.decode import decode
from videoar_jax.models.infinity.layout import Layout
from videoar_jax.models.infinity.network import Infinity, template_of
from videoar_jax.models.infinity.task import predict
from videoar_jax.models.request import sample_keys
from videoar_jax.nn.patches import join_cells
from videoar_jax.nn.resize import linear_resize
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes

LAYOUT = Layout(((1, 1), (2, 2), (3, 4)), patch_size=2)
CONFIG = InfinityConfig(
  num_layers=3,
  d_model=32,
  num_heads=2,
  mlp_dim=48,
  num_pool_heads=2,
  patch_size=2,
  num_levels=4,
  num_bits=3,
  text_dim=6,
  text_length=8,
)


def make_network(config=CONFIG) -> Infinity:
  """Returns a network whose outputs depend on all its weights."""
  net = Infinity(nnx.Rngs(params=jax.random.key(0)), config)
  graph, params = nnx.split(net)
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [x + 0.2 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
  return nnx.merge(graph, jax.tree.unflatten(tree, noisy))


@pytest.fixture(scope="module")
def net():
  return make_network()


def prompts(num_rows=5):
  """Returns two prompts, of 4 and 2 rows."""
  text = np.zeros((2, num_rows, 6), np.float32)
  rows = np.random.default_rng(0).normal(size=(6, 6))
  text[0, :4], text[1, :2] = rows[:4], rows[4:]
  return jnp.asarray(text)


def draws(net, text=None, seed=0, **settings):
  values = {"guidance": jnp.array([3.0, 1.0, 2.0]), "temperature": jnp.ones(3)} | settings
  text = prompts() if text is None else text
  run = jax.jit(lambda net, keys: decode(net, LAYOUT, text, keys, **values))
  return run(net, sample_keys(seed, jnp.arange(len(text))))


def test_padding_changes_nothing(net):
  features = jax.random.normal(jax.random.key(2), (2, LAYOUT.length - 1, 12))
  run = jax.jit(lambda net, text, drop: net(net.encode_text(text, drop), features, LAYOUT))
  for is_dropped in (None, np.array([True, True])):
    short, long = (run(net, prompts(rows), is_dropped) for rows in (5, 7))
    np.testing.assert_allclose(short, long, atol=1e-5)
  # As many rows of "no prompt" as the prompt has: what the prompt says does not matter.
  other = run(net, prompts() * 2.0, np.array([True, False]))
  first = run(net, prompts(), np.array([True, True]))
  np.testing.assert_allclose(other[0], first[0], atol=1e-5)
  assert np.abs(other[1] - first[1]).max() > 1e-2


def test_later_scales_change_no_earlier_ones(net):
  features = jax.random.normal(jax.random.key(2), (2, LAYOUT.length - 1, 12))
  run = jax.jit(lambda net, features: net(net.encode_text(prompts()), features, LAYOUT))
  before = run(net, features)
  for scale in (1, 2):
    own = LAYOUT.slice_of(scale)
    # The last token of a scale is seen by all of it.
    changed = run(net, features.at[:, own.stop - 2].add(1.0))
    differs = np.abs(np.asarray(before - changed)).max((0, 2, 3)) > 1e-4
    assert differs.tolist() == [token >= own.start for token in range(LAYOUT.length)]


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"scan_layers": False, "remat": "dots"},
    {"level_embedding_period": 1, "rope_grid": "scale", "attention": "dense"},
  ],
)
def test_sampling_with_a_cache_equals_teacher_forcing(changes):
  config = dataclasses.replace(CONFIG, **changes)
  net, layout = make_network(config), dataclasses.replace(LAYOUT, rope_grid=config.rope_grid)
  text = prompts()
  run = jax.jit(
    lambda net: decode(
      net, layout, text, sample_keys(0, jnp.arange(2)), guidance=None, temperature=jnp.ones(3)
    )
  )
  found = run(net)
  features, total = [], jnp.zeros((2, 6, 8, 3))
  for bits, cells, grid in zip(found.bits, layout.cell_grids[1:], layout.grids[1:], strict=False):
    total = total + linear_resize(bits_to_codes(bits), (6, 8))
    features.append(join_cells(linear_resize(total, cells).reshape(2, -1, 3), grid, 2))
  forced = jax.jit(lambda net, x: net(net.encode_text(text), x, layout))(
    net, jnp.concatenate(features, 1)
  )
  for s in range(3):
    np.testing.assert_allclose(forced[:, layout.slice_of(s)], found.raw_logits[s], atol=1e-4)
  np.testing.assert_allclose(
    found.quantized, total + linear_resize(bits_to_codes(found.bits[-1]), (6, 8)), atol=1e-6
  )


def test_levels_are_added_again():
  features = jnp.zeros((2, LAYOUT.length - 1, 12))
  outs = []
  for period in (0, 2, 1):
    net = make_network(dataclasses.replace(CONFIG, level_embedding_period=period))
    outs.append(jax.jit(lambda net: net(net.encode_text(prompts()), features, LAYOUT))(net))
  assert min(np.abs(a - b).max() for a, b in itertools.pairwise(outs)) > 1e-2


def test_an_image_does_not_depend_on_its_batch(net):
  both = draws(net)
  alone = jax.jit(
    lambda net: decode(
      net,
      LAYOUT,
      prompts()[1:],
      sample_keys(0, jnp.array([1])),
      guidance=jnp.array([3.0, 1.0, 2.0]),
      temperature=jnp.ones(3),
    )
  )(net)
  for ours, other in zip(alone.bits, both.bits, strict=True):
    np.testing.assert_array_equal(ours[0], other[1])
  assert any((a != b).any() for a, b in zip(draws(net, seed=1).bits, both.bits, strict=True))


def test_guidance_mixes_logits_or_outputs_of_a_layer(net):
  plain = draws(net, guidance=None, top_k=1)
  ones = draws(net, guidance=jnp.ones(3), top_k=1)
  for a, b in zip(plain.logits, ones.logits, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
  mixed = draws(net, top_k=1)
  rows = mixed.raw_logits[0][..., 1] - mixed.raw_logits[0][..., 0]
  np.testing.assert_allclose(mixed.logits[0], 3 * rows[:2] - 2 * rows[2:], atol=1e-4)
  # After the last layer, both halves are the mixed one; only the head's modulation differs.
  alike = make_network()
  for weights in (alike.head_modulation.kernel, alike.head_modulation.bias):
    weights[...] = jnp.zeros_like(weights[...])
  last = draws(alike, top_k=1, guidance_layers=(-1,))
  for scale, is_mixed in enumerate((True, False, True)):  # Guidance is 1 at the second scale.
    with_prompt, without = jnp.split(last.raw_logits[scale], 2)
    assert (np.abs(with_prompt - without).max() < 1e-5) == is_mixed
  assert np.abs(last.logits[0] - draws(alike, top_k=1).logits[0]).max() > 1e-2
  none = draws(net, guidance=jnp.ones(3), top_k=1, guidance_layers=(-1,))
  for a, b in zip(plain.logits, none.logits, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
  with pytest.raises(ValueError, match="layers are -1 to -3"):
    draws(net, guidance_layers=(-4,))


def test_a_negative_prompt_takes_the_place_of_no_prompt(net):
  text = prompts()
  same = draws(net, negative=text, top_k=1)
  plain = draws(net, guidance=None, top_k=1)
  # The prompt as its own negative cancels out.
  for a, b in zip(same.logits, plain.logits, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
  other = draws(net, negative=text[::-1], top_k=1)
  assert np.abs(other.logits[0] - same.logits[0]).max() > 1e-3


def test_values_by_scale():
  assert by_scale("guidance", "4, 3,2", 5).tolist() == [4, 3, 2, 2, 2]
  assert as_text((1, 2.5)) == "1,2.5" and as_text(3) == "3" and as_text("4") == "4"
  for settings, text in (
    ({"guidance": "much"}, "guidance=much is not a number"),
    ({"temperature": "1,-1"}, "0 or more"),
    ({"top_k": 0}, "top_k=0"),
    ({"top_p": 0.0}, "top_p=0"),
    ({"guidance_layer": 1}, "guidance_layer=1"),
  ):
    with pytest.raises(ValueError, match=text):
      InfinitySampling(**settings)


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    ({"d_model": 20}, "multiple of 4 num_heads=8"),
    ({"num_pool_heads": 3}, "num_pool_heads=3 must divide"),
    ({"rope_grid": "cell"}, "rope_grid='cell'"),
    ({"num_layers": 0}, "num_layers=0"),
  ],
)
def test_impossible_networks_are_named(changes, text):
  with pytest.raises(ValueError, match=text):
    dataclasses.replace(CONFIG, **changes)


def test_dropped_branches_leave_only_attention_to_the_prompt(net):
  """With both branches of all layers dropped, a token depends on the prompt and itself alone."""
  features = jax.random.normal(jax.random.key(2), (2, LAYOUT.length - 1, 12))
  none = jnp.zeros((3, 2, 2))
  run = jax.jit(lambda net, x: net(net.encode_text(prompts()), x, LAYOUT, none))
  before, after = run(net, features), run(net, features.at[:, 0].add(1.0))
  differs = np.abs(np.asarray(before - after)).max((0, 2, 3)) > 1e-4
  assert differs.tolist() == [token == 1 for token in range(LAYOUT.length)]


def test_predictions_of_given_latents(net):
  """The loss of a sample is that of its bits, in the order of tokens."""
  latents = jax.random.normal(jax.random.key(3), (2, 1, 6, 8, 3))
  losses, shares = jax.jit(lambda net: predict(net, LAYOUT, prompts(), latents))(net)
  assert losses.shape == (2, LAYOUT.length, 12)
  # With two logits a bit, a loss below log 2 is a right bit.
  right = np.asarray(losses < np.log(2)).mean(2)
  np.testing.assert_allclose(shares["bit_accuracy"], right.mean(1), atol=1e-6)
  for s in range(3):
    own = right[:, LAYOUT.slice_of(s)].mean(1)
    np.testing.assert_allclose(shares[f"bit_accuracy/scale_{s}"], own, atol=1e-6)


@pytest.mark.parametrize("axis", ["tensor", "fsdp", "sequence"])
def test_two_devices_equal_one(net, axis):
  """Heads, samples or tokens, of an odd number, are shared; the numbers are those of one device."""
  assert LAYOUT.length % 2
  latents = jax.random.normal(jax.random.key(3), (2, 1, 6, 8, 3))

  def loss(net):
    return jnp.mean(predict(net, LAYOUT, prompts(), latents)[0])

  one, gradient = draws(net), jax.jit(jax.grad(loss))(net)
  mesh = make_mesh(MeshConfig(**{"data": 1, axis: 2}))
  template = template_of(CONFIG)
  params = jax.device_put(nnx.to_pure_dict(nnx.split(net)[1]), template.shardings(mesh))
  split = template.module(params)
  with jax.set_mesh(mesh):
    two, other = draws(split), jax.jit(jax.grad(loss))(split)
  for a, b in zip(one.bits, two.bits, strict=True):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(a).max())))
