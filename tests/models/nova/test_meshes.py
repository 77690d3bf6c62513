"""Training and sampling of NOVA on several devices equal those on one, for every mesh.

Eight devices are those of a process of their own, since this one has two.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from tiny_nova import make_config
from tiny_runs import save_tokenizer

from videoar_jax.data.pipeline import make_source
from videoar_jax.experiment import parse
from videoar_jax.experiment.inputs import media_batch
from videoar_jax.experiment.stages import Stages
from videoar_jax.parallel.mesh import MeshConfig, make_mesh, shard_batch, shard_padded
from videoar_jax.train.trainer import NUM_SHOWN

MESHES = {
  "data": {"data": 8},
  "fsdp": {"fsdp": 8},
  "tensor": {"tensor": 8},
  "sequence": {"sequence": 8},
  "mixed": {"slice": 2, "fsdp": 2, "tensor": 2},
  "mixed sequence": {"data": 2, "sequence": 2, "tensor": 2},
}


def make_run(num_devices, num_ranges):
  """So that the devices divide heads, widths and batches, but not the tokens of a sequence."""
  return make_config(
    **{
      "generator.d_model": 8 * num_devices,
      "generator.num_heads": num_devices,
      "generator.head_mlp_dim": 2 * num_devices,
      "generator.has_motion": True,
      "stage.generator.loop.batch_size": num_devices,
      "stage.generator.loss.num_known_ranges": num_ranges,
      "stage.tokenizer.loop.batch_size": num_devices,
    }
  )


def batches(run, stage, num_steps):
  """Yields batches of random latents: encoding clips would compile for longer than all else."""
  rng, b = np.random.default_rng(0), stage.loop.batch_size
  shape = run.tokenizer.latent_shape(stage.data.num_frames, stage.data.resolution)
  for _ in range(num_steps):
    yield {
      "text": rng.integers(2, 100, (b, run.text.length), np.int32),
      "flow": rng.uniform(0, 9, b).astype(np.float32),
      "latents": rng.normal(size=(b, *shape, run.tokenizer.num_encoded)).astype(np.float32),
    }


def losses(stages, stage, num_steps):
  """Returns the losses and gradient norms of a stage's first steps."""
  trainer = stages.make_trainer(stage, seed=0)
  state, found = trainer.init(), []
  with jax.set_mesh(stages.mesh):
    for batch in batches(stages.run, stage, num_steps):
      batch = shard_batch(batch, stages.mesh)
      state, metrics = trainer.step(state, trainer.task.frozen, batch, trainer.key)
      found.append([float(metrics[name]) for name in ("loss", "gradient_norm")])
  return np.array(found)


def shown(stages, stage):
  """Returns the clips that a stage shows before its first step."""
  trainer, source = stages.make_trainer(stage, seed=0), make_source(stage.data, "test")
  batch = shard_padded(media_batch(stage.data, source, stages.run.text.encoder), stages.mesh)
  with jax.set_mesh(stages.mesh):
    (clips,) = trainer.media(trainer.init()["params"], trainer.task.frozen, batch).values()
  return np.asarray(clips, int)


def compare(num_devices, meshes, num_steps, *, num_ranges=1, has_samples):
  """Trains and samples on one device and on several, and compares."""
  values = make_run(num_devices, num_ranges)
  devices = jax.devices()[:num_devices]
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder)
    save_tokenizer(values, workdir, seed=0)
    run = parse.finalize(values)
    stage, one = run.stages[-1], make_mesh(MeshConfig(data=1), devices[:1])
    expected = losses(Stages(run, workdir, one), stage, num_steps)
    assert len({tuple(row) for row in expected}) == num_steps
    expected_clips = shown(Stages(run, workdir, one), stage) if has_samples else None
    for name, sizes in meshes.items():
      mesh = make_mesh(MeshConfig(**{"data": 1} | sizes), devices)
      run.family.check_mesh(run, mesh)
      stages = Stages(run, workdir, mesh)
      error = np.abs(losses(stages, stage, num_steps) / expected - 1).max(axis=0)
      print(f"{name}: {error}", flush=True)
      assert error[0] < 1e-5 and error[1] < 1e-4, (name, error)
      if has_samples:
        assert len(expected_clips) == NUM_SHOWN and expected_clips.std() > 5
        difference = np.abs(shown(stages, stage) - expected_clips)
        assert (difference > 1).mean() < 0.01, name


def test_two_devices_equal_one():
  meshes = {axis: {axis: 2} for axis in ("fsdp", "sequence", "tensor")}
  compare(2, meshes, 2, has_samples=False)


@pytest.mark.slow
def test_eight_devices_equal_one():
  folder = pathlib.Path(__file__).parent
  paths = [str(folder.parents[1] / "helpers"), str(folder)]
  lines = (
    f"import sys; sys.path[:0] = {paths!r}",
    "import test_meshes",
    "test_meshes.compare(8, test_meshes.MESHES, 3, num_ranges=2, has_samples=True)",
  )
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
  flags["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  done = subprocess.run(
    [sys.executable, "-c", "\n".join(lines)],
    cwd=folder.parents[2],
    env=os.environ | flags,
    capture_output=True,
    text=True,
    timeout=1500,
  )
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
