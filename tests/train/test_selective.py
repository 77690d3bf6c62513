"""Tasks that freeze parameters and choose which decay; averages that are updated now and then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_tasks import Task

from videoar_jax.nn import layers
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.optimizer import OptimizerConfig
from videoar_jax.train.task import SelectiveTask
from videoar_jax.train.trainer import Trainer

FROZEN = ("still", "bias")


class Module(nnx.Module):
  def __init__(self, key):
    rngs = nnx.Rngs(params=key)
    self.moved, self.still, self.unused = (
      layers.param(rngs, layers.normal(1.0), (4, 6), ("embed", "mlp")) for _ in range(3)
    )
    self.bias, self.offset = (layers.param(rngs, layers.normal(1.0), (6,), (None,)) for _ in "ab")


class Selective(Task):
  """Its matrices see the batch; `unused` has no gradient, but may decay."""

  def init(self, key):
    return Module(key)

  def loss(self, module, frozen, batch, key, is_training):
    x = batch["video"] @ (module.moved[...] + module.still[...]) + module.bias[...]
    return jnp.mean((x + module.offset[...]) ** 2), {}

  def is_trained(self, name):
    return name not in FROZEN

  def is_decayed(self, name):
    return name != "unused"


def run(num_steps=6, task=None, kind="adamw", **options):
  """Returns the trainer, and the states and metrics of all steps."""
  optimizer = OptimizerConfig(
    kind=kind, learning_rate=0.1, warmup_steps=0, weight_decay=0.1, grad_clip_norm=0.5
  )
  config = LoopConfig(num_steps, 2, optimizer, **options)
  trainer = Trainer(task or Selective(), config, make_mesh(MeshConfig(data=1, fsdp=2)), seed=0)
  states, metrics = [trainer.init()], []
  batch = {"video": np.arange(8, dtype=np.float32).reshape(2, 4) / 8}
  with jax.set_mesh(trainer.mesh):
    for _ in range(num_steps):
      state, values = trainer.step(jax.tree.map(jnp.copy, states[-1]), {}, batch, trainer.key)
      states.append(state)
      metrics.append(values)
  return trainer, states, metrics


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_frozen_parameters_keep_their_values_and_have_no_moments(kind):
  assert isinstance(Selective(), SelectiveTask) and not isinstance(Task(), SelectiveTask)
  trainer, states, metrics = run(kind=kind, ema_decay=0.9)
  for part in ("params", "ema"):
    first, last = (jax.device_get(states[i][part]) for i in (0, -1))
    for name, value in last.items():
      if name != "unused":  # Its average is the same up to rounding, which frozen ones lack.
        assert np.array_equal(value, first[name]) == (name in FROZEN), (part, name)
  moments = jax.tree_util.tree_leaves_with_path(states[-1]["opt_state"])
  held = {path[-1].key for path, x in moments if x.ndim and hasattr(path[-1], "key")}
  assert held == {"moved", "unused", "offset"}
  kept = trainer.shardings["opt_state"]
  assert any("fsdp" in str(leaf.spec) for leaf in jax.tree.leaves(kept))

  # The norm by which gradients are clipped is that of what is trained.
  def loss(trained):
    params = jax.device_get(states[0]["params"]) | trained
    x = np.arange(8, dtype=np.float32).reshape(2, 4) / 8
    x = x @ (params["moved"] + params["still"]) + params["bias"] + params["offset"]
    return jnp.mean(x**2)

  trained = {name: jax.device_get(states[0]["params"])[name] for name in ("moved", "offset")}
  gradients = jax.grad(loss)(trained)
  norm = np.sqrt(sum(np.sum(np.square(x)) for x in gradients.values()))
  assert float(metrics[0]["gradient_norm"]) == pytest.approx(norm, rel=1e-5)


def test_a_task_chooses_what_decays():
  """By default a bias would not, and the matrix without a gradient would."""
  _, with_choice, _ = run(num_steps=1)

  class Default(Task):
    init, loss = Selective.init, Selective.loss

  _, default, _ = run(num_steps=1, task=Default())
  changes = [
    jax.tree.map(lambda new, old: np.asarray(new - old), states[1]["params"], states[0]["params"])
    for states in (with_choice, default)
  ]
  assert not changes[0]["unused"].any() and changes[1]["unused"].any()
  first = np.asarray(default[0]["params"]["offset"])
  extra = changes[0]["offset"] - changes[1]["offset"]
  np.testing.assert_allclose(extra, -0.1 * 0.1 * first, rtol=1e-3, atol=1e-6)


def test_the_average_is_updated_every_few_steps():
  _, states, _ = run(num_steps=7, ema_decay=0.15, ema_every=3)
  expected = jax.device_get(states[0]["params"])
  for step, state in enumerate(states):
    if step and step % 3 == 0:
      # Of the warm-up and of the setting, the smaller decay.
      decay = min(0.15, (1 + step // 3 - 1) / (10 + step // 3 - 1))
      params = jax.device_get(state["params"])
      expected = {
        name: params[name] if name in FROZEN else a * decay + params[name] * (1 - decay)
        for name, a in expected.items()
      }
    for name, value in jax.device_get(state["ema"]).items():
      np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-7)
  with pytest.raises(ValueError, match="ema_every=0 must be at least 1"):
    LoopConfig(1, 1, OptimizerConfig(), ema_every=0)


def test_parameters_that_are_not_given_are_random():
  trainer, states, _ = run(num_steps=1)
  given = {"moved": jnp.full((4, 6), 7.0), "bias": jnp.zeros(6)}
  state = trainer.init(given)
  for name, value in jax.device_get(state["params"]).items():
    np.testing.assert_array_equal(value, given.get(name, np.asarray(states[0]["params"][name])))
  assert jax.tree.map(lambda x: x.sharding, state) == trainer.shardings
