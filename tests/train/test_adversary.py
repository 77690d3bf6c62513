"""Adversarial training: gradients of each network, start step, adaptive weight, resume."""

import contextlib
import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import AUTOENCODER

from videoar_jax.experiment.parse import finalize
from videoar_jax.experiment.stages import Stages
from videoar_jax.interop import weights
from videoar_jax.parallel.mesh import MeshConfig, make_mesh, shard_batch
from videoar_jax.parallel.rules import place
from videoar_jax.tokenizers import adversarial
from videoar_jax.tokenizers import task as tokenizer_task
from videoar_jax.tokenizers.bsq import quantizer
from videoar_jax.tokenizers.bsq.task import TokenizerLossConfig, TokenizerTask
from videoar_jax.tokenizers.discriminator import DiscriminatorConfig
from videoar_jax.tokenizers.pixels import to_float
from videoar_jax.tokenizers.task import AdversarialConfig
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.logging import RunLog
from videoar_jax.train.loop import train
from videoar_jax.train.optimizer import OptimizerConfig
from videoar_jax.train.trainer import Trainer

SCHEDULE = ((1, 1), (4, 4))
ADVERSARIAL = AdversarialConfig(
  weight=0.5,
  start_step=2,
  r1=0.1,
  lecam=0.2,
  lecam_decay=0.5,
  discriminator=DiscriminatorConfig(base_channels=4, multipliers=(1,), strides=((2, 2),)),
  optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.0),
)


def make_task(**settings):
  loss = dataclasses.replace(ADVERSARIAL, **settings)
  return TokenizerTask(AUTOENCODER, SCHEDULE, TokenizerLossConfig(adversarial=loss))


@pytest.fixture(scope="module")
def networks():
  task = make_task()

  @jax.jit
  def init(key):
    return task.init(key), task.adversary.init(jax.random.fold_in(key, 1))

  # Away from the start, where some gradients are zero by chance of the initialisation.
  generator = np.random.default_rng(0)

  def draw(x):
    return x + 0.1 * generator.standard_normal(x.shape).astype(np.float32)

  return jax.tree.map(draw, init(jax.random.key(0)))


@pytest.fixture(scope="module")
def batch():
  video = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
  return {"video": jnp.asarray(video)}


AVERAGES = {"real": jnp.float32(0.3), "fake": jnp.float32(-0.2)}


def adversarial_loss(task, networks, batch, step):
  """Returns the gradients of both networks, metrics and averages."""

  def loss(module, discriminator):
    value, *rest = task.adversarial_loss(
      module, discriminator, AVERAGES, task.frozen, batch, jax.random.key(5), jnp.int32(step)
    )
    return value, rest

  return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*networks)


def assert_close(tree, other, atol=1e-6):
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, atol=atol, rtol=2e-4)


def reconstruct(module, video):
  quantized = quantizer.quantize(module.encoder(video), SCHEDULE)
  return module.decoder(quantized.quantized), quantized


@pytest.mark.parametrize("kind", adversarial.KINDS)
def test_each_network_gets_the_gradient_of_its_own_loss(networks, batch, kind):
  task = make_task(kind=kind)
  (by_module, by_rival), (metrics, lecam_ema) = adversarial_loss(task, networks, batch, step=2)
  video = to_float(batch["video"])

  def autoencoder(module):
    pixels, quantized = reconstruct(module, video)
    weights = task.weights
    loss = weights.l1 * jnp.mean(jnp.abs(pixels - video))
    loss += weights.commitment * quantizer.commitment_loss(quantized)
    loss += weights.entropy * quantizer.entropy_loss(quantized)
    return loss + 0.5 * adversarial.autoencoder_loss(kind, networks[1](pixels))

  value, expected = jax.jit(jax.value_and_grad(autoencoder))(networks[0])
  assert_close(by_module, expected)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)

  made, _ = jax.jit(reconstruct)(networks[0], video)

  def discriminator(discriminator):
    real, fake = discriminator(video), discriminator(made)
    loss = adversarial.discriminator_loss(kind, real, fake)
    loss += 0.2 * adversarial.lecam_penalty(AVERAGES, real, fake)
    return loss + 0.1 * adversarial.r1_penalty(discriminator, video), (real, fake)

  expected, (real, fake) = jax.jit(jax.grad(discriminator, has_aux=True))(networks[1])
  assert_close(by_rival, expected)
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(by_rival)) > 1e-3
  np.testing.assert_allclose(lecam_ema["real"], 0.15 + 0.5 * real.mean(), rtol=1e-5)
  np.testing.assert_allclose(lecam_ema["fake"], -0.1 + 0.5 * fake.mean(), rtol=1e-5)


def test_before_its_start_the_discriminator_changes_nothing(networks, batch):
  (by_module, by_rival), (metrics, _) = adversarial_loss(make_task(), networks, batch, step=1)
  plain = TokenizerTask(AUTOENCODER, SCHEDULE, TokenizerLossConfig())
  gradient = jax.grad(lambda module: plain.loss(module, {}, batch, jax.random.key(5), True)[0])
  assert_close(by_module, jax.jit(gradient)(networks[0]))
  assert all((x == 0).all() for x in jax.tree.leaves(by_rival))
  assert metrics["adversarial_weight"] == 0


def test_adaptive_weight_makes_both_pull_equally_hard(networks, batch):
  task = make_task(is_adaptive=True, weight=1.0)
  _, (metrics, _) = adversarial_loss(task, networks, batch, step=2)
  module, discriminator = networks
  video = to_float(batch["video"])
  latents = jax.jit(reconstruct)(module, video)[1].quantized

  def by_decoder(loss):
    gradient = jax.jit(jax.grad(lambda decoder: loss(decoder(latents))))(module.decoder)
    return jnp.linalg.norm(gradient.conv_out.kernel[...])

  pull = by_decoder(lambda pixels: jnp.mean(jnp.abs(pixels - video)))
  push = by_decoder(
    lambda pixels: adversarial.autoencoder_loss("non_saturating", discriminator(pixels))
  )
  np.testing.assert_allclose(metrics["adversarial_weight"], pull / (push + 1e-4), rtol=1e-4)


class Log(RunLog):
  """Records what the loop reports."""

  def __init__(self):
    self.steps = {}

  def scalars(self, step, values, is_line):
    self.steps[step] = {k: v for k, v in values.items() if not k.endswith("_per_s")}

  def videos(self, step, videos):
    pass

  def flush(self):
    pass


def batches():
  def read(i):
    return {"video": np.random.default_rng(i).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)}

  dataset = grain.MapDataset.range(100).map(read)
  return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def test_resumed_from_any_step_it_is_the_same_bit_for_bit(tmp_path):
  """Both networks, both optimizers, LeCAM's lecam_ema, the averaged parameters, the log."""
  optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
  config = LoopConfig(num_steps=5, batch_size=2, optimizer=optimizer, ema_decay=0.9, save_every=1)
  mesh = make_mesh(MeshConfig(data=1), devices=jax.local_devices()[:1])
  trainer = Trainer(make_task(), config, mesh, seed=3)
  media = next(batches())
  whole, log = Checkpointer(tmp_path / "whole", max_to_keep=None), Log()
  end = train(trainer, trainer.init(), batches(), whole, log, media)
  reader = Checkpointer(tmp_path / "whole", is_reader=True)
  # Until its start the discriminator rests: weights, optimizer with its schedule, averages.
  resting, _ = reader.restore(trainer.abstract_state, 2)
  jax.tree.map(
    np.testing.assert_array_equal, resting["discriminator"], trainer.init()["discriminator"]
  )
  assert float(jnp.abs(end["discriminator"]["lecam_ema"]["real"])) > 0
  for step in (1, 3):
    state, position = reader.restore(trainer.abstract_state, step)
    iterator, again = batches(), Log()
    iterator.set_state(position)
    rest = Checkpointer(tmp_path / f"from_{step}")
    resumed = train(trainer, state, iterator, rest, again, media)
    jax.tree.map(np.testing.assert_array_equal, resumed, end)
    assert again.steps == {i: log.steps[i] for i in range(step + 1, 6)}
  reader.close()


def test_without_the_weights_of_lpips_it_says_how_to_make_them(tmp_path):
  loss = TokenizerLossConfig(lpips=1.0, lpips_weights=str(tmp_path / "no"))
  with pytest.raises(ValueError, match=r"python -m videoar_jax\.convert lpips"):
    TokenizerTask(AUTOENCODER, SCHEDULE, loss)


def test_perceptual_loss_is_lpips_between_frames(weights_of, monkeypatch):
  from videoar_jax.tokenizers import lpips

  frozen = {"lpips": weights_of("lpips", lpips.shapes())}
  video = np.random.default_rng(0).uniform(-1, 1, (2, 1, 2, 16, 16, 3)).astype(np.float32)
  key = jax.random.key(0)
  monkeypatch.setattr(weights, "load", lambda path, shapes: frozen["lpips"])

  def reconstruction(**settings):
    loss = TokenizerLossConfig(l1=0.0, lpips=2.0, **settings)
    return TokenizerTask(AUTOENCODER, SCHEDULE, loss).reconstruction(frozen, *video, key)

  expected = [float(lpips.lpips(frozen["lpips"], *video[:, 0, i])) for i in range(2)]
  loss, metrics = reconstruction()
  mean = np.mean(expected)
  np.testing.assert_allclose([loss, metrics["lpips"]], [2 * mean, mean], rtol=1e-5)
  one = float(reconstruction(lpips_frames=1)[1]["lpips"])
  assert min(abs(one - value) for value in expected) < 1e-5 * one


@pytest.mark.parametrize(
  ("field", "value"), [("weight", -1.0), ("kind", "wasserstein"), ("lecam_decay", 1.0)]
)
def test_impossible_settings_are_named(field, value):
  with pytest.raises(ValueError, match=field):
    dataclasses.replace(ADVERSARIAL, **{field: value})


def moments(state):
  """Returns the optimizers' running means of gradients and of their squares.

  Unlike parameters after a step of Adam, they do not depend on the sign of gradients near zero,
  which the order of summation may change.
  """
  return jax.tree.map(np.asarray, (state["opt_state"], state["discriminator"].get("opt_state", {})))


def assert_same_moments(state, other):
  for one, two in zip(*map(jax.tree.leaves, (moments(state), moments(other))), strict=True):
    np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-9 * np.abs(one).max())


@pytest.fixture
def in_float64(monkeypatch):
  """Gradients are sums that cancel: in float32 their rounding differs by machine."""
  # Networks compute in the type of their input.
  monkeypatch.setattr(tokenizer_task, "to_float", lambda video: to_float(video).astype(jnp.float64))
  with jax.enable_x64(True):
    yield


@pytest.mark.usefixtures("in_float64")
def test_two_devices_train_as_one():
  """The entropy's mean bits, LeCAM's averages and both gradients are those of the global batch."""
  optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
  config = LoopConfig(num_steps=3, batch_size=2, optimizer=optimizer)
  meshes = [make_mesh(MeshConfig(data=1, fsdp=num), devices=jax.devices()[:num]) for num in (1, 2)]
  trainers = [
    Trainer(make_task(start_step=0, is_adaptive=True), config, mesh, seed=3) for mesh in meshes
  ]
  states, iterator = [trainer.init() for trainer in trainers], batches()
  for _ in range(3):
    clips, found = next(iterator), []
    for i, (trainer, mesh) in enumerate(zip(trainers, meshes, strict=True)):
      with jax.set_mesh(mesh):
        batch = shard_batch(clips, mesh)
        states[i], metrics = trainer.step(states[i], trainer.task.frozen, batch, trainer.key)
      found.append(jax.device_get(metrics))
    for name in found[0].keys() - {"parameter_norm"}:  # After the step, see `moments`.
      value = found[0][name]
      np.testing.assert_allclose(found[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert_same_moments(*states)
    # Each step starts from one state: what rounding makes of it is not handed on.
    states[1] = jax.tree.map(place, jax.device_get(states[0]), trainers[1].shardings)
  kernel = states[1]["discriminator"]["params"]["conv_out"]["kernel"]
  assert len(kernel.sharding.device_set) == 2


def two_stages(discriminator, num_steps=1, settings=(), **second_stage):
  """Returns a run's stages; the second one may have another discriminator."""
  stage = {"kind": "tokenizer", "loop": {"num_steps": num_steps, "batch_size": 2} | dict(settings)}
  stage["loop"]["optimizer"] = {"learning_rate": 1e-2, "warmup_steps": 0}
  first = dataclasses.asdict(ADVERSARIAL) | {"start_step": num_steps - 1}
  second = first | {"discriminator": first["discriminator"] | discriminator}
  return finalize(
    {
      "data": {"num_frames": 3, "resolution": (8, 8)},
      "tokenizer": dataclasses.asdict(AUTOENCODER),
      "stages": ("first", "second"),
      "stage": {
        "first": stage | {"loss": {"adversarial": first}},
        "second": stage | {"loss": {"adversarial": second}} | second_stage,
      },
    }
  )


@pytest.mark.parametrize("discriminator", [{}, {"base_channels": 8}])
def test_the_next_stage_goes_on_with_the_same_discriminator(tmp_path, caplog, discriminator):
  run = two_stages(discriminator)
  stages = Stages(run, tmp_path, make_mesh(MeshConfig(), devices=jax.devices()[:1]))
  first, second = (
    Trainer(stages.make_task(stage), stage.loop, stages.mesh, seed)
    for seed, stage in enumerate(run.stages)
  )
  state = first.init()
  state["discriminator"]["lecam_ema"] = {"real": jnp.float32(0.3), "fake": jnp.float32(-0.2)}
  checkpointer = Checkpointer(stages.checkpoints(run.stages[0]))
  checkpointer.save(1, state, {})
  checkpointer.close()
  with caplog.at_level("INFO"):
    got = stages.first_state(run.stages[1], second, 1)
  assert_close(got["params"], state["params"], atol=0)
  if discriminator:
    assert "its discriminator starts from scratch" in caplog.text
    assert float(got["discriminator"]["lecam_ema"]["real"]) == 0
  else:
    assert_close(got["discriminator"]["params"], state["discriminator"]["params"], atol=0)
    assert_close(got["discriminator"]["lecam_ema"], state["discriminator"]["lecam_ema"], atol=0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(got["discriminator"]["opt_state"]))


def test_a_stage_that_continues_is_the_same_run(tmp_path):
  """Two steps and two more equal four on the same clips: every number of the state is the same."""
  run = two_stages({}, num_steps=2, settings={"ema_decay": 0.9}, init={"with_optimizer": True})
  mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
  stages = Stages(run, tmp_path, mesh)
  whole = two_stages({}, num_steps=4, settings={"ema_decay": 0.9}).stages[0]
  whole = dataclasses.replace(whole, loss=run.stages[0].loss)
  trainers = [stages.make_trainer(stage, 0) for stage in run.stages]
  trainers.append(Trainer(stages.make_task(whole), whole.loop, mesh, 0))

  def train(trainer, state, clips):
    rates = []
    with jax.set_mesh(mesh):
      for batch in clips:
        batch = {"video": jnp.asarray(batch["video"])}
        state, metrics = trainer.step(state, trainer.task.frozen, batch, trainer.key)
        rates.append(float(metrics["learning_rate"]))
    return state, rates

  clips = [batch for batch, _ in zip(batches(), range(4), strict=False)]
  expected, expected_rates = train(trainers[2], trainers[2].init(), clips)
  state, rates = train(trainers[0], trainers[0].init(), clips[:2])
  with contextlib.closing(Checkpointer(stages.checkpoints(run.stages[0]))) as checkpointer:
    checkpointer.save(2, state, {})
  state = stages.first_state(run.stages[1], trainers[1], 0)
  assert int(state["step"]) == 0
  state, more = train(trainers[1], state, clips[2:])
  assert rates + more == expected_rates
  assert int(state.pop("step")) == 2 and int(expected.pop("step")) == 4
  # The average of the losses is the stage's own.
  assert int(state.pop("anomaly")["count"]) == 2 and int(expected.pop("anomaly")["count"]) == 4
  jax.tree.map(np.testing.assert_array_equal, state, expected)


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"loop": {"num_steps": 1, "batch_size": 2, "optimizer": {}}}, "loop.optimizer differs from"),
    ({"init": {"from": "w.safetensors", "with_optimizer": True}}, "exclude each other"),
    ({"init": {"with_optimizer": 1}}, "must be of type bool"),
  ],
)
def test_stages_that_cannot_continue_are_named(change, said):
  with pytest.raises(ValueError, match=said):
    two_stages({}, **{"init": {"with_optimizer": True}, **change})
  with pytest.raises(
    ValueError, match=r"stage\.second\.loss\.adversarial differs from stage\.first"
  ):
    two_stages({"base_channels": 8}, init={"with_optimizer": True})


@pytest.mark.usefixtures("in_float64")
def test_accumulated_gradients_are_those_of_the_batch():
  """Four clips in two parts: losses that are means over a batch are means over its parts.

  On one device and on two, as on one at once.
  """
  optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
  task = TokenizerTask(AUTOENCODER, SCHEDULE, TokenizerLossConfig(entropy=0.0))
  video = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8, 3), np.uint8)
  states, found = [], []
  for num_devices, grad_accum_steps in ((1, 1), (1, 2), (2, 2)):
    mesh = make_mesh(MeshConfig(data=1, fsdp=num_devices), devices=jax.devices()[:num_devices])
    config = LoopConfig(2, 4, optimizer, grad_accum_steps=grad_accum_steps)
    trainer = Trainer(task, config, mesh, seed=3)
    with jax.set_mesh(mesh):
      batch = shard_batch({"video": video}, mesh)
      state, metrics = trainer.step(trainer.init(), task.frozen, batch, trainer.key)
    states.append(state)
    found.append({name: float(metrics[name]) for name in ("loss", "gradient_norm")})
  for state, metrics in zip(states[1:], found[1:], strict=True):
    assert metrics == pytest.approx(found[0], rel=1e-4)
    assert_same_moments(states[0], state)
