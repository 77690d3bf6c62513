"""Training and sampling on eight devices equal those on one, for every mesh.

The test starts a process with eight devices, since this one has fewer.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from tiny_runs import make_config, save_tokenizer

from videoar_jax.data.pipeline import make_source
from videoar_jax.experiment import parse
from videoar_jax.experiment.inputs import Batches, media_batch
from videoar_jax.experiment.stages import Stages
from videoar_jax.parallel.mesh import MeshConfig, make_mesh, shard_batch, shard_padded
from videoar_jax.train.trainer import NUM_SHOWN

NUM_STEPS = 4
MESHES = {
  "data": {"data": 8},
  "fsdp": {"fsdp": 8},
  "tensor": {"tensor": 8},
  "sequence": {"sequence": 8},
  "mixed": {"slice": 2, "fsdp": 2, "tensor": 2},
  "mixed sequence": {"data": 2, "sequence": 2, "tensor": 2},
}
# So that eight divide heads, widths and batches.
CONFIG = {
  "stages": ("tokenizer", "generator"),
  "generator.d_model": 64,
  "generator.num_heads": 8,
  "generator.num_kv_heads": 8,
  "generator.head_dim": 8,
  "generator.mlp_dim": 64,
  "stage.tokenizer.loop.batch_size": 8,
  "stage.generator.loop.batch_size": 8,
}


def losses(stages, stage):
  """Returns the losses and gradient norms of a stage's first steps."""
  source = make_source(stage.data, "train")
  trainer = stages.make_trainer(stage, seed=0)
  state, found = trainer.init(), []
  iterator = Batches(stages.run, stages.mesh).iterator(stage, [source], seed=0)
  with jax.set_mesh(stages.mesh):
    for _ in range(NUM_STEPS):
      batch = next(iterator)
      batch = shard_batch({name: batch[name] for name in ("video", "text")}, stages.mesh)
      state, metrics = trainer.step(state, trainer.task.frozen, batch, trainer.key)
      found.append([float(metrics[name]) for name in ("loss", "gradient_norm")])
  iterator.close()
  return np.array(found)


def shown(stages, stage):
  """Returns the clips that a stage shows before its first step."""
  trainer, source = stages.make_trainer(stage, seed=0), make_source(stage.data, "test")
  batch = shard_padded(media_batch(stage.data, source, stages.run.text.encoder), stages.mesh)
  with jax.set_mesh(stages.mesh):
    (clips,) = trainer.media(trainer.init()["params"], trainer.task.frozen, batch).values()
  return np.asarray(clips, int)


def compare():
  """Trains and samples on one device and on eight, and compares."""
  values = make_config(**CONFIG)
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder)
    save_tokenizer(values, workdir, seed=0)
    run = parse.finalize(values)
    meshes = {"one": make_mesh(MeshConfig(data=1), jax.devices()[:1])}
    for name, sizes in MESHES.items():
      meshes[name] = make_mesh(MeshConfig(**{"data": 1} | sizes))
    for stage in run.stages:
      expected = losses(Stages(run, workdir, meshes["one"]), stage)
      expected_clips = shown(Stages(run, workdir, meshes["one"]), stage)
      assert len(expected_clips) == NUM_SHOWN and expected_clips.std() > 5
      assert len({tuple(row) for row in expected}) == NUM_STEPS
      for name in MESHES:
        difference = np.abs(shown(Stages(run, workdir, meshes[name]), stage) - expected_clips)
        assert (difference > 1).mean() < 0.01, (stage.name, name)
        found = losses(Stages(run, workdir, meshes[name]), stage)
        error = np.abs(found / expected - 1).max(axis=0)
        print(f"{stage.name}, {name}: {error}", flush=True)
        assert error[0] < 1e-5, (stage.name, name, found, expected)
        assert error[1] < 1e-4, (stage.name, name, found, expected)


@pytest.mark.slow
def test_eight_devices_equal_one():
  folder = pathlib.Path(__file__).parent
  paths = [str(folder.parent / "helpers"), str(folder)]
  lines = (
    f"import sys; sys.path[:0] = {paths!r}",
    "from test_meshes import compare",
    "compare()",
  )
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
  flags["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  done = subprocess.run(
    [sys.executable, "-c", "\n".join(lines)],
    cwd=folder.parents[1],
    env=os.environ | flags,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
