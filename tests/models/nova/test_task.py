"""The task of NOVA: what it freezes and decays, and videos that start from images."""

import logging

import jax
import numpy as np
import pytest
from tiny_nova import make_config
from tiny_runs import save_tokenizer

from videoar_jax.experiment import parse
from videoar_jax.experiment.stages import Stages
from videoar_jax.experiment.validate import check_init
from videoar_jax.interop import weights
from videoar_jax.models.nova.config import NovaConfig, NovaSampling
from videoar_jax.models.nova.network import template_of
from videoar_jax.models.nova.task import NovaLossConfig, NovaTask
from videoar_jax.parallel.mesh import make_mesh
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.train.state import flatten
from videoar_jax.train.trainer import Trainer

# As in the public code.
IMAGES = ("temporal.text.norm", "temporal.time", "temporal.time_norm", "temporal.patch")
VIDEOS = ("temporal.text.norm", "temporal.motion")
IMAGES_ARE = {"data.num_frames": 1, "generator.time_base": 1, "generator.mixer_rank": None}


def make_task(frozen):
  config = NovaConfig(
    d_model=16, num_heads=1, num_video_layers=1, num_image_layers=2, head_mlp_dim=8,
    num_head_layers=1, text_dim=3, text_length=2,
  )  # fmt: skip
  settings = NovaLossConfig(frozen=frozen)

  class Encoder:
    text_dim = 3

    def null(self):
      return np.zeros((2, 3), np.float32)

  kl = TOKENIZERS["kl"]
  task = NovaTask(
    config, (1, 4, 4), settings, kl, None, {}, Encoder(), NovaSampling(), kl.network()
  )
  return task, list(flatten(template_of(config).shapes))


def test_padding_is_never_trained_and_only_norms_do_not_decay():
  task, names = make_task(VIDEOS)
  frozen = {name for name in names if not task.is_trained(name)}
  assert frozen == {
    name
    for name in names
    if name.startswith(("temporal.text.norm.", "temporal.motion.", "temporal.text.padding"))
  }
  free, _ = make_task(())
  assert [name for name in names if not free.is_trained(name)] == ["temporal.text.padding"]
  spared = {name for name in names if not task.is_decayed(name)}
  assert len(spared) == 2 * (2 * 3 + 1 + 4)  # Of three stacks of blocks, the head's, and four more.
  assert all(name.endswith(("norm.scale", "norm.bias")) for name in spared)
  assert {"temporal.start", "spatial.unknown", "head.out.bias"} <= set(names) - spared


def test_tokens_are_those_of_text_and_motion_and_of_both_transformers():
  task, _ = make_task(())
  assert task.rates(2.0)["tokens_per_s"] == 2 * (2 + 2 + 1 + 4)


def test_parts_that_are_not_there_are_named():
  for frozen, message in (
    (
      ("temporal.motions",),
      r"stage\.generator\.loss\.frozen names 'temporal\.motions'.* it has .*",
    ),
    (("temporal.motion",), r"has temporal\.blocks, temporal\.mixer, temporal\.norm"),
    (("decoder",), "it has head, spatial, temporal"),
    (("temporal", "spatial", "head"), "leaves nothing to train"),
  ):
    with pytest.raises(ValueError, match=message):
      parse.finalize(make_config(**{"stage.generator.loss.frozen": frozen}))
  parse.finalize(make_config(**IMAGES_ARE | {"stage.generator.loss.frozen": IMAGES}))


def test_an_optimizer_goes_on_with_the_same_parts_frozen():
  config = make_config()
  config.stages = (*config.stages, "second")
  config.stage.second = config.stage.generator.copy_and_resolve_references()
  config.stage.second.init.with_optimizer = True
  assert parse.finalize(config).stages[-1].init.with_optimizer
  config.stage.second.loss.frozen = ("spatial",)
  with pytest.raises(
    ValueError, match=r"stage\.second\.loss\.frozen differs from stage\.generator"
  ):
    parse.finalize(config)


def first_state(config, workdir):
  run = parse.finalize(config)
  stages, stage = Stages(run, workdir, make_mesh(run.mesh)), run.stages[-1]
  check_init(stages)
  trainer = stages.make_trainer(stage, seed=0)
  return trainer, stages.first_state(stage, trainer, 0)


def test_videos_start_from_images(tmp_path, caplog):
  images = make_config(**IMAGES_ARE)
  save_tokenizer(images, tmp_path, seed=0)
  _, state = first_state(images, tmp_path)
  given = {name: np.asarray(x) for name, x in flatten(state["params"]).items()}
  weights.save(tmp_path / "images.safetensors", given)
  start = {"from": str(tmp_path / "images.safetensors"), "missing": "random"}
  changes = {"generator.has_motion": True, "stage.generator.init": start}
  with caplog.at_level(logging.INFO):
    trainer, state = first_state(make_config(**changes), tmp_path)
  random = flatten(trainer.init()["params"])
  added = set()
  for name, value in flatten(state["params"]).items():
    np.testing.assert_array_equal(value, given[name] if name in given else random[name])
    added |= set() if name in given else {name}
  assert {name.split(".")[1] for name in added} == {"motion", "mixer"}
  assert all(name in caplog.text for name in added) and "temporal.patch" not in caplog.text
  # Without the setting, or with another width, they are refused.
  with pytest.raises(ValueError, match=r"stage\.generator\.init\.from=.*missing: temporal\.mi"):
    first_state(
      make_config(**changes | {"stage.generator.init": {"from": start["from"]}}), tmp_path
    )
  with pytest.raises(ValueError, match=r"shape: head\.blocks\.up\.kernel"):
    first_state(make_config(**changes, **{"generator.head_mlp_dim": 16}), tmp_path)
  for wrong, message in (
    ({"missing": "zero"}, r"stage\.generator\.init: missing='zero' is unknown"),
    ({"missing": "random"}, "missing='random' is for a file of weights; set from"),
  ):
    with pytest.raises(ValueError, match=message):
      parse.finalize(make_config(**{"stage.generator.init": wrong}))


def test_a_step_leaves_frozen_parts_as_they_are(tmp_path):
  config = make_config(**{"stage.generator.loss.frozen": ("spatial", "temporal.text.norm")})
  save_tokenizer(config, tmp_path, seed=0)
  trainer, state = first_state(config, tmp_path)
  assert isinstance(trainer, Trainer)
  run = parse.finalize(config)
  t, h, w = run.tokenizer.latent_shape(5, (16, 16))
  latents = jax.random.normal(jax.random.key(0), (2, t, h, w, run.tokenizer.num_encoded))
  batch = {"text": np.ones((2, 16), np.int32), "latents": latents}
  before = jax.device_get(state["params"])
  with jax.set_mesh(trainer.mesh):
    state, _ = trainer.step(state, trainer.task.frozen, batch, trainer.key)
  before, after = flatten(before), flatten(jax.device_get(state["params"]))
  same = {name for name in after if np.array_equal(before[name], after[name])}
  frozen = {name for name in after if name.startswith(("spatial.", "temporal.text.norm."))}
  # The bias of keys changes no output.
  assert frozen <= same and all(name.endswith("key.bias") for name in same - frozen)
