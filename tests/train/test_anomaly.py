"""Steps whose loss is not finite, or far above its average: abort or skip, and report."""

import json
import logging
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tasks import Batches, Log, Task

from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.runtime.input_stall import InputStallMeter
from videoar_jax.train import anomaly, loop
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.optimizer import OptimizerConfig
from videoar_jax.train.trainer import Trainer


def make_trainer(num_steps, **options):
  config = LoopConfig(num_steps, 2, OptimizerConfig(kind="adamw", warmup_steps=0), **options)
  return Trainer(Task(), config, make_mesh(MeshConfig(), jax.devices()[:1]), seed=0)


def train(folder, values, num_steps=6, **options):
  trainer = make_trainer(num_steps, **options)
  log, batches = Log(), Batches(values)
  state = loop.train(
    trainer, trainer.init(), batches, Checkpointer(folder / "checkpoints"), log, {}
  )
  return trainer, state, log


def bad_steps(folder):
  path = folder / "bad_steps.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_step_that_is_not_finite_stops_the_run_and_names_its_samples(tmp_path):
  with pytest.raises(
    FloatingPointError, match=r"loss of step 3 is nan; .*bad_steps\.jsonl.*'skip'"
  ):
    train(tmp_path, {2: np.nan})
  assert bad_steps(tmp_path) == [{"step": 3, "loss": "nan", "id": [30, 31], "bucket": [0, 0]}]


def test_a_skipped_step_leaves_no_trace(tmp_path):
  """Training continues as from the step before, with the next step's number."""
  trainer, state, log = train(tmp_path, {2: np.inf, 4: np.nan}, on_nan="skip", ema_decay=0.5)
  assert int(state["step"]) == 6 and sorted(log.records) == list(range(1, 7))
  assert [(line["step"], line["id"]) for line in bad_steps(tmp_path)] == [
    (3, [30, 31]),
    (5, [50, 51]),
  ]
  expected, batches = trainer.init(), Batches({})
  for step in range(6):
    video = next(batches)["video"]
    if step in (2, 4):
      expected = expected | {"step": expected["step"] + 1}
    else:
      expected, _ = trainer.step(expected, {}, {"video": video}, trainer.key)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(expected))
  # The guard is in the checkpoint.
  checkpointer = Checkpointer(tmp_path / "checkpoints", is_reader=True)
  restored, _ = checkpointer.restore(trainer.abstract_state)
  checkpointer.close()
  assert int(restored["anomaly"]["count"]) == 4
  jax.tree.map(np.testing.assert_array_equal, restored["anomaly"], state["anomaly"])


def test_a_run_that_was_stopped_goes_on_where_bad_steps_are_skipped(tmp_path):
  with pytest.raises(FloatingPointError):
    train(tmp_path, {2: np.nan}, save_every=2)
  trainer = make_trainer(6, on_nan="skip", spike=3.0)
  checkpointer = Checkpointer(tmp_path / "checkpoints")
  step, state, _ = checkpointer.restore_newest(trainer.abstract_state)
  assert step == 2
  batches, log = Batches({2: np.nan}), Log()
  batches.position = step
  state = loop.train(trainer, state, batches, checkpointer, log, {})
  assert int(state["step"]) == 6 and np.isfinite(log.records[6]["loss"])
  assert [line["step"] for line in bad_steps(tmp_path)] == [3]  # Met twice, told once.


def test_skipping_ends_after_too_many_steps_in_a_row(tmp_path, monkeypatch):
  monkeypatch.setattr(anomaly, "MAX_BAD_IN_A_ROW", 3)
  values = {0: np.nan, 1: np.nan, 2: np.nan, **dict.fromkeys(range(4, 9), np.nan)}
  with pytest.raises(
    FloatingPointError, match=r"loss of step 8 is nan.*The 3 steps before it were"
  ):
    train(tmp_path, values, num_steps=9, on_nan="skip")
  assert [line["step"] for line in bad_steps(tmp_path)] == [1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "discriminator_gradient_norm"])
def test_numbers_that_are_not_finite_are_bad(name):
  good = {"loss": 1.0, "gradient_norm": 1.0, "discriminator_gradient_norm": 1.0, "psnr": np.inf}
  good = jax.tree.map(jnp.float32, good)
  assert not anomaly.update(anomaly.init(), good, None)[0]
  bad = good | {name: jnp.float32(np.nan)}
  assert anomaly.update(anomaly.init(), bad, None)[0]
  assert anomaly.reason({k: float(v) for k, v in bad.items()}) == name


def test_a_loss_below_0_is_no_spike_but_one_far_above_its_average_is():
  guard = anomaly.init() | {"count": jnp.int32(200), "loss": jnp.float32(-1)}
  for loss, expected in ((-1.0, False), (-0.5, False), (0.9, False), (1.1, True)):
    is_bad, _ = anomaly.update(guard, {"loss": jnp.float32(loss)}, 3.0)
    assert bool(is_bad) == expected, loss


def test_a_spike_is_found_after_the_first_steps(tmp_path, monkeypatch):
  monkeypatch.setattr(anomaly, "_MEMORY", 3)
  values = {1: 100.0, 7: 100.0}  # The first is too early to tell.
  _, _, log = train(tmp_path, values, num_steps=9, on_nan="skip", spike=3.0)
  assert [line["step"] for line in bad_steps(tmp_path)] == [8]
  assert float(bad_steps(tmp_path)[0]["loss"]) == pytest.approx(log.records[8]["loss"])
  assert all(
    step == 8 or record["loss"] < 2000 or step == 2 for step, record in log.records.items()
  )


def test_the_average_is_over_good_steps():
  guard, losses, judged = anomaly.init(), [], []
  numbers = np.random.default_rng(0).uniform(1, 2, 150).astype(np.float32)
  numbers[[5, 120, 130]] = [50, 50, np.nan]
  update = jax.jit(
    lambda guard, loss: anomaly.update(guard, {"loss": loss, "gradient_norm": loss}, 4.0)
  )
  average = 0.0
  for loss in numbers:
    is_bad, guard = update(guard, loss)
    judged.append(bool(is_bad))
    if not is_bad:
      losses.append(loss)
      average += (loss - average) * max(1 / len(losses), 0.01)
    assert float(guard["loss"]) == pytest.approx(average, rel=1e-4)
  assert np.flatnonzero(judged).tolist() == [120, 130]


def test_waiting_is_measured_and_told_once(monkeypatch, caplog):
  clock = [0.0]
  monkeypatch.setattr("time.perf_counter", lambda: clock[0])
  monkeypatch.setattr(logging.getLogger("videoar_jax"), "propagate", True)
  waits = InputStallMeter()
  assert waits.share == 0
  for wait_s in (50.0, 1.0, 1.0):  # The first is for the pipeline to begin.
    with waits:
      clock[0] += wait_s
    clock[0] += 99.0
  assert waits.share == pytest.approx(2 / 299)
  waits.warn(3)
  assert not caplog.records
  with waits:
    clock[0] += 10
  waits.warn(4)
  waits.warn(5)
  [record] = caplog.records
  assert "up to step 4, the run waited for data 4% of the time" in record.getMessage()
  assert "raise data.num_threads" in record.getMessage()


def test_waiting_counts_once_the_step_under_way_has_ended(monkeypatch):
  clock, is_done = [0.0], threading.Event()
  monkeypatch.setattr("time.perf_counter", lambda: clock[0])
  monkeypatch.setattr(jax, "block_until_ready", lambda results: is_done.wait())
  waits = InputStallMeter()
  with waits:
    clock[0] += 50
  waits.follow(())
  with waits:  # The step runs all the time.
    clock[0] += 5
  assert waits.last == 0 and waits.share == 0
  with waits:
    clock[0] += 2
    is_done.set()
    while not waits._ended:
      time.sleep(0.001)
    clock[0] += 3
  assert waits.last == 3 and waits.share == pytest.approx(3 / 10)
  with waits:  # It ended before.
    clock[0] += 4
  assert waits.last == 4


@pytest.mark.parametrize(
  ("options", "message"),
  [({"on_nan": "go"}, r"on_nan='go' must be 'stop' or 'skip'"), ({"spike": 0.5}, r"spike=0\.5")],
)
def test_bad_settings_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    LoopConfig(1, 1, OptimizerConfig(), **options)
