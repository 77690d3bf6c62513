"""Caches of a continuous tokenizer: from posteriors, latents are drawn at every step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import open_stages, save_tokenizer

from videoar_jax.data.sources import latents
from videoar_jax.data.synthetic.sprites import SpritesSource
from videoar_jax.experiment import parse
from videoar_jax.experiment.defaults import default_config
from videoar_jax.experiment.validate import check_cache
from videoar_jax.models.nova.task import NovaLossConfig
from videoar_jax.planning.step_plan import _abstract_batch
from videoar_jax.tokenizers.pixels import to_float

NUM_CLIPS = 4


def make_config(**changes):
  config = default_config(
    {"tokenizer": "tokenizer", "cache": "cache", "generator": "generator"}, family="nova"
  )
  config.data.update(num_frames=5, resolution=(16, 16), frame_rate=4.0)
  config.text.update(tokenizer="words", length=16)
  config.tokenizer.update(num_channels=2, patch_size=4, base_channels=4, multipliers=(1, 1))
  config.tokenizer.update(strides=((2, 1),), num_groups=1, num_mid_blocks=0)
  config.generator.update(d_model=16, num_heads=1, num_video_layers=1, num_image_layers=2)
  config.generator.update(head_mlp_dim=8, num_head_layers=1, patch_size=1, video_patch_size=2)
  config.generator.update(mlp_ratio=1, time_base=3, has_motion=False, mixer_rank=2, noise="flow")
  config.stage.cache.update(num_clips=NUM_CLIPS, batch_size=NUM_CLIPS)
  config.stage.cache.update(changes)
  for name in ("tokenizer", "generator"):
    config.stage[name].loop.update(num_steps=2, batch_size=NUM_CLIPS)
    config.stage[name].loop.optimizer.update(kind="adamw", warmup_steps=1)
  return config


@pytest.fixture(scope="module")
def source():
  return SpritesSource("train", num_frames=5, resolution=(16, 16), frame_rate=4.0, version=2)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("posterior")
  save_tokenizer(make_config(), folder, seed=0)
  return folder


@pytest.fixture(scope="module")
def caches(workdir, source):
  """Stages with caches of both types, by type."""
  found = {}
  for dtype in ("float32", "float16"):
    stages = open_stages(make_config(posterior_dtype=dtype, path=str(workdir / dtype)), workdir)
    stages.encode(stages.run.caches[0], source)
    found[dtype] = stages
  return found


def read(stages, source):
  """Returns a batch of a cache, and that of the clips."""
  cache = stages.run.caches[0]
  index = latents.read_index(cache.folder(stages.workdir))
  encoded = latents.LatentsSource(cache.folder(stages.workdir), index)
  text = np.stack([stages.run.text.encoder.encode(source[i]["caption"]) for i in range(NUM_CLIPS)])
  stored = np.stack([encoded[i]["latents"] for i in range(NUM_CLIPS)])
  video = np.stack([source[i]["video"] for i in range(NUM_CLIPS)])
  return {"text": text, "latents": stored}, {"text": text, "video": video}


def test_losses_are_those_of_clips(caches, source):
  stages = caches["float32"]
  task = stages.make_task(stages.run.stages[-1])
  module, key = jax.jit(task.init)(jax.random.key(0)), jax.random.key(1)
  loss = jax.jit(task.loss, static_argnums=4)
  _, clips = read(stages, source)
  for is_training in (True, False):
    expected = loss(module, task.frozen, clips, key, is_training)[0]
    for dtype, rtol in (("float32", 1e-5), ("float16", 2e-3)):
      stored, _ = read(caches[dtype], source)
      assert stored["latents"].dtype == dtype and stored["latents"].shape[-1] == 4
      found = loss(module, task.frozen, stored, key, is_training)[0]
      np.testing.assert_allclose(found, expected, rtol=rtol)
  # Nothing is drawn if so asked; each step has other draws.
  latents_of = jax.jit(task._latents)
  stored, _ = read(stages, source)
  one, again, other, means = (
    np.asarray(latents_of(task.frozen, stored, each))
    for each in (key, key, jax.random.key(2), None)
  )
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 0.1 and np.abs(one - means).max() > 0.1
  task.settings = NovaLossConfig(sample_posterior=False)
  never = jax.jit(lambda *arguments: task._latents(*arguments))
  np.testing.assert_array_equal(never(task.frozen, stored, key), means)
  tokenizer = task.family.make_tokenizer(task.tokenizer.module(task.frozen))
  np.testing.assert_allclose(means, tokenizer.encode(to_float(clips["video"])), atol=1e-5)


def test_a_cache_of_another_type_is_stale(workdir, caches, source):
  stages = open_stages(
    make_config(posterior_dtype="float32", path=str(workdir / "float16")), workdir
  )
  with pytest.raises(ValueError, match=r"stale(.|\n)*dtype: 'float16' -> 'float32'"):
    check_cache(stages, stages.run.caches[0], source)


def test_a_cache_of_means_from_an_earlier_version_is_stale(workdir, source, tmp_path):
  stages = open_stages(make_config(path=str(tmp_path)), workdir)
  _, _, index = stages._encoder_of(stages.run.caches[0], source)
  old = dataclasses.replace(index, latent_shape=(3, 4, 4, 2), dtype="bfloat16")
  latents.write_index(tmp_path, old)
  text = (tmp_path / "index.json").read_text().replace(',\n  "dtype": "bfloat16"', "")
  (tmp_path / "index.json").write_text(text)
  with pytest.raises(ValueError, match=r"stale(.|\n)*latent_shape(.|\n)*Remove that folder"):
    check_cache(stages, stages.run.caches[0], source)


def test_plans_know_what_is_stored(caches):
  stages = caches["float16"]
  batch = _abstract_batch(stages.run, stages.run.stages[-1], stages.mesh)
  assert batch["latents"].shape == (NUM_CLIPS, 3, 4, 4, 4)
  assert batch["latents"].dtype == jnp.float16


def test_unknown_types_are_named():
  with pytest.raises(ValueError, match="posterior_dtype='int8' must be 'float16' or 'float32'"):
    parse.finalize(make_config(posterior_dtype="int8"))
