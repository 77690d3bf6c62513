"""NOVA's estimated FLOPs against the products in its programs, and against XLA's own count."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import branches, products

from videoar_jax.models.nova import flops, generate, loss
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.network import template_of
from videoar_jax.models.nova.orders import UnknownShare
from videoar_jax.models.nova.tokens import NUM_FREQUENCIES

CONFIG = NovaConfig(
  d_model=32,
  num_heads=2,
  num_video_layers=2,
  num_image_layers=4,
  head_mlp_dim=24,
  num_head_layers=2,
  patch_size=1,
  video_patch_size=2,
  mixer_rank=3,
  num_channels=2,
  text_dim=6,
  text_length=5,
  noise="flow",
  scan_layers=False,
)
LABELS = dataclasses.replace(
  CONFIG, text_dim=0, vocabulary_size=4, text_length=1, has_motion=False, mixer_rank=None
)
FULL = dataclasses.replace(CONFIG, mixer_rank=0, positions="rope", d_model=64)
CLIPS, REPEATS = 2, 3


PUBLIC = UnknownShare()
ANY = UnknownShare(0.0, 10.0)


def loss_of(config, num_frames, size=(4, 6), unknown=PUBLIC):
  """Returns a function from a network to its loss, and the shape of such a network."""
  num_tokens = size[0] * size[1] // config.patch_size**2

  def total(net):
    text = jnp.ones((CLIPS, config.text_length, config.text_dim))
    text = text if config.text_dim else jnp.ones((CLIPS, config.text_length), jnp.int32)
    latents = jnp.ones((CLIPS, num_frames, *size, config.num_channels))
    draws = loss.draw(
      jax.random.key(0),
      CLIPS * num_frames,
      num_tokens,
      config.token_width,
      REPEATS,
      config.process(),
      unknown,
    )
    prefix = net.temporal.prefix(text, None, jnp.float32)
    return loss.training_loss(net, latents, prefix, draws, config.process(), unknown)[0]

  template = template_of(config)
  return total, template.module(template.shapes)


@pytest.mark.parametrize("num_frames", [1, 3])
@pytest.mark.parametrize(
  ("config", "unknown"),
  [(CONFIG, PUBLIC), (LABELS, PUBLIC), (FULL, PUBLIC), (CONFIG, ANY)],
  ids=["default", "labels", "full", "any_share"],
)
def test_flops_are_those_of_the_program(config, unknown, num_frames):
  total, net = loss_of(config, num_frames, unknown=unknown)
  sizes = flops.Sizes.of(config, (num_frames, 4, 6), unknown)
  # All clips share the embeddings of their frames' times.
  into, out = 2 * NUM_FREQUENCIES * config.d_model, config.d_model**2
  has_times = num_frames * (config.positions == "absolute")
  found = products(jax.make_jaxpr(total)(net).jaxpr)
  times = 2 * has_times * (into + out)
  assert found == CLIPS * flops.forward_flops(config, sizes, REPEATS) + times
  found = products(jax.make_jaxpr(jax.grad(total))(net).jaxpr)
  times = 2 * has_times * (2 * into + 3 * out)
  assert found == CLIPS * flops.training_flops(config, sizes, REPEATS) + times


def test_flops_are_those_of_each_branch():
  unknown = UnknownShare(0.0, 0.4, num_ranges=3)
  total, net = loss_of(LABELS, 3, unknown=unknown)
  whole = flops.Sizes.of(LABELS, (3, 4, 6), unknown)
  jaxpr = jax.make_jaxpr(jax.grad(total))(net).jaxpr
  # As above: embeddings of frames' times.
  times = 2 * 3 * (2 * 2 * NUM_FREQUENCIES * LABELS.d_model + 3 * LABELS.d_model**2)
  outside, counted = products(jaxpr) - times, [products(each) for each in branches(jaxpr)]
  ranges = whole.ranges(unknown)
  assert len(ranges) == 3 and len(set(counted)) == 3
  for (sizes, _), inside in zip(ranges, counted, strict=True):
    assert outside + inside == CLIPS * flops.training_flops(LABELS, sizes, REPEATS)
  mean = flops.mean_flops(flops.training_flops, LABELS, whole, unknown, REPEATS)
  chances = [chance for _, chance in ranges]
  assert CLIPS * mean == pytest.approx(outside + np.dot(chances, counted))
  assert mean < 0.9 * flops.training_flops(LABELS, whole, REPEATS)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_again_is_known(remat):
  config = dataclasses.replace(CONFIG, remat=remat)
  sizes = flops.Sizes.of(config, (3, 4, 6))
  counted = []
  for each in (CONFIG, config):
    total, net = loss_of(each, 3)
    counted.append(products(jax.make_jaxpr(jax.grad(total))(net).jaxpr))
  again = {
    "dots": flops.attention_flops(config, sizes),
    "full": flops.layer_flops(config, sizes, REPEATS),
  }[remat]
  # The last product of a layer is not needed.
  assert counted[1] - counted[0] == pytest.approx(CLIPS * again, rel=0.35)


def test_xla_counts_about_the_same():
  """XLA also counts norms, softmax and the like, of which wide networks have few."""
  config = dataclasses.replace(
    CONFIG, d_model=256, num_heads=2, head_mlp_dim=256, num_video_layers=1, num_image_layers=2
  )
  total, net = loss_of(config, 2, (4, 4))
  sizes = flops.Sizes.of(config, (2, 4, 4))
  cost = jax.jit(jax.grad(total)).lower(net).compile().cost_analysis()
  expected = CLIPS * flops.training_flops(config, sizes, REPEATS)
  assert cost["flops"] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_flops_of_sampling_are_those_of_the_program(guidance):
  plan = generate.Plan(3, (4, 6), 5, 4, CONFIG.process(), generate.Guidance(guidance, trunc=500.0))
  draws = functools.partial(generate.key_draws, 0, jnp.arange(CLIPS), plan, CONFIG)
  text = jnp.ones((CLIPS, 5, 6))

  def sample(net):
    return generate.generate(net, plan, text, jnp.zeros_like(text[:1]), None, draws())

  template = template_of(CONFIG)
  found = products(jax.make_jaxpr(sample)(template.module(template.shapes)).jaxpr)
  sizes = flops.Sizes.of(CONFIG, (3, 4, 6))
  # Left out: embeddings of frames' times and of noise levels, which clips share.
  assert found == pytest.approx(CLIPS * flops.sampling_flops(CONFIG, sizes, plan), rel=0.05)
