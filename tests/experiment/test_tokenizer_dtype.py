"""A tokenizer that codes clips in bfloat16: for caches, generators, samples, and in plans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import make_config, open_stages, save_run, save_tokenizer

from videoar_jax import convert, load_model, load_tokenizer
from videoar_jax.data.sources import latents
from videoar_jax.data.synthetic.sprites import SpritesSource
from videoar_jax.experiment import parse
from videoar_jax.experiment.validate import check_cache
from videoar_jax.interop import tensors
from videoar_jax.tokenizers.pixels import to_float
from videoar_jax.train.state import flatten

HALF = {"tokenizer_dtype": "bfloat16"}


def dtypes(tree):
  return {x.dtype for x in jax.tree.leaves(tree)}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("half")
  save_tokenizer(make_config(), folder, seed=0)
  return folder


@pytest.fixture(scope="module")
def clips():
  source = SpritesSource("train", num_frames=5, resolution=(16, 16), frame_rate=4.0, version=2)
  return np.stack([source[i]["video"] for i in range(2)])


def test_generators_and_caches_get_weights_of_that_type(workdir):
  """A cache of the other type is another one; the tokenizer itself goes on in float32."""
  fingerprints = set()
  for changes, dtype in (({}, jnp.float32), (HALF, jnp.bfloat16)):
    stages = open_stages(make_config(**changes), workdir)
    (cache,), generator = stages.run.caches, stages.run.stages[-1]
    source = SpritesSource("train", num_frames=5, resolution=(16, 16), frame_rate=4.0, version=2)
    _, params, index = stages._encoder_of(cache, source)
    assert dtypes(params) == dtypes(stages.tokenizer_for(generator)[1]) == {jnp.dtype(dtype)}
    assert dtypes(stages.tokenizer_template(is_trained=False).shapes) == {jnp.dtype(dtype)}
    assert dtypes(stages.hand_over(stages.run.stages[0])[1]) == {jnp.dtype(np.float32)}
    fingerprints.add(index.fingerprint)
  assert len(fingerprints) == 2


def test_loss_of_a_generator_differs_little(workdir, clips):
  losses = []
  for changes in ({}, HALF):
    stages = open_stages(make_config(**changes), workdir)
    task = stages.make_task(stages.run.stages[-1])
    text = np.stack([stages.run.text.encoder.encode("a red circle")] * 2)
    batch = {"text": jnp.asarray(text), "video": jnp.asarray(clips)}
    module = task.init(jax.random.key(0))
    loss = jax.jit(
      lambda module, batch, task=task: task.loss(
        module, task.frozen, batch, jax.random.key(1), False
      )[0]
    )
    losses.append(float(loss(module, batch)))
  assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_what_is_loaded_codes_in_that_type(tmp_path, clips):
  save_run(make_config(**HALF), tmp_path / "half")
  save_run(make_config(), tmp_path / "whole")
  half, whole = (load_tokenizer(tmp_path / name) for name in ("half", "whole"))
  assert dtypes(half.autoencoder) == {jnp.dtype(jnp.bfloat16)}
  codes = [tokenizer.encode(to_float(clips)) for tokenizer in (half, whole)]
  assert dtypes(codes) == {jnp.dtype(np.float32)}
  error = jnp.linalg.norm(codes[0] - codes[1]) / jnp.linalg.norm(codes[1])
  assert 1e-5 < error < 0.02
  pixels = [tokenizer.decode(codes[1]) for tokenizer in (half, whole)]
  assert dtypes(pixels) == {jnp.dtype(np.float32)}
  assert 1e-5 < jnp.max(jnp.abs(pixels[0] - pixels[1])) < 0.05
  chunks, state = [], None
  for part in (slice(0, 1), slice(1, 3), slice(3, 5)):
    found, state = half.encode_chunk(to_float(clips[:, part]), state)
    chunks.append(found)
  np.testing.assert_allclose(jnp.concatenate(chunks, 1), codes[0], atol=0.05)
  frames = load_model(tmp_path / "half").sample(["a red circle"])
  assert frames.shape == (1, 5, 16, 16, 3) and frames.dtype == np.uint8


def test_a_model_is_exported_as_it_was_trained(tmp_path):
  save_run(make_config(**HALF), tmp_path / "run")
  assert convert.main(["model", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'it'}"]) == 0
  stages = open_stages(make_config(**HALF), tmp_path / "run")
  trained = flatten(stages.hand_over(stages.run.stages[0])[1])
  written = tensors.read(tmp_path / "it" / "tokenizer" / "tokenizer.safetensors")
  assert written.keys() == trained.keys()
  for name, value in trained.items():
    np.testing.assert_array_equal(written[name], value, err_msg=name)
  model = load_model(tmp_path / "it")
  assert model.tokenizer.dtype == jnp.bfloat16


def test_a_cache_of_the_other_type_is_named(workdir, tmp_path):
  """Before anything is trained or encoded."""
  source = SpritesSource("train", num_frames=5, resolution=(16, 16), frame_rate=4.0, version=2)
  where = {"path": str(tmp_path / "cache")}
  for changes in ({}, HALF):
    config = make_config(**changes)
    config.stage.cache.update(where)
    stages = open_stages(config, workdir)
    (cache,) = stages.run.caches
    if not changes:
      latents.write_index(tmp_path / "cache", stages._encoder_of(cache, source)[2])
      check_cache(stages, cache, source)
  with pytest.raises(ValueError, match="tokenizer_dtype: 'float32' -> 'bfloat16'"):
    check_cache(stages, cache, source)


def test_other_types_are_named():
  with pytest.raises(ValueError, match='tokenizer_dtype=\'fp8\' must be "float32" or "bfloat16"'):
    parse.finalize(make_config(tokenizer_dtype="fp8"))
