"""Fine-tuning of InfinityStar through the commands: a tiny model's folder, on three clips."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import REPOSITORY, command, run
from media_files import encode
from tiny_star import write_model

import videoar_jax
from videoar_jax import convert, sample
from videoar_jax.experiment import load, model_folder
from videoar_jax.interop import tensors
from videoar_jax.models.infinity_star.sequences import layout_of
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.train.state import flatten

PROMPT = "a red star moves left"
MEDIA = REPOSITORY.parent / "shared" / "media"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  pytest.importorskip("tokenizers", reason="the text encoder's tokenizer file needs it")
  folder = tmp_path_factory.mktemp("star")
  return write_model(folder / "model", folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """Three captioned videos: real ones where there are some."""
  folder = tmp_path_factory.mktemp("clips")
  generator = np.random.default_rng(0)
  for i, caption in enumerate(("a red star", "a blue star moves", "left")):
    video = sorted(MEDIA.glob("*.mp4"))[i : i + 1]
    if video:
      shutil.copyfile(video[0], folder / f"{i}.mp4")
    else:
      frames = generator.integers(0, 256, (1, 6, 8, 3), np.uint8).repeat(30, axis=0)
      frames = np.kron(frames, np.ones((1, 8, 8, 1), np.uint8))
      encode(folder / f"{i}.mp4", [np.roll(x, 2 * k, 1) for k, x in enumerate(frames)])
    (folder / f"{i}.txt").write_text(caption)
  return folder


def finetune(model, clips, workdir, *more):
  config = f"configs/infinity_star_finetune.py:weights={model},data={clips},batch_size=2"
  config = ",".join([config, *more])
  flags = {"loss.parts": "all", "loop.save_every": 12, "loop.optimizer.learning_rate": 0.01}
  flags |= {"loop.media_every": 1000}
  flags = [f"--config.stage.generator.{name}={value}" for name, value in flags.items()]
  # In bfloat16, adapters that are merged round otherwise.
  flags += ["--config.generator.dtype=float32", "--config.report.num_clips=0"]
  done = run([*command(workdir, config=config)[:5], *flags])
  assert done.returncode == 0, done.stderr[-3000:]


def metrics(workdir):
  lines = (workdir / "generator" / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if "per_s" not in k} for line in lines]


def params_of(path):
  """Returns what a run or a model's folder has, adapters apart."""
  workdir, settings = load.find_run(path)
  stages = load.StageCheckpoints(
    settings, workdir, make_mesh(MeshConfig(data=1), jax.devices()[:1])
  )
  template, params = stages.load_params(settings.stages[-1])
  return template.module(params), flatten(params)


@pytest.mark.slow
def test_all_weights_are_trained_and_resume_bit_for_bit(model, clips, tmp_path, capsys):
  workdir = tmp_path / "run"
  finetune(model, clips, workdir, "steps=24")
  whole, trained = metrics(workdir), params_of(workdir)[1]
  losses = [record["loss"] for record in whole]
  assert len(losses) == 24 and np.mean(losses[-4:]) < 0.85 * np.mean(losses[:4])
  # As after a kill: the last steps are logged, but not saved.
  shutil.rmtree(workdir / "generator" / "checkpoints" / "24")
  finetune(model, clips, workdir, "steps=24")
  assert metrics(workdir) == whole
  for name, value in params_of(workdir)[1].items():
    np.testing.assert_array_equal(value, trained[name], err_msg=name)
  # Samples of the run, and of what is saved of it as a model's folder.
  assert convert.main(["model", f"--workdir={workdir}", f"--out={tmp_path / 'model'}"]) == 0
  clip, other = (
    videoar_jax.load_model(path).sample([PROMPT], seed=1) for path in (workdir, tmp_path / "model")
  )
  np.testing.assert_array_equal(clip, other)
  flags = [f"--workdir={workdir}", f"--prompt={PROMPT}", "--num_samples=1"]
  assert sample.main([*flags, f"--out={tmp_path / 'out'}"]) == 0, capsys.readouterr().err
  assert len(list((tmp_path / "out").glob("*.mp4"))) == 1


@pytest.mark.slow
def test_adapters_alone_are_trained_and_merge(model, clips, tmp_path, capsys):
  workdir = tmp_path / "run"
  finetune(model, clips, workdir, "steps=12", "lora=2")
  net, trained = params_of(workdir)
  base = tensors.read(model / model_folder.WEIGHTS)
  adapters = trained.keys() - base.keys()
  assert adapters and all(".lora_" in name for name in adapters)
  for name, value in base.items():
    np.testing.assert_array_equal(trained[name], value, err_msg=name)
  assert all(np.abs(trained[name]).max() > 0 for name in adapters)
  out, file = tmp_path / "model", tmp_path / "merged.safetensors"
  assert convert.main(["model", f"--workdir={workdir}", f"--out={out}"]) == 0
  flags = [f"--workdir={workdir}", "--stage=generator", "--merge_lora", f"--out={file}"]
  assert convert.main(["weights", *flags]) == 0
  merged, exported = tensors.read(file), tensors.read(out / model_folder.WEIGHTS)
  assert merged.keys() == exported.keys() == base.keys()
  for name, value in merged.items():
    np.testing.assert_array_equal(exported[name], value, err_msg=name)
  # Logits of the folder, and of the run's network with its adapters apart.
  layout = layout_of(net.config, (3, 2, 2))
  inputs = jax.random.normal(jax.random.key(5), (1, layout.num_tokens, 8))
  text = jnp.asarray(videoar_jax.load_model(out).text_encoder.encode(PROMPT)[None])
  logits = jax.jit(lambda net: net(text, inputs, layout))
  apart, together = logits(net), logits(params_of(out)[0])
  for ours, expected in zip(together, apart, strict=True):
    assert np.abs(ours - expected).max() < 1e-6
  unadapted = logits(params_of(model)[0])
  assert max(np.abs(a - b).max() for a, b in zip(unadapted, apart, strict=True)) > 1e-4
  clip, other = (videoar_jax.load_model(path).sample([PROMPT], seed=1) for path in (workdir, out))
  np.testing.assert_array_equal(clip, other)
  rounded = [videoar_jax.load_model(path, dtype="int8") for path in (workdir, out)]
  jax.tree.map(np.testing.assert_array_equal, *(each.generator for each in rounded))
  assert rounded[0].sample([PROMPT], seed=1).shape == clip.shape
  capsys.readouterr()
