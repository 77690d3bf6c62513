"""A tokenizer that has seen no clips codes them without its taps that are zero."""

import re

import jax
import numpy as np
import pytest
from tiny_runs import make_config, open_stages, save_run

from videoar_jax import bench, load_tokenizer
from videoar_jax.data.synthetic.sprites import SpritesSource
from videoar_jax.experiment.token_cache import encoder_fingerprint
from videoar_jax.tokenizers.pixels import to_float


def taps(tree):
  return {len(leaf) for leaf in jax.tree.leaves(tree) if leaf.ndim == 5}


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
  folder = tmp_path_factory.mktemp("random")
  values = make_config(**{"tokenizer.temporal_kernels": "all"})
  # As it begins: every kernel is an image kernel.
  save_run(values, folder)
  return open_stages(values, folder)


def test_generators_and_caches_have_none(stages, monkeypatch):
  """The index of a cache still names the tokenizer as it was trained, so that old ones fit."""
  trained = stages.hand_over(stages.run.stages[0])[1]
  assert taps(trained) == {3}
  source = SpritesSource("train", num_frames=5, resolution=(16, 16), frame_rate=4.0, version=2)
  calls = []
  monkeypatch.setattr("videoar_jax.experiment.stages.encode", lambda *args: calls.append(args))
  stages.encode(stages.run.caches[0], source)
  _, index, _, _, _, params, *_ = calls[0]
  assert taps(params) == taps(stages.tokenizer_for(stages.run.stages[-1])[1]) == {1, 2}
  assert index.fingerprint == encoder_fingerprint(trained)


def test_benchmarks_say_so(stages, capsys):
  flags = [f"--tokenizer={stages.workdir}", "--resolution=16x16", "--num_frames=5", "--repeats=1"]
  assert bench.main(["tokenizer", *flags]) == 0
  assert re.search(r"\n[\d,]+ parameters are zero and left out; ", capsys.readouterr().out)


def test_what_is_loaded_codes_the_same(stages):
  template, trained = stages.hand_over(stages.run.stages[0])
  tokenizer, whole = load_tokenizer(stages.workdir), template.module(trained)
  assert taps(tokenizer.autoencoder) == {1, 2}
  source = SpritesSource("train", num_frames=5, resolution=(16, 16), frame_rate=4.0, version=2)
  video = to_float(source[0]["video"][None])
  expected = jax.jit(lambda module, x: module.encoder(x))(whole, video)
  np.testing.assert_allclose(tokenizer.encode(video), expected, atol=1e-5)
