"""Training of InfinityStar: what the loss depends on, and adapters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_star import CONFIG, make_net

from videoar_jax.models.infinity_star import loss
from videoar_jax.models.infinity_star.config import InfinityStarConfig, InfinityStarSampling
from videoar_jax.models.infinity_star.network import with_merged_adapters
from videoar_jax.models.infinity_star.sequences import layout_of
from videoar_jax.models.infinity_star.task import InfinityStarLossConfig, InfinityStarTask
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.star.quantizer import corrupt, draw
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.optimizer import OptimizerConfig
from videoar_jax.train.state import Template, flatten, unflatten
from videoar_jax.train.trainer import Trainer

LAYOUT = layout_of(CONFIG, (4, 4, 4))
BATCH = {
  "latents": jax.random.normal(jax.random.key(4), (2, 4, 4, 4, 6)),
  "text": jnp.array([[3, 4, 5, 0, 0, 0], [7, 8, 9, 1, 2, 3]]),
}
ADAPTERS = dataclasses.replace(CONFIG, lora_rank=2, lora_targets=("query", "out", "down"))


def make_task(config=CONFIG, **settings) -> InfinityStarTask:
  settings = InfinityStarLossConfig(**settings)
  # Batches of latents need no tokenizer.
  family, sampling = TOKENIZERS["bsq"], InfinityStarSampling()
  return InfinityStarTask(config, LAYOUT, settings, family, None, {}, sampling)


def train(task, num_steps, params=None):
  optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, final_fraction=1.0)
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  trainer = Trainer(task, LoopConfig(max(num_steps, 1), 2, optimizer), mesh, seed=0)
  state = trainer.init(params)
  first, losses = jax.tree.map(np.asarray, state["params"]), []
  key = trainer.place_key(jax.random.key(1))
  for _ in range(num_steps):
    state, metrics = trainer.run(trainer.step, state, {}, BATCH, key)
    losses.append(float(metrics["loss"]))
  return first, state, losses


def test_it_learns_a_batch():
  _, _, losses = train(make_task(flip_strength=0.0, text_dropout=0.0), 60)
  assert abs(losses[0] - np.log(2)) < 0.1 and losses[-1] < 0.75 * losses[0]


def test_only_training_corrupts_and_drops():
  net = make_net()

  @jax.jit
  def losses(net, text):
    def of(is_training, **settings):
      batch = BATCH | {"text": text}
      return make_task(**settings).loss(net, {}, batch, jax.random.key(2), is_training)[0]

    return {
      "held_out": of(False, flip_strength=0.3, text_dropout=1.0),
      "plain": of(True, flip_strength=0.0, text_dropout=0.0),
      "flipped": of(True, flip_strength=0.3, text_dropout=0.0),
      "dropped": of(True, flip_strength=0.0, text_dropout=1.0),
    }

  text, other = BATCH["text"], jnp.where(BATCH["text"] > 0, BATCH["text"] + 9, 0)
  found, changed = losses(net, text), losses(net, other)
  assert found["held_out"] == found["plain"] != found["flipped"]
  assert found["dropped"] == changed["dropped"] and found["plain"] != changed["plain"]
  # By hand, of the same repetitions.
  draws = draw(jax.random.split(jax.random.key(2), 3)[0], LAYOUT.schedule, 2, 0.0)
  selected = corrupt(BATCH["latents"], LAYOUT.schedule, draws)
  parts = jax.jit(lambda net: loss.clip_losses(net, text, selected, draws.selected, LAYOUT))(net)
  total, weight = 0.0, 0.0
  for scale, tokens in zip(LAYOUT.scales, LAYOUT.slices, strict=True):
    own = scale.num_tokens * (LAYOUT.schedule[-1].num_tokens / scale.num_tokens) ** 0.2
    total += own * np.mean(parts.cross_entropy[:, tokens])
    weight += own
  assert abs(total / weight - found["plain"]) < 1e-5


@pytest.mark.parametrize("axes", [{"tensor": 2}, {"sequence": 2}])
def test_loss_is_the_same_on_a_mesh(axes):
  task = make_task()
  net = make_net()

  def run(net):
    return task.loss(net, {}, BATCH, jax.random.key(2), True)[0]

  expected = jax.jit(jax.value_and_grad(run))(net)
  mesh = make_mesh(MeshConfig(data=1, **axes), jax.devices()[:2])
  with jax.set_mesh(mesh):
    shardings = Template.of(task.init).shardings(mesh)
    placed = jax.device_put(nnx.to_pure_dict(nnx.split(net)[1]), shardings)
    found = jax.jit(jax.value_and_grad(run))(nnx.merge(nnx.split(net)[0], placed))
  for ours, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_adapters_alone_are_trained_and_merge():
  base = flatten(train(make_task(), 0)[0])
  params, state, _ = train(make_task(ADAPTERS), 3, unflatten(base))
  before, after = flatten(params), flatten(state["params"])
  adapters = {name for name in before if ".lora_" in name}
  assert len(adapters) == 6 and before.keys() - adapters == base.keys()
  for name, value in after.items():
    is_same = np.array_equal(value, before[name])
    # A batch of two prompts reads every product.
    assert is_same == (name not in adapters), name
    if name in base:
      np.testing.assert_array_equal(value, base[name])
  moments = [x.shape for x in jax.tree.leaves(state["opt_state"]) if x.ndim]
  assert sorted(moments) == sorted(2 * [before[name].shape for name in adapters])

  net = make_net(ADAPTERS, noise=0.1)
  inputs = jax.random.normal(jax.random.key(5), (2, LAYOUT.num_tokens, 6))
  run = jax.jit(lambda net: net(BATCH["text"], inputs, LAYOUT))
  merged = with_merged_adapters(net)
  assert merged.config.lora_rank == 0
  assert flatten(nnx.to_pure_dict(nnx.split(merged)[1])).keys() == base.keys()
  for ours, expected in zip(run(merged), run(net), strict=True):
    assert np.abs(ours - expected).max() < 1e-6 * np.abs(expected).max()
  merged_kernel, kernel = (x.blocks.attention.query.kernel[...] for x in (merged, net))
  assert np.abs(merged_kernel - kernel).max() > 1e-3


def test_settings_out_of_range_are_named():
  for settings, text in (
    ({"flip_strength": 1.5}, "flip_strength=1.5 must be in"),
    ({"reweight": -1.0}, "reweight=-1.0 must be a number"),
    ({"parts": "some"}, "parts='some' must be 'all' or 'released'"),
  ):
    with pytest.raises(ValueError, match=text):
      InfinityStarLossConfig(**settings)
  with pytest.raises(ValueError, match=r"generator\.lora_targets: 'keys' is unknown; known are"):
    InfinityStarConfig(lora_targets=("keys",))
