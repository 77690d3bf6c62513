"""Held-out loss and metrics during training, without any effect on training."""

import contextlib
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tasks import Batches, Log, Task

from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.runtime.goodput import GoodputTracker
from videoar_jax.runtime.preemption import Preempted
from videoar_jax.train import loop
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.evaluation import Evaluator
from videoar_jax.train.optimizer import OptimizerConfig
from videoar_jax.train.trainer import Trainer

HELD_OUT = [
  {"video": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)},
  {"video": np.array([[0.0, 0.0], [0.0, -4.0]], np.float32)},
]


class NoisyTask(Task):
  """Draws random numbers in training and evaluation, and reports which it is."""

  def loss(self, module, frozen, batch, key, is_training):
    noise = jax.random.normal(key, ()) * (0.1 if is_training else 0.0)
    loss = jnp.mean((module.w[...] - batch["video"] + noise) ** 2)
    return loss, {"is_training": jnp.float32(is_training), "draw": jax.random.uniform(key)}


def make_trainer(num_steps=5, seed=0, **options):
  optimizer = OptimizerConfig(kind="adamw", warmup_steps=0)
  config = LoopConfig(num_steps, 2, optimizer, save_every=1, **options)
  return Trainer(NoisyTask(), config, make_mesh(MeshConfig(data=2)), seed)


def train(folder, trainer, state=None, position=0, batches=None, clock=None):
  log, batches = Log(), batches or Batches({})
  batches.position = position
  state = trainer.init() if state is None else state
  checkpointer = Checkpointer(folder / "checkpoints", max_to_keep=None)
  state = loop.train(trainer, state, batches, checkpointer, log, {}, clock, HELD_OUT)
  return state, log.records


def training_alone(records):
  """Returns all metrics except held-out ones and speed."""
  return {
    step: {k: v for k, v in values.items() if k != "steps_per_s" and not k.startswith("eval/")}
    for step, values in records.items()
  }


def evaluated(records):
  return {
    step: {k: v for k, v in values.items() if k.startswith("eval/")}
    for step, values in records.items()
    if "eval/loss" in values
  }


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_training_is_the_same_with_and_without_it_and_resumes(tmp_path, ema_decay):
  end, without = train(tmp_path / "without", make_trainer(ema_decay=ema_decay))
  trainer, clock = make_trainer(ema_decay=ema_decay, eval_every=2), GoodputTracker()
  same, records = train(tmp_path / "with", trainer, clock=clock)
  jax.tree.map(np.testing.assert_array_equal, same, end)
  assert training_alone(records) == training_alone(without) and not evaluated(without)
  assert sorted(evaluated(records)) == [2, 4, 5]
  assert clock.seconds()["evaluation"] > 0

  # What is logged is of the parameters that samples are made with, and of all batches alike.
  found = evaluated(records)[5]
  w = np.asarray(end["ema" if ema_decay else "params"]["w"])
  expected = np.mean([np.mean((w - batch["video"]) ** 2) for batch in HELD_OUT])
  assert found["eval/loss"] == pytest.approx(expected, rel=1e-6)
  assert found["eval/is_training"] == 0 and records[5]["is_training"] == 1
  assert len({values["eval/draw"] for values in evaluated(records).values()}) == 1
  assert len({values["draw"] for values in records.values()}) == 5

  reader = Checkpointer(tmp_path / "with" / "checkpoints", is_reader=True)
  with contextlib.closing(reader):
    state, _ = reader.restore(trainer.abstract_state, 3)
  resumed, rest = train(tmp_path / "resumed", trainer, state, position=3)
  jax.tree.map(np.testing.assert_array_equal, resumed, end)
  assert evaluated(rest) == {step: evaluated(records)[step] for step in (4, 5)}


def test_the_key_depends_on_the_seed_alone():
  draws = []
  for seed in (0, 0, 1):
    trainer = make_trainer(seed=seed, eval_every=1)
    with jax.set_mesh(trainer.mesh):
      draws.append(Evaluator(trainer, HELD_OUT)(trainer.init(), {})["eval/draw"])
  assert draws[0] == draws[1] != draws[2]


def test_the_watchdog_rests_meanwhile(tmp_path, monkeypatch):
  rests, rest = [], loop.Watchdog.rest

  def noted(self, what, bound_s=0):
    rests.append(what)
    return rest(self, what, bound_s)

  monkeypatch.setattr(loop.Watchdog, "rest", noted)
  train(tmp_path, make_trainer(3, eval_every=2))
  assert rests.count("the evaluation") == 2


def test_a_run_that_is_told_to_stop_saves_at_once(tmp_path):
  class Stopping(Batches):
    def __next__(self):
      if self.position == 1:
        os.kill(os.getpid(), signal.SIGTERM)
      return super().__next__()

  trainer = make_trainer(eval_every=2)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
    patch.setattr(Evaluator, "__call__", lambda *_: pytest.fail("evaluated"))
    train(tmp_path, trainer, batches=Stopping({}))
  assert (tmp_path / "checkpoints" / "2").is_dir()


class Careless(Batches):
  """Makes an implicit transfer to the device."""

  def __next__(self):
    batch = super().__next__()
    return batch | {"video": batch["video"] + np.asarray(jnp.zeros(2) + 1.0)}


def test_a_transfer_that_nobody_asked_for_is_refused(tmp_path):
  with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
    train(tmp_path, make_trainer(), batches=Careless({}))


def test_what_a_task_keeps_on_the_host_is_put_on_the_devices_once(tmp_path):
  trainer = make_trainer(eval_every=2)
  trainer.task.frozen = {"table": np.ones(3, np.float32)}
  _, records = train(tmp_path, trainer)
  assert sorted(records) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
  ("options", "message"),
  [({"eval_every": -1}, "eval_every=-1"), ({"eval_batches": 0}, "eval_batches=0")],
)
def test_bad_settings_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make_trainer(**options)
