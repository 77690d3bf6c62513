"""Infinity from config to images, through the commands, at a size that compiles fast."""

import dataclasses
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compiled_by
from jax.sharding import AbstractMesh
from tiny_infinity import make_config

import videoar_jax
from videoar_jax import convert, sample
from videoar_jax.experiment import parse, run
from videoar_jax.models.bits import scale_weights
from videoar_jax.models.infinity import sampler, task
from videoar_jax.models.infinity.config import InfinitySampling
from videoar_jax.models.infinity.family import sampled_resolution
from videoar_jax.models.infinity.layout import Layout
from videoar_jax.parallel.rules import ShardingError

PROMPTS = ["a large red circle moves left", "a small blue star moves up"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, "start_log", lambda path: None)
    folder = tmp_path_factory.mktemp("infinity") / "run"
    run.Run(make_config(), folder).train()
  return folder


@pytest.fixture(scope="module")
def model(workdir):
  return videoar_jax.load_model(workdir)


def records(workdir):
  lines = (workdir / "generator" / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if "per_s" not in k} for line in lines]


def test_it_resumes_bit_for_bit(workdir, tmp_path, monkeypatch):
  monkeypatch.setattr(run, "start_log", lambda path: None)
  whole = records(workdir)
  assert {"loss", "bit_accuracy", "bit_accuracy/scale_2"} <= whole[-1].keys()
  copy = tmp_path / "run"
  shutil.copytree(workdir, copy)
  shutil.rmtree(copy / "generator" / "checkpoints" / "4")
  assert run.Run(make_config(), copy).train()
  assert records(copy) == whole
  ours, theirs = (videoar_jax.load_model(folder).generator for folder in (copy, workdir))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_second_model_compiles_nothing(workdir, model):
  settings = {"seed": 3, "negative_prompt": PROMPTS[1]}
  expected = model.sample(PROMPTS[:1], **settings)
  scores = model.score(PROMPTS[:1], expected)
  other = videoar_jax.load_model(workdir)
  images, compiled = compiled_by(lambda: other.sample(PROMPTS[:1], **settings))
  found, more = compiled_by(lambda: other.score(PROMPTS[:1], expected))
  np.testing.assert_array_equal(images, expected)
  assert found == scores and not compiled + more


def test_weights_are_rounded_to_int8(workdir, tmp_path):
  assert convert.main(["model", f"--workdir={workdir}", f"--out={tmp_path / 'm'}"]) == 0
  models = [videoar_jax.load_model(path, dtype="int8") for path in (tmp_path / "m", workdir)]
  jax.tree.map(np.testing.assert_array_equal, *(each.generator for each in models))
  assert models[0].sample(PROMPTS, seed=1).shape == (2, 1, 16, 16, 3)


def test_images_are_sampled_and_scored(model):
  images = model.sample(PROMPTS, seed=1)
  assert images.shape == (2, 1, 16, 16, 3) and images.dtype == np.uint8
  assert model.num_steps() == 3
  alone = model.sample(PROMPTS[1:], 1, seed=1, sample_ids=[1], guidance=[2.0, 1.5], temperature=0.5)
  # One unit is the rounding of pixels.
  assert np.abs(alone[0].astype(int) - images[1]).max() <= 1
  other = model.sample(PROMPTS, seed=2)
  assert np.abs(other.astype(int) - images).max() > 1
  negative = model.sample(PROMPTS, seed=1, negative_prompt=PROMPTS[0], guidance="9")
  assert np.abs(negative.astype(int) - images).max() > 1
  greedy = [model.sample(PROMPTS, seed=seed, top_k=1) for seed in (1, 2)]
  np.testing.assert_array_equal(*greedy)
  scores = model.score(PROMPTS, images)
  assert scores["loss"].shape == (2,) and (scores["loss"] > 0).all()


def test_padding_that_all_prompts_have_is_left_out(model, monkeypatch):
  whole = model.sample(PROMPTS, seed=1, top_k=1, negative_prompt=PROMPTS[0])
  monkeypatch.setattr(sampler, "_ROWS", 4)
  # Six words and an end.
  assert model._texts(PROMPTS).shape == (2, 8)
  np.testing.assert_array_equal(model._texts(PROMPTS), model._texts(PROMPTS, PROMPTS[1]))
  assert model._texts(["red"], PROMPTS[0]).shape == (1, 8)
  assert model._texts(["red"]).shape == (1, 4)
  assert model._texts([""]).shape == (1, 4)
  cut = model.sample(PROMPTS, seed=1, top_k=1, negative_prompt=PROMPTS[0])
  assert np.abs(cut.astype(int) - whole).max() <= 1


def test_wrong_requests_are_named(model):
  image = np.zeros((16, 16, 3), np.uint8)
  for settings, text in (
    ({"num_frames": 5}, "makes images, of 1 frame"),
    ({"image": image}, "image: the model makes images from prompts"),
    ({"guidance": "much"}, "guidance=much is not a number"),
    ({"motion": 1.0}, "motion: no such setting; there are guidance"),
    ({"guidance_layer": -3}, "guidance_layer=-3: the network's layers are -1 to -2"),
  ):
    with pytest.raises(ValueError, match=text):
      model.sample(PROMPTS[:1], **settings)
  with pytest.raises(ValueError, match="cannot continue"):
    model.extend(image[None, None], PROMPTS[:1], 5)


def test_the_command_takes_the_flags_of_the_family(workdir, tmp_path, capsys):
  flags = [f"--workdir={workdir}", f"--prompt={PROMPTS[0]}", f"--out={tmp_path}"]
  more = ["--num_samples=1", "--guidance=3,2,1", "--temperature=0.7,1", "--top_k=1"]
  assert sample.main([*flags, *more]) == 0, capsys.readouterr().err
  assert len(list(tmp_path.glob("*.mp4"))) == 1
  for flag, text in (
    ("--motion=0.5", "--motion is a setting of nova, but the run's family is infinity"),
    ("--guidance=strong", "--guidance=strong is not a number"),
    ("--num_frames=5", "num_frames=5: the model makes images"),
  ):
    assert sample.main([*flags, flag]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
  ("field", "value", "text"),
  [
    ("data.num_frames", 5, "makes images; set it to 1"),
    ("generator.num_levels", 2, "num_levels=2 is less than the 3 scales of 16x16"),
    ("generator.patch_size", 2, "patch_size=2 does not divide all scales"),
    ("sampling.guidance_layer", -3, "guidance_layer=-3: the network has 2 layers"),
  ],
)
def test_impossible_configs_are_named(field, value, text):
  config = make_config()
  section, _, name = field.partition(".")
  config[section][name] = value
  with pytest.raises(ValueError, match=text):
    parse.finalize(config)


def test_heads_that_devices_do_not_divide_are_named():
  names = ("slice", "data", "fsdp", "sequence", "tensor")
  mesh = AbstractMesh((1, 1, 1, 2, 1), names)
  two, one = (parse.finalize(make_config(**{"generator.num_heads": num})) for num in (2, 1))
  two.family.check_mesh(two, mesh)
  with pytest.raises(ShardingError, match=r"num_heads=1 does not divide over mesh.tensor=1 x mesh"):
    one.family.check_mesh(one, mesh)


def test_public_networks_make_the_nearest_public_size(caplog):
  """Others make any size that their tokenizer codes."""
  for trained, wanted, expected in (
    ((256, 256), (300, 500), (384, 672)),
    ((256, 256), (512, 512), (512, 512)),
    ((256, 256), None, (256, 256)),
    ((64, 64), (64, 96), (64, 96)),
  ):
    config = make_config()
    config.data.resolution = trained
    config.tokenizer.update(patch_size=16, schedule="")
    found = parse.finalize(config)
    with caplog.at_level(logging.WARNING):
      size = sampled_resolution(found, found.generator_stages[0], wanted)
    assert size == expected
    assert ("nearest public size" in caplog.text) == (wanted not in (None, expected))
    caplog.clear()


def test_shares_of_flipped_bits_are_whole_percents():
  ratios = np.asarray(task.draw_ratios(jax.random.key(0), 4000, 0.3))
  assert set(np.round(ratios * 100).astype(int)) == set(range(31))
  np.testing.assert_allclose(ratios * 100, np.round(ratios * 100), atol=1e-4)
  # As in the public code, in which 100 * 0.29 + 1 is just less than 30.
  assert round(float(task.draw_ratios(jax.random.key(0), 4000, 0.29).max()) * 100) == 28
  assert not task.draw_ratios(jax.random.key(0), 5, 0.0).any()


def test_later_layers_are_dropped_more_often():
  scales = np.asarray(task.draw_branch_scales(jax.random.key(0), 3, 20_000, 0.4))
  np.testing.assert_allclose(scales.mean((1, 2)), 1, atol=0.02)
  np.testing.assert_allclose((scales == 0).mean((1, 2)), [0, 0.2, 0.4], atol=0.02)
  assert not (scales[2, 0] == scales[2, 1]).all()


def test_the_loss_weighs_scales_and_changes_only_in_training():
  config = parse.finalize(make_config())
  layout = Layout(((1, 1), (2, 2), (4, 4)))
  latents = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 4))
  text = jnp.asarray(np.stack([config.text.encoder.encode(prompt) for prompt in PROMPTS]))
  batch = {"text": text, "latents": latents}
  values = {}
  for weighting in ("none", "sqrt"):
    settings = task.InfinityLossConfig(scale_weighting=weighting)
    own = task.InfinityTask(
      config.generator, (layout,), settings, None, {}, config.text.encoder, InfinitySampling()
    )
    module = own.init(jax.random.key(1))
    module.head.kernel[...] = 0.5 * jax.random.normal(jax.random.key(2), module.head.kernel.shape)
    run_loss = jax.jit(own.loss, static_argnums=4)
    loss, metrics = run_loss(module, {}, batch, jax.random.key(3), False)
    losses, _ = task.predict(module, layout, text, latents)
    expected = np.average(np.mean(losses, (0, 2)), weights=scale_weights(layout.sizes, weighting))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert "dropped_share" not in metrics
    values[weighting] = [
      float(run_loss(module, {}, batch, jax.random.key(seed), True)[0]) for seed in (3, 4)
    ]
  assert values["none"][0] != values["none"][1]
  sizes = np.array(layout.sizes)
  by_hand = np.repeat(np.sqrt(16 / sizes), sizes)
  np.testing.assert_allclose(
    scale_weights(layout.sizes, "sqrt"), by_hand * len(by_hand) / by_hand.sum(), rtol=1e-5
  )
  for name in ("flip_strength", "text_dropout", "layer_dropout"):
    with pytest.raises(ValueError, match=f"{name}=1"):
      dataclasses.replace(task.InfinityLossConfig(), **{name: 1.0})
