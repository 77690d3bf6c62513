"""The file of a finished run's weights: equal to its checkpoints, or not used."""

import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest
from compiling import compiled_by
from tiny_runs import make_config, save_run, save_tokenizer

import videoar_jax
from videoar_jax.experiment import final_weights, load
from videoar_jax.experiment.model_folder import sha256
from videoar_jax.interop import tensors
from videoar_jax.train.checkpoint import Checkpointer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished") / "run"
  save_run(make_config(), workdir)
  opened(workdir).write_final_weights()
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def without_checkpoints(monkeypatch):
  def fail(*arguments, **settings):
    raise AssertionError("a checkpoint was opened")

  monkeypatch.setattr(Checkpointer, "__init__", fail)


def opened(workdir):
  return load._open(workdir)[0]


def params_of(workdir):
  """Returns the parameters of both stages."""
  stages = opened(workdir)
  return {stage.name: stages.load_params(stage)[1] for stage in stages.run.stages}


def assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_weights_are_those_of_the_checkpoints(workdir, without_checkpoints, monkeypatch):
  found = params_of(workdir)
  assert found.keys() == {"tokenizer", "generator"}
  monkeypatch.undo()
  final_weights.remove(workdir)
  assert_equal(found, params_of(workdir))


def test_weights_that_are_there_are_not_written_again(workdir):
  before = (workdir / final_weights.WEIGHTS).stat().st_mtime_ns
  opened(workdir).write_final_weights()
  assert (workdir / final_weights.WEIGHTS).stat().st_mtime_ns == before


def test_a_step_that_is_named_is_that_step(workdir, without_checkpoints):
  step = opened(workdir).latest_step(opened(workdir).run.stages[-1])
  stages = opened(workdir)
  stages.load_params(stages.run.stages[-1], step)
  with pytest.raises((AssertionError, FileNotFoundError)):
    stages.load_params(stages.run.stages[-1], step + 1)


def write_other_step(workdir):
  values = make_config()
  shutil.rmtree(workdir / "generator" / "checkpoints")
  save_tokenizer(values, workdir, seed=7, index=1)


def flip_a_byte(workdir):
  path = workdir / final_weights.WEIGHTS
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)


def cut_off(workdir):
  path = workdir / final_weights.WEIGHTS
  path.write_bytes(path.read_bytes()[:-4])


def damage_facts(workdir):
  (workdir / final_weights.FACTS).write_text("{")


def leave_facts_out(workdir):
  (workdir / final_weights.FACTS).write_text('{"stages": {"generator": {}}}')


def write_other_network(workdir):
  path, facts = workdir / final_weights.WEIGHTS, workdir / final_weights.FACTS
  arrays = tensors.read(path)
  arrays = {name: x[..., :1] if x.ndim else x for name, x in arrays.items()}
  tensors.write(path, arrays)
  values = json.loads(facts.read_text())
  values |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
  facts.write_text(json.dumps(values))


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    (write_other_step, "another checkpoint of stage generator"),
    (flip_a_byte, "has changed since it was written"),
    (cut_off, r"bytes instead of"),
    (damage_facts, "is damaged|Expecting"),
    (leave_facts_out, "is damaged"),
    (write_other_network, "of another network than the config describes"),
  ],
)
def test_what_does_not_fit_is_not_used(workdir, caplog, change, reason):
  change(workdir)
  with caplog.at_level(logging.WARNING, final_weights.__name__):
    found = params_of(workdir)
  assert "reading the checkpoint of step" in caplog.text and re.search(reason, caplog.text)
  final_weights.remove(workdir)
  assert_equal(found, params_of(workdir))


def test_a_disk_that_cannot_be_written_costs_a_line(workdir, caplog, monkeypatch):
  final_weights.remove(workdir)

  def fail(*arguments):
    raise OSError("the disk is full")

  monkeypatch.setattr(tensors, "write_each", fail)
  opened(workdir).write_final_weights()
  assert "the disk is full" in caplog.text
  assert not (workdir / final_weights.FACTS).exists()


def test_a_second_model_compiles_nothing(finished):
  def use():
    return videoar_jax.load_model(finished).sample(["a"], seed=1)

  expected = use()
  clips, compiled = compiled_by(use)
  np.testing.assert_array_equal(clips, expected)
  assert not compiled
