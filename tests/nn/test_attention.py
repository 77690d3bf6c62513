"""Attention backends against each other and against a hand-written mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.nn import attention as attention_module
from videoar_jax.nn.attention import BACKENDS, attend, attention
from videoar_jax.nn.mask import AttentionMask, BlockCausalMask
from videoar_jax.nn.splash import filled_length, make_mask
from videoar_jax.parallel.mesh import MeshConfig, make_mesh

RULES = {
  "one": BlockCausalMask(3, True, 1, (1, 2)),
  "few": BlockCausalMask(3, False, 3, (1, 4)),
  "window": BlockCausalMask(3, True, 3, (1, 2), window=1),
  "summary": BlockCausalMask(3, True, 2, (1, 4), summary=4),
  "seventeen": BlockCausalMask(4, True, 17, (1, 2), summary=2, window=5),
}
# Small programs, each run once: code that is quick to make is quicker than quick code.
OPTIONS = {"xla_backend_optimization_level": 0}


def sees(rule, prefix_mask, keep):
  """The mask, by loops over one sample's tokens, each (group, block, is_summary)."""
  tokens = [(-1, i, False) for i in range(rule.prefix)]
  for group in range(rule.num_groups):
    tokens += [(group, i, False) for i, size in enumerate(rule.blocks) for _ in range(size)]
    if group < rule.num_groups - 1:
      tokens += [(group, 99, True)] * rule.summary

  def pair(q, k):
    (own, mine, is_summary), (other, theirs, of_summary) = tokens[q], tokens[k]
    if own == -1:
      same = prefix_mask[q] == prefix_mask[k] if other == -1 else False
      return same and (k <= q or not rule.is_prefix_causal)
    if other == -1:
      return prefix_mask[k]
    if other == own:
      return of_summary if is_summary else theirs <= mine
    is_near = rule.window is None or own - other <= rule.window
    return other < own and is_near and keep[own, other] and (of_summary or not rule.summary)

  num = range(len(tokens))
  return np.array([[bool(pair(q, k)) for k in num] for q in num])


def make_sight(rule, has_keep=True):
  generator = np.random.default_rng(0)
  prefix_mask = np.arange(rule.prefix) < np.array([[rule.prefix], [1]])
  keep = generator.random((2, rule.num_groups, rule.num_groups)) < 0.5
  return AttentionMask(rule, jnp.asarray(prefix_mask), jnp.asarray(keep) if has_keep else None)


def draw(rule, num_heads=2, num_kv_heads=1):
  keys = jax.random.split(jax.random.key(0), 3)
  heads = (num_heads, num_kv_heads, num_kv_heads)
  shapes = [(2, rule.length, n, 8) for n in heads]
  return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def value_and_gradients(backend, attention_mask, arrays):
  attention_mask = dataclasses.replace(attention_mask, backend=backend)

  def loss(arrays, attention_mask):
    out = attend(*arrays, attention_mask)
    return jnp.sum(jnp.sin(3 * out)), out

  run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=OPTIONS)
  (_, out), gradients = run(arrays, attention_mask)
  return [out, *gradients]


def assert_equal(ours, expected):
  """Asserts equality to 1e-5 of the largest value of each array."""
  for a, b in zip(ours, expected, strict=True):
    largest = float(jnp.abs(b).max())
    assert largest > 0.1
    np.testing.assert_allclose(a / largest, b / largest, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_rule_is_that_of_its_words(name):
  rule = RULES[name]
  attention_mask = make_sight(rule)
  everything = np.ones(rule.prefix, bool), np.ones((rule.num_groups,) * 2, bool)
  np.testing.assert_array_equal(rule.visible(), sees(rule, *everything))
  for sample in range(2):
    expected = sees(
      rule, np.asarray(attention_mask.prefix_mask[sample]), np.asarray(attention_mask.keep[sample])
    )
    np.testing.assert_array_equal(attention_mask.mask()[sample], expected)


@pytest.mark.parametrize("name", ["one", "few", "seventeen"])
def test_backends_agree(name):
  rule = RULES[name]
  attention_mask, arrays = make_sight(rule), draw(rule)
  expected = value_and_gradients("dense", attention_mask, arrays)
  assert_equal(value_and_gradients("blocked", attention_mask, arrays), expected)
  assert_equal(value_and_gradients("splash", attention_mask, arrays), expected)


def test_backends_agree_without_dropped_groups():
  rule = RULES["window"]
  attention_mask, arrays = make_sight(rule, has_keep=False), draw(rule)
  expected = value_and_gradients("dense", attention_mask, arrays)
  assert_equal(value_and_gradients("blocked", attention_mask, arrays), expected)
  assert_equal(value_and_gradients("splash", attention_mask, arrays), expected)


@pytest.mark.parametrize("name", ["few", "window", "summary", "seventeen"])
@pytest.mark.parametrize("has_keep", [True, False])
def test_squares_of_scores_are_the_whole(name, has_keep, monkeypatch):
  """Tiles that cut blocks, with an incomplete last one; and all tiles that are needed."""
  monkeypatch.setattr(attention_module, "_MAX_SCORES", 1)
  monkeypatch.setattr(attention_module, "_CHUNK", 7)
  rule = RULES[name]
  attention_mask, arrays = make_sight(rule, has_keep), draw(rule)
  expected = value_and_gradients("dense", attention_mask, arrays)
  assert_equal(value_and_gradients("blocked", attention_mask, arrays), expected)
  written = np.pad(attention_mask.mask(), ((0, 0), (0, 7), (0, 7)))
  for i, j in [(0, 0), (7, 0), (7, 7), (rule.length // 7 * 7, 0), (rule.length // 7 * 7, 7)]:
    expected = written[:, i : i + 7, j : j + 7]
    inside = (np.arange(i, i + 7) < rule.length)[:, None] & (np.arange(j, j + 7) < rule.length)
    np.testing.assert_array_equal(attention_mask.part(i, j, 7) & inside, expected & inside)


def test_memory_of_blocked_grows_as_the_sequence(monkeypatch):
  """Dense scores of four times the groups would need 16 times the memory."""
  monkeypatch.setattr(attention_module, "_MAX_SCORES", 2**10)
  monkeypatch.setattr(attention_module, "_CHUNK", 64)

  def temporaries(backend, num_groups):
    rule = BlockCausalMask(8, True, num_groups, (32, 480))
    attention_mask = AttentionMask(rule, jnp.ones((1, 8), bool), backend=backend)
    arrays = [jax.ShapeDtypeStruct((1, rule.length, 1, 8), jnp.float32)] * 3
    loss = jax.grad(lambda arrays: jnp.sum(attend(*arrays, attention_mask)))
    compiled = jax.jit(loss, compiler_options=OPTIONS).lower(arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  short, long = (temporaries("blocked", groups) for groups in (2, 8))
  assert long < 4.2 * short
  assert 20 * long < temporaries("dense", 8)


@pytest.mark.parametrize("axis", ["data", "tensor", "sequence"])
def test_splash_on_two_devices(axis):
  rule = RULES["one"]
  attention_mask, arrays = make_sight(rule), draw(rule, 4, 2)
  expected = value_and_gradients("dense", attention_mask, arrays)
  mesh = make_mesh(MeshConfig(**{"data": 1, axis: 2}), jax.devices()[:2])
  with jax.set_mesh(mesh):
    assert_equal(value_and_gradients("splash", attention_mask, arrays), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["few", "summary"])
def test_what_fills_a_sequence_up_changes_nothing(name, backend):
  """Whatever its content; and it gets a gradient only through its own output."""
  rule = RULES[name]
  attention_mask, arrays = make_sight(rule), draw(rule)
  expected = value_and_gradients("dense", attention_mask, arrays)
  filled = [jnp.pad(x, ((0, 0), (0, 5), (0, 0), (0, 0)), constant_values=9.0) for x in arrays]

  def loss(arrays):
    out = attend(*arrays, dataclasses.replace(attention_mask, backend=backend))
    assert out.shape[1] == rule.length + 5
    out = out[:, : rule.length]
    return jnp.sum(jnp.sin(3 * out)), out

  run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=OPTIONS)
  (_, out), gradients = run(filled)
  assert_equal([out, *(x[:, : rule.length] for x in gradients)], expected)
  assert all((x[:, rule.length :] == 0).all() for x in gradients)


def test_sequences_are_filled_up_to_whole_tiles():
  assert [filled_length(n) for n in (1, 128, 2000, 2049, 44932)] == [128, 128, 2048, 2176, 45056]
  for num_shards in (2, 3, 4, 8, 24):
    length = filled_length(44932, num_shards)
    assert length % (16 * num_shards) == length % 512 == 0 and length >= 44932


@pytest.mark.parametrize("window", [None, 1])
def test_parts_of_the_kernels_mask_are_those_of_the_rule(window):
  """Also masks that are all true or all false, which are not computed."""
  rule = BlockCausalMask(40, True, 3, (16, 64, 144), window=window)
  length = filled_length(rule.length)
  mask = make_mask(rule, length)
  size, kinds = 64, set()
  for i in range(0, rule.length - size, size):
    for j in range(0, rule.length - size, size):
      part = mask[i : i + size, j : j + size]
      expected = rule.visible(slice(i, i + size))[:, j : j + size]
      np.testing.assert_array_equal(part, expected)
      kinds.add((bool(expected.any()), bool(expected.all())))
  assert kinds == {(False, False), (True, False), (True, True)}


def test_wrong_lengths_and_backends_are_named():
  rule = RULES["one"]
  arrays = draw(rule)
  with pytest.raises(ValueError, match="6 tokens, but the attention mask is for 9"):
    attend(*arrays, make_sight(dataclasses.replace(rule, num_groups=2)))
  with pytest.raises(ValueError, match="'flash' is unknown"):
    attend(*arrays, dataclasses.replace(make_sight(rule), backend="flash"))


def test_grouped_attention_equals_plain_softmax():
  key = jax.random.key(0)
  q = jax.random.normal(key, (2, 5, 4, 8))
  k, v = jax.random.normal(jax.random.key(1), (2, 2, 7, 2, 8))
  mask = jax.random.bernoulli(key, 0.6, (2, 5, 7)).at[:, :, 0].set(True)
  out = attention(q, k, v, mask)
  for b in range(2):
    for head in range(4):
      scores = q[b, :, head] @ k[b, :, head // 2].T / np.sqrt(8)
      weights = jax.nn.softmax(jnp.where(mask[b], scores, -jnp.inf))
      np.testing.assert_allclose(out[b, :, head], weights @ v[b, :, head // 2], atol=1e-5)
