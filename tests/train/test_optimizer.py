"""Weight decay, parameters for Muon, and the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from videoar_jax.train.muon import orthogonalize, scale_by_muon
from videoar_jax.train.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer

PARAMS = {
  "kernel": jnp.full((2, 3, 4), 0.5),  # Two stacked layers.
  "norm": jnp.ones((2, 3)),
  "table": jnp.full((5, 3), 0.5),
}
AXES = {"kernel": ("embed", "mlp"), "norm": (None,), "table": ("vocabulary", "embed")}


def update(config, gradients, num_steps=10):
  optimizer = make_optimizer(config, num_steps, AXES)
  updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
  return updates


@pytest.mark.parametrize(("kind", "share"), [("adamw", 1.0), ("muon", 0.2)])
def test_matrices_and_embeddings_decay_and_norms_do_not(kind, share):
  """Each at its own learning rate, which for embeddings is AdamW's."""
  config = OptimizerConfig(
    kind=kind, learning_rate=0.1, warmup_steps=0, weight_decay=0.5, adamw_share=0.2
  )
  zero = {name: jnp.zeros_like(x) for name, x in PARAMS.items()}
  updates = update(config, zero)
  np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * PARAMS["kernel"], rtol=1e-5)
  np.testing.assert_allclose(updates["table"], -0.1 * share * 0.5 * PARAMS["table"], rtol=1e-5)
  np.testing.assert_array_equal(updates["norm"], 0.0)


def test_muon_orthogonalises_each_layer():
  """Every layer's update has similar singular values, however ill-conditioned its gradient is."""
  config = OptimizerConfig(kind="muon", learning_rate=0.1, warmup_steps=0, weight_decay=0.0)
  rng = np.random.default_rng(0)
  skewed = rng.normal(size=(2, 3, 3)) @ np.diag([1.0, 0.1, 0.05]) @ rng.normal(size=(2, 3, 4))
  gradients = {"kernel": jnp.asarray(skewed), "norm": PARAMS["norm"], "table": PARAMS["table"]}
  updates = update(config, gradients)
  for layer in range(2):
    before = np.linalg.svd(skewed[layer], compute_uv=False)
    after = np.linalg.svd(np.asarray(updates["kernel"][layer]), compute_uv=False)
    assert before[0] / before[-1] > 5 and after[0] / after[-1] < 2.5
  # Embeddings are AdamW's: the first step follows the sign of the gradient, whatever its size, at
  # about a tenth of the rate.
  table = np.asarray(updates["table"])
  np.testing.assert_allclose(table, table[0, 0], rtol=1e-3)
  assert -0.02 < table[0, 0] < -0.005


@pytest.mark.parametrize("shape", [(2, 40, 8), (8, 40), (7, 8), (3, 3, 3, 4, 8)])
def test_orthogonalization_is_that_of_optax(shape):
  """Tall matrices, which are iterated on by their Gram matrix, wide and nearly square ones."""
  names = (None,) * (len(shape) - 2) + ("a", "b") if len(shape) == 5 else ("a", "b")
  first = len(shape) - len(names)
  numbers = optax.contrib.MuonDimensionNumbers(tuple(range(first, len(shape) - 1)), -1)
  theirs = optax.contrib.muon(
    0.1, ns_steps=4, weight_decay=0.01, muon_weight_dimension_numbers={"x": numbers}
  )
  ours = optax.chain(
    scale_by_muon({"x": names}, 4),
    optax.add_decayed_weights(0.01),
    optax.scale_by_learning_rate(0.1),
  )
  params = ({"x": jnp.ones(shape)}, {"x": jnp.ones(shape)})
  states = [ours.init(params[0]), theirs.init(params[1])]
  rng = np.random.default_rng(0)
  for _ in range(3):
    gradient = {"x": jnp.asarray(rng.normal(size=shape), jnp.float32)}
    updates = []
    for i, optimizer in enumerate((ours, theirs)):
      update, states[i] = optimizer.update(gradient, states[i], params[i])
      updates.append(update["x"])
    np.testing.assert_allclose(updates[0], updates[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("num_steps", [4, 5, 8])
def test_singular_values_near_zero_do_not_run_away(num_steps):
  """Those of momentum fall over orders of magnitude; rounding must not make them grow."""
  rng = np.random.default_rng(0)
  left, _ = np.linalg.qr(rng.normal(size=(64, 64)))
  right, _ = np.linalg.qr(rng.normal(size=(576, 64)))
  skewed = (right * np.logspace(0, -4, 64)) @ left
  made = np.linalg.svd(orthogonalize(jnp.asarray(skewed, jnp.float32), num_steps))[1]
  assert 1.0 < made.max() < 1.3


def test_checkpoints_of_optax_have_the_same_tree():
  config = OptimizerConfig(kind="muon")
  numbers = {"kernel": optax.contrib.MuonDimensionNumbers((1,), (2,)), "norm": None, "table": None}
  theirs = optax.contrib.muon(lambda count: 0.1, muon_weight_dimension_numbers=numbers)
  theirs = optax.chain(optax.clip_by_global_norm(1.0), theirs).init(PARAMS)
  ours = make_optimizer(config, 10, AXES).init(PARAMS)
  places = [jax.tree_util.tree_flatten_with_path(state)[0] for state in (ours, theirs)]
  assert [path for path, _ in places[0]] == [path for path, _ in places[1]]
  # Orbax also compares states without arrays: earlier versions had no mask for the decay.
  adam = ours[1].inner_states["adam"].inner_state
  before = optax.adamw(lambda count: 0.1).init(PARAMS | {"kernel": optax.MaskedNode()})
  assert jax.tree.structure(adam) == jax.tree.structure(before)


def test_number_of_newton_schulz_steps_matters():
  kernel = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))
  few, many = (
    update(
      OptimizerConfig(kind="muon", learning_rate=1.0, warmup_steps=0, muon_steps=steps),
      PARAMS | {"kernel": kernel},
    )["kernel"]
    for steps in (1, 5)
  )
  assert float(jnp.abs(few - many).max()) > 0.1
  with pytest.raises(ValueError, match="muon_steps=0"):
    OptimizerConfig(muon_steps=0)


def test_schedule():
  config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, final_fraction=0.1)
  schedule = learning_rate_schedule(config, 100)
  assert float(schedule(0)) == pytest.approx(0.2) and float(schedule(4)) == pytest.approx(1.0)
  assert float(schedule(9)) == pytest.approx(2.0) and schedule(10) < 2.0
  assert float(schedule(100)) == pytest.approx(0.2)


@pytest.mark.parametrize("warmup_steps", [0, 1, 2, 100])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_no_step_has_a_rate_of_zero(warmup_steps, num_steps):
  schedule = learning_rate_schedule(OptimizerConfig(warmup_steps=warmup_steps), num_steps)
  rates = [float(schedule(step)) for step in range(num_steps)]
  assert min(rates) > 0 and max(rates) == pytest.approx(1e-4)


def test_unknown_kind_is_named():
  with pytest.raises(ValueError, match="sgd"):
    OptimizerConfig(kind="sgd")


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("grad_clip_norm", -1.0),
    ("b1", 1.5),
    ("b2", -0.1),
    ("weight_decay", -3.0),
    ("learning_rate", 0.0),
  ],
)
def test_settings_that_cannot_be_are_named(field, value):
  with pytest.raises(ValueError, match=rf"optimizer\.{field}={value} must"):
    OptimizerConfig(**{field: value})
