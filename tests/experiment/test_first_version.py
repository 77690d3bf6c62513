"""A run that the first version made, with its names of fields and of parts of checkpoints, resumes.

It was made on Python 3.11 with jax 0.10.2 and flax 0.12.8, and stopped after two of four steps of
its generator; `metrics.jsonl` has all four. So the newest JAX resumes what an older one left, too.
"""

import json
import pathlib
import tarfile

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from videoar_jax.experiment import parse, run
from videoar_jax.experiment.stages import Stages
from videoar_jax.models.videoar.task import GeneratorTask
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.train import optimizer
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.state import with_shardings

ARCHIVE = pathlib.Path(__file__).with_name("first_version_run.tar.xz")


@pytest.fixture
def workdir(tmp_path):
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(tmp_path, filter="data")
  return tmp_path


def losses(workdir):
  lines = (workdir / "generator" / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["loss"] for line in lines]


def first_schedule(config, num_steps):
  """The learning rate of the first version, whose first step had none."""
  return optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, min(config.warmup_steps, num_steps // 2), num_steps
  )


def test_it_resumes(workdir, monkeypatch):
  monkeypatch.setattr(optimizer, "learning_rate_schedule", first_schedule)
  monkeypatch.setattr(GeneratorTask, "media", lambda *_: {})
  monkeypatch.setattr(run, "start_log", lambda path: None)
  expected = losses(workdir)
  assert json.loads((workdir / "config.json").read_text())["generator"]["depth"] == 1
  config = ConfigDict(parse.load_config(workdir / "config.json"))
  assert run.Run(config, workdir).train()
  resumed = losses(workdir)
  assert resumed[:2] == expected[:2]
  # Of the sums of other programs, and other versions of the compiler.
  np.testing.assert_allclose(resumed[2:], expected[2:], rtol=1e-3)
  assert resumed[2] != expected[3]


def test_parts_of_checkpoints_have_other_names(workdir):
  settings = parse.finalize(parse.load_config(workdir / "config.json"))
  stages = Stages(settings, workdir, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
  trainer = stages.make_trainer(settings.stages[0], seed=0)
  abstract = with_shardings(trainer.abstract_state, trainer.shardings)
  checkpointer = Checkpointer(stages.checkpoints(settings.stages[0]), is_reader=True)
  state, _ = checkpointer.restore(abstract)
  assert {"rival", "guard"} < {path.name for path in (checkpointer.directory / "4").iterdir()}
  assert int(state["anomaly"]["count"]) == int(state["step"]) == 4
  assert float(abs(state["discriminator"]["lecam_ema"]["real"])) > 0
  checkpointer.close()
