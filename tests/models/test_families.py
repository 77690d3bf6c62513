"""Adding a family: with an entry in the dict, every command supports it."""

import json
import shutil

import pytest
from mean_family import Mean

from videoar_jax import bench, evaluate, plan, sample
from videoar_jax.experiment import parse, run
from videoar_jax.experiment.command_line import read_config
from videoar_jax.models.families import FAMILIES

CONFIG = """
from ml_collections import ConfigDict

def get_config(arg=None):
  loop = {"num_steps": 4, "batch_size": 4, "save_every": 2, "eval_every": 2, "media_every": 4}
  loop["optimizer"] = {"learning_rate": 0.01, "warmup_steps": 1}
  data = {"num_frames": 5, "resolution": (16, 16), "frame_rate": 4.0}
  tokenizer = {"num_bits": 4, "patch_size": 4, "base_channels": 4, "num_groups": 1}
  tokenizer |= {"multipliers": (1, 1), "strides": ((2, 1),), "schedule": "1 4"}
  loss = {"l1": 0.0, "l2": 1.0, "commitment": 0.02, "entropy": 0.0}
  return ConfigDict({
    "family": "mean",
    "data": data,
    "text": {"length": 16, "tokenizer": "words"},
    "tokenizer": tokenizer,
    "generator": {"d_model": 4},
    "report": {"num_clips": 2, "num_prompts": 2},
    "stages": ("tokenizer", "cache", "generator"),
    "stage": {
      "tokenizer": {"loop": loop, "loss": loss},
      "cache": {"kind": "cache", "num_clips": 8, "batch_size": 4},
      "generator": {"loop": loop, "loss": {"power": 1.0}},
    },
  })
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  path = tmp_path_factory.mktemp("mean") / "config.py"
  path.write_text(CONFIG)
  return path


@pytest.fixture(scope="module", autouse=True)
def family():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(FAMILIES, "mean", Mean())
    yield


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
  """A run of all stages, of which the last one was interrupted and resumed."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, "start_log", lambda path: None)
    workdir = tmp_path_factory.mktemp("run")
    run.Run(read_config(str(config)), workdir).train()
    return workdir


def records(workdir):
  lines = (workdir / "generator" / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if "per_s" not in k} for line in lines]


def test_it_trains_caches_and_resumes(config, workdir, monkeypatch):
  monkeypatch.setattr(run, "start_log", lambda path: None)
  whole = records(workdir)
  assert len(whole) == 4 and {"mean_error", "eval/mean_error"} <= whole[-1].keys()
  assert list((workdir / "cache").glob("*.array_record"))
  shutil.rmtree(workdir / "generator" / "checkpoints" / "4")
  assert run.Run(read_config(str(config)), workdir).train()
  assert records(workdir) == whole


def test_it_samples_and_is_evaluated(workdir, tmp_path, capsys):
  out = tmp_path / "clips"
  flags = [f"--workdir={workdir}", "--prompt=a small red circle", "--num_samples=2"]
  assert sample.main([*flags, f"--out={out}", "--brightness=0.5"]) == 0, capsys.readouterr().err
  assert len(list(out.glob("*.mp4"))) == 2 and (out / "contact_sheet.png").exists()
  assert sample.main([*flags, f"--out={out}", "--temperature=0.5"]) == 2
  error = capsys.readouterr().err
  assert "--temperature is a setting of videoar, but the run's family is mean" in error
  flags = [f"--workdir={workdir}", "--num_clips=2", "--num_long_clips=0", f"--out={tmp_path}"]
  assert evaluate.main([*flags, "--suite=generation"]) == 0, capsys.readouterr().err
  assert "mean_error" in capsys.readouterr().out
  assert evaluate.main([*flags, "--suite=reconstruction"]) == 0


def test_it_is_planned_and_timed(config, capsys):
  assert plan.main([f"--config={config}", "--topology=h100:1", "--mesh=data:1"]) == 0
  assert "has no step estimate" in capsys.readouterr().out
  flags = [f"--config={config}", "--topology=h100:2", "--search=1"]
  assert plan.main(flags) == 2
  assert "has no step estimate; name a mesh" in capsys.readouterr().err
  for what in ("train", "sample"):
    flags = [what, f"--config={config}", "--batch_size=2", "--repeats=1"]
    assert bench.main(flags) == 0, capsys.readouterr().err
  assert "a clip" in capsys.readouterr().out


def test_settings_of_another_family_are_named(config):
  values = read_config(str(config))
  values.generator.num_layers = 3
  with pytest.raises(ValueError, match=r"generator\.num_layers is a setting of family 'videoar'"):
    parse.finalize(values)
  values = read_config(str(config))
  values.family = "means"
  with pytest.raises(
    ValueError, match=r"family='means' is unknown; families are videoar, nova, .*mean"
  ):
    parse.finalize(values)
