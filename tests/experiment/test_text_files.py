"""Runs whose prompts a pretrained text encoder encodes: what is checked, and kept in a workdir."""

import contextlib
import shutil

import numpy as np
import pytest
from tiny_encoders import PHI, T5, write_encoder
from tiny_runs import make_config

from videoar_jax.data.pipeline import make_source
from videoar_jax.experiment import parse, run
from videoar_jax.experiment.captions import stage_encoder
from videoar_jax.experiment.inputs import Batches, media_batch
from videoar_jax.experiment.load import find_run
from videoar_jax.experiment.stages import Stages
from videoar_jax.interop import tensors
from videoar_jax.parallel import processes
from videoar_jax.parallel.mesh import make_mesh
from videoar_jax.text.encoders.files import EncoderFolder

pytest.importorskip("tokenizers")


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
  """Keeps logs out of the workdir, and features out of the user's own cache."""
  monkeypatch.setattr(run, "start_log", lambda path: None)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def config_of(folder, **changes):
  settings = {"text.tokenizer": str(folder), "text.length": 24}
  return make_config(stages=("tokenizer", "generator"), **settings | changes)


def test_the_network_takes_its_width_without_its_weights(tmp_path, monkeypatch):
  monkeypatch.setattr(EncoderFolder, "load", None)
  for name, values, width in (("t5", T5, 12), ("phi", PHI, 32)):
    folder = write_encoder(tmp_path / name, values)
    found = parse.finalize(config_of(folder, **{"text.dtype": "bfloat16"}))
    assert (found.generator.vocabulary_size, found.generator.text_dim) == (0, width)
    assert found.text.encoder.dtype == "bfloat16"
  with pytest.raises(ValueError, match=r"text\.dtype='float16' must be"):
    parse.finalize(config_of(folder, **{"text.dtype": "float16"}))


def test_captions_are_not_encoded_before_training(tmp_path, monkeypatch):
  loads, load = [], EncoderFolder.load
  monkeypatch.setattr(EncoderFolder, "load", lambda *args: loads.append(1) or load(*args))
  run.Run(config_of(write_encoder(tmp_path / "t5")), tmp_path / "w")
  # Of "", and of the prompt by which a resumed run knows its encoder.
  assert len(list((tmp_path / "cache" / "videoar_jax" / "text").rglob("*.safetensors"))) == 2
  assert len(loads) == 1


@pytest.mark.parametrize(("stage", "shape"), [(0, (4, 1)), (1, (4, 24, 12))])
def test_a_tokenizer_is_trained_without_the_encoder(tmp_path, monkeypatch, stage, shape):
  loads, load = [], EncoderFolder.load
  monkeypatch.setattr(EncoderFolder, "load", lambda *args: loads.append(1) or load(*args))
  config = config_of(write_encoder(tmp_path / "t5"), **{"stage.tokenizer.loop.batch_size": 4})
  found = parse.finalize(config)
  stage, source = found.stages[stage], make_source(found.data, "train")
  batches = Batches(found, make_mesh(found.mesh))
  with contextlib.closing(batches.iterator(stage, [source], 0)) as iterator:
    assert next(iterator)["text"].shape == shape
  test_source = make_source(found.data, "test")
  media = media_batch(stage.data, test_source, stage_encoder(batches.run, stage, stage.data))
  assert media["text"].shape[1:] == shape[1:]
  assert len(loads) == (stage.kind == "generator")


def test_a_workdir_keeps_the_null_features_alone(tmp_path, monkeypatch):
  monkeypatch.setattr(Stages, "latest_step", lambda self, stage: 1)
  folder = write_encoder(tmp_path / "t5")
  null = run.Run(config_of(folder), tmp_path / "w").stages.run.text.encoder.null()
  copy, probe = sorted((tmp_path / "w" / "files").iterdir())
  assert copy.stat().st_size < 3000 and len(tensors.read(probe)) == 1
  np.testing.assert_array_equal(tensors.read(copy)[""], null)
  folder.rename(tmp_path / "moved")
  _, found = find_run(tmp_path / "w")
  np.testing.assert_array_equal(found.text.encoder.null(), null)
  said = r"text\.tokenizer=.*no features of 'a red star', .*folder of the text encoder: --text_feat"
  with pytest.raises(ValueError, match=said):
    found.text.encoder.encode("a red star")
  _, given = find_run(tmp_path / "w", str(tmp_path / "moved"))
  assert given.text.encoder.encode("a red star").any()
  run.Run(config_of(tmp_path / "moved"), tmp_path / "w")


def test_a_run_resumes_with_the_same_encoder_only(tmp_path, monkeypatch):
  monkeypatch.setattr(Stages, "latest_step", lambda self, stage: 1)
  one = write_encoder(tmp_path / "one")
  run.Run(config_of(one), tmp_path / "w")
  other = write_encoder(tmp_path / "other", seed=1)
  with pytest.raises(ValueError, match=r"text\.tokenizer=.*encodes prompts differently"):
    run.Run(config_of(other), tmp_path / "w")
  # Rounding, as on another kind of device, is no difference.
  copy = tmp_path / "w" / "files" / "text_features.safetensors"
  null = tensors.read(copy)[""]
  tensors.write(copy, {"": null * 1.001})
  run.Run(config_of(one), tmp_path / "w")
  tensors.write(copy, {"": null * 1.1})
  with pytest.raises(ValueError, match="encodes prompts differently"):
    run.Run(config_of(one), tmp_path / "w")
  # An encoder that makes nothing of "" is known by another prompt.
  tensors.write(copy, {"": null})
  probe = copy.with_name("text_probe.safetensors")
  ((prompt, features),) = tensors.read(probe).items()
  tensors.write(probe, {prompt: features[::-1]})
  with pytest.raises(ValueError, match="encodes prompts differently"):
    run.Run(config_of(one), tmp_path / "w")


def test_processes_need_the_same_null_features(tmp_path, monkeypatch):
  folder = write_encoder(tmp_path / "t5")
  monkeypatch.setattr(processes, "broadcast", lambda value: value * 1.001)
  with pytest.raises(ValueError, match='processes have other features of ""'):
    run.Run(config_of(folder), tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_a_folder_that_is_missing_from_the_start_is_named(tmp_path):
  folder = write_encoder(tmp_path / "t5")
  config = config_of(folder)
  shutil.rmtree(folder)
  with pytest.raises(ValueError, match=r"text\.tokenizer='.*t5' must be .*folder of a text encod"):
    run.Run(config, tmp_path / "w")
