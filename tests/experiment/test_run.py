"""Checks before training, config changes in a workdir, and passing parameters between stages."""

import contextlib
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import damage_checkpoint, make_config, make_mixed_config

from videoar_jax.experiment import parse, run, workdir
from videoar_jax.experiment.defaults import complete
from videoar_jax.experiment.stages import Stages
from videoar_jax.experiment.validate import check_init, check_mixtures
from videoar_jax.interop import tensors, weights
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.state import flatten
from videoar_jax.train.trainer import Trainer


@pytest.mark.parametrize(
  ("name", "value", "is_free"),
  [
    ("mesh.fsdp", 2, True),
    ("stage.generator.loop.on_nan", "skip", True),
    ("stage.generator.loop.spike", 3.0, True),
    ("stage.generator.loop.eval_every", 5, True),
    ("stage.generator.loop.eval_batches", 2, True),
    ("stage.generator.loop.save_timeout_s", 60, True),
    ("stage.generator.data", {"num_threads": 2}, True),
    ("data.num_threads", 2, True),
    ("report.num_clips", 2, True),
    ("sampling.temperature", 0.9, True),
    ("stage.cache.path", "elsewhere", True),
    ("stage.generator.loop.num_steps", 5, False),
    ("stage.generator.loop.optimizer.learning_rate", 1.0, False),
    ("data.seed", 7, False),
    ("stage.cache.batch_size", 8, False),
  ],
)
def test_fields_that_change_no_number_may_change_in_a_workdir(tmp_path, name, value, is_free):
  parse.save_config(make_config(), tmp_path / "config.json")
  changed = make_config(**{name: value})
  if is_free:
    [line] = workdir.check_same_config(changed, tmp_path)
    assert line.startswith(f"config.{name}")
  else:
    with pytest.raises(ValueError, match=rf"config\.{name}.*\n.*restore these fields"):
      workdir.check_same_config(changed, tmp_path)


def test_long_tables_are_for_the_file_of_the_log_alone(tmp_path, capsys):
  root = logging.getLogger("videoar_jax")
  before = root.handlers[:], root.level, root.propagate
  root.handlers[:] = []
  try:
    run.start_log(tmp_path / "log.txt")
    root.info("a line")
    root.info("a table", extra={"is_for_file": True})
  finally:
    root.handlers[:], root.level, root.propagate = before
  assert capsys.readouterr().out == "a line\n"
  lines = (tmp_path / "log.txt").read_text().splitlines()
  assert [line.split(" ", 2)[2] for line in lines] == [
    "INFO videoar_jax: a line",
    "INFO videoar_jax: a table",
  ]


def test_a_mesh_that_would_change_the_batches_of_a_mixture_is_named(tmp_path, monkeypatch):
  settings = parse.finalize(make_mixed_config())
  stages = Stages(settings, tmp_path, make_mesh(settings.mesh, jax.devices()[:1]))
  mesh = {"slice": 1, "data": 8, "fsdp": 1, "sequence": 1, "tensor": 1}
  names, other = [stage.name for stage in settings.stages], {"data": 1, "tensor": 8}
  (tmp_path / "run.json").write_text(json.dumps({"meshes": dict.fromkeys(names, mesh)}))
  check_mixtures(stages)  # No stage has begun.
  monkeypatch.setattr(Stages, "latest_step", lambda self, stage: 4)
  with pytest.raises(ValueError, match=r"stage\.I\.mixture began with .* = 8, .* differ with 1"):
    check_mixtures(stages)
  # As it was when all stages had one mesh.
  (tmp_path / "run.json").write_text(json.dumps({"mesh": mesh}))
  with pytest.raises(ValueError, match=r"stage\.I\.mixture began with .* = 8, .* differ with 1"):
    check_mixtures(stages)
  (tmp_path / "run.json").write_text(json.dumps({"meshes": dict.fromkeys(names, mesh | other)}))
  check_mixtures(stages)


@pytest.mark.parametrize(
  ("section", "settings", "message"),
  [
    ("generator", {"num_heads": 3, "num_kv_heads": 3}, r"generator\.num_heads=3 does not divide"),
    (
      "stage.II.mesh",
      {"fsdp": 3},
      r"stage\.II\.mesh: .*needs a multiple .* from config\.mesh",
    ),
    ("stage.II.mesh", {"fsdp": -1, "data": -1}, r"stage\.II\.mesh: .*one may be -1"),
  ],
)
def test_a_mesh_that_cannot_be_is_named_before_anything_is_trained(
  tmp_path, section, settings, message
):
  heads = {"generator.num_heads": 2, "generator.num_kv_heads": 2}
  values = complete(make_mixed_config(mesh={"data": 1, "sequence": 2}, **heads))
  values.update_from_flattened_dict({f"{section}.{name}": x for name, x in settings.items()})
  with pytest.raises(ValueError, match=message):
    run.Run(values, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("data", {"source": "folder", "path": "/nowhere"}, "/nowhere"),
    (
      "init",
      {"from": "/nowhere.safetensors"},
      r"stage\.II\.init\.from=.*no weights in /nowhere",
    ),
  ],
)
def test_what_a_later_stage_lacks_is_named_before_anything_is_written(
  tmp_path, field, value, message
):
  values = make_mixed_config()
  values.stage.II[field] = value
  with pytest.raises(ValueError, match=message):
    run.Run(values, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_versions_that_are_not_tested_are_in_the_log_once(tmp_path, monkeypatch):
  root = logging.getLogger("videoar_jax")
  for name, value in (("handlers", []), ("level", root.level), ("propagate", root.propagate)):
    monkeypatch.setattr(root, name, value)
  monkeypatch.setattr(run, "untested_warning", lambda: "not tested with jax 9")
  run.Run(make_mixed_config(), tmp_path)
  lines = (tmp_path / "log.txt").read_text().splitlines()
  assert [line.split(" ", 2)[2] for line in lines if "not tested" in line] == [
    "WARNING videoar_jax.experiment.run: not tested with jax 9"
  ]


def save_random(stages, stage):
  """Writes the last checkpoint of a stage, without an optimizer; returns its parameters."""
  generator = np.random.default_rng(0)
  shapes = stages.module_template(stage).shapes
  params = jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), x.dtype), shapes)
  state = {"params": params, "opt_state": (), "ema": params, "discriminator": {}, "anomaly": {}}
  step = stage.loop.num_steps
  with contextlib.closing(Checkpointer(stages.checkpoints(stage))) as checkpointer:
    checkpointer.save(step, state | {"step": jnp.int32(step)}, {})
  return params


def test_weights_are_handed_over_in_parts(tmp_path, monkeypatch):
  """From a stage and from a file, each device loads only its shard of a generator."""
  settings = parse.finalize(make_mixed_config())
  mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
  stages = Stages(settings, tmp_path, mesh)
  _, first, second = settings.stages
  template, params = stages.module_template(first), save_random(stages, first)
  weights.save(tmp_path / "file", {name: np.asarray(x) for name, x in flatten(params).items()})

  class Catching(Trainer):
    """A trainer whose state is its initial parameters."""

    def __init__(self):
      self.template = template

    def init(self, params, discriminator):
      return params

  values = make_mixed_config()
  values.stage.II.init = {"from": str(tmp_path / "file")}
  from_file = Stages(parse.finalize(values), tmp_path, mesh)
  check_init(from_file)
  values.generator.mlp_dim = 8
  with pytest.raises(ValueError, match=r"stage\.II\.init\.from=.*shape: "):
    check_init(Stages(parse.finalize(values), tmp_path, mesh))
  monkeypatch.setattr(tensors, "read", lambda path: pytest.fail(f"{path} is read whole"))
  for given, stage in ((stages, second), (from_file, from_file.run.stages[2])):
    got = given.first_state(stage, Catching(), 0)
    jax.tree.map(np.testing.assert_array_equal, got, params)
    assert jax.tree.map(lambda x: x.sharding, got) == template.shardings(mesh)
  parts = [x.addressable_shards[0].data.size / x.size for x in jax.tree.leaves(got)]
  assert min(parts) == 0.5


def test_a_last_checkpoint_that_is_damaged_is_trained_again(tmp_path, monkeypatch):
  values = make_mixed_config(stages=("tokenizer", "I"))
  stages = Stages(parse.finalize(values), tmp_path, make_mesh(MeshConfig()))
  save_random(stages, stages.run.stages[0])
  last = stages.run.stages[0].loop.num_steps
  folder = stages.checkpoints(stages.run.stages[0])
  shutil.copytree(folder / str(last), folder / str(last - 1))
  damage_checkpoint(folder, last)
  trained = []

  def train(self, stage, sources, test_source):
    trained.append(stage.name)
    if stage.name == "I":
      self.make_task(stage)
      return
    shutil.copytree(folder / str(last - 1), folder / str(last))

  monkeypatch.setattr(Stages, "train", train)
  monkeypatch.setattr(run, "start_log", lambda path: None)
  assert run.Run(values, tmp_path).train()
  assert trained == ["I", "tokenizer", "I"]
  assert (folder / f"damaged-{last}").is_dir()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"stages": ("tokenizer", "tokenizer", "generator")}, "names 'tokenizer' twice"),
    ({"stage.tokenizer.loss.entropy": -1.0}, r"stage\.tokenizer\.loss: entropy=-1\.0 must not be"),
    ({"stage.cache.path": "gs://a/b"}, r"stage\.cache.*path=gs://a/b is a URL.*mount the bucket"),
    ({"stage.tokenizer.loss.l1": -1.0}, r"stage\.tokenizer\.loss: l1=-1\.0 must not"),
  ],
)
def test_settings_that_cannot_be_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    parse.finalize(make_config(**changes))


def test_warnings_of_opening_the_data_are_in_the_log(tmp_path, monkeypatch):
  root = logging.getLogger("videoar_jax")
  for name, value in (("handlers", []), ("level", root.level), ("propagate", root.propagate)):
    monkeypatch.setattr(root, name, value)
  opened = run.make_source

  def open_and_warn(data, split):
    logging.getLogger("videoar_jax.data.sources").warning("%s has a cut caption", split)
    return opened(data, split)

  monkeypatch.setattr(run, "make_source", open_and_warn)
  run.Run(make_mixed_config(), tmp_path / "run")
  text = (tmp_path / "run" / "log.txt").read_text()
  assert "WARNING videoar_jax.data.sources: test has a cut caption" in text
