"""Attention by other libraries' kernels is that of the mask, and each backend has its rows."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.evals import speed_attention
from videoar_jax.evals.speed_attention import AttentionBench, by_frames, by_ranges
from videoar_jax.evals.speed_rows import UnavailableError
from videoar_jax.nn.attention import attention
from videoar_jax.nn.mask import BlockCausalMask
from videoar_jax.parallel import compat

RULES = {
  "causal prefix": BlockCausalMask(3, True, 3, (1, 4, 9)),
  "full prefix": BlockCausalMask(4, False, 2, (1, 4)),
  "summaries": BlockCausalMask(3, True, 3, (1, 4), summary=4),
  "window": BlockCausalMask(1, True, 4, (1, 4), window=1),
}


def arguments(rule):
  keys = jax.random.split(jax.random.key(0), 3)
  return [
    jax.random.normal(key, (2, rule.length, num, 16))
    for key, num in zip(keys, (4, 2, 2), strict=True)
  ]


def dense(rule, *arrays):
  return attention(*arrays, jnp.asarray(rule.visible())[None])


def same(run, rule):
  """Checks a result, and its gradient."""

  @functools.partial(jax.jit, static_argnums=0)
  def both(run, *arrays):
    out, back = jax.vjp(run, *arrays)
    return out, *back(jnp.cos(jnp.arange(out.size)).reshape(out.shape))

  arrays = arguments(rule)
  found, expected = both(run, *arrays), both(functools.partial(dense, rule), *arrays)
  for x, y in zip(found, expected, strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_frame_at_a_time(rule):
  """Also where lengths are padded."""
  same(functools.partial(by_frames, rule, implementation="xla"), rule)


class Mask:
  """The mask of tokamax, as far as it is used."""

  def __init__(self, *, k_end):
    self.k_end = k_end


def by_ends(query, key, value, *, mask):
  """A kernel that is given a range of keys for each query."""
  assert mask.k_end.shape == (1, query.shape[1]) and mask.k_end.dtype == jnp.int32
  seen = jnp.arange(key.shape[1]) < mask.k_end[..., None]
  return attention(query, key, value, seen)


@pytest.fixture
def with_tokamax(monkeypatch):
  monkeypatch.setattr(
    compat,
    "tokamax_attention",
    lambda: types.SimpleNamespace(implementations={"xla_chunked": by_ends}, Mask=Mask),
  )
  monkeypatch.setattr(speed_attention.importlib.util, "find_spec", lambda name: name == "tokamax")


@pytest.mark.parametrize("name", ["causal prefix", "full prefix"])
def test_ranges_of_keys(name, with_tokamax):
  same(functools.partial(by_ranges, "xla_chunked", RULES[name]), RULES[name])
  with pytest.raises(ValueError, match="tokamax has no triton; it has xla_chunked"):
    by_ranges("triton", RULES[name], *arguments(RULES[name]))


def bench(rule=RULES["causal prefix"]):
  made = AttentionBench(rule, (3, rule.length, 4, 16), 2, "float32", 1e6, lambda: 1e9)
  return {each.name.removeprefix("attention, "): each.run for each in made.measurements()}


@pytest.mark.parametrize("name", ["blocked, forward", "blocked, with gradient", "dense, forward"])
def test_backends_are_measured(name):
  fields = bench()[name]()
  num_flops = 3e6 if "gradient" in name else 1e6
  assert fields["rate"] == pytest.approx(num_flops / fields["seconds"])
  assert fields["share"] == pytest.approx(fields["rate"] / 1e9)
  assert fields["check"]() < 1e-5 and fields["note"] == "float32, 3x45x4x16"


def test_a_wrong_result_shows(monkeypatch):
  monkeypatch.setattr(speed_attention, "attend", lambda q, k, v, mask: q)
  assert bench()["dense, forward"]()["check"]() > 0.5


def test_backends_that_do_not_run_here_say_why(monkeypatch):
  for name, why in {
    "cuDNN, a frame at a time, forward": "needs an NVIDIA GPU",
    "splash, with gradient": "TPU",
    "tokamax xla_chunked, forward": "tokamax is not installed",
  }.items():
    monkeypatch.setattr(speed_attention.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=why):
      bench()[name]()


def test_ranges_need_one_range(with_tokamax):
  assert bench()["tokamax xla_chunked, with gradient"]()["check"]() < 1e-5
  with pytest.raises(UnavailableError, match="more than one range"):
    bench(RULES["window"])["tokamax xla_chunked, forward"]()


@pytest.mark.parametrize(
  ("platform", "names"),
  [("gpu", {"tokamax mosaic_gpu", "tokamax triton"}), ("tpu", {"tokamax mosaic_tpu"})],
)
def test_kernels_of_the_platform(platform, names, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  found = {name.rpartition(", ")[0] for name in bench()}
  assert {name for name in found if "tokamax" in name} == names
