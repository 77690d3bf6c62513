"""Models on the hub: the same clips, runs that start from them, what is recorded and refused."""

import json
import logging
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import REPOSITORY, environment
from hub_server import Hub
from tiny_runs import make_config, save_run

import videoar_jax
from videoar_jax import convert, evaluate, plan, sample
from videoar_jax.experiment import file_copies, load, model_folder, parse, run, validate
from videoar_jax.interop import hub, tensors
from videoar_jax.models.videoar.task import GeneratorTask
from videoar_jax.parallel import processes

pytest.importorskip("huggingface_hub")
PROMPTS = ["a large red circle moves left"]
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("hub_model") / "run"
  save_run(make_config(), workdir)
  folder = workdir.parent / "model"
  assert convert.main(["model", f"--workdir={workdir}", f"--out={folder}"]) == 0
  return folder


@pytest.fixture
def server(tmp_path, monkeypatch):
  with Hub().running() as server:
    server.use(monkeypatch, tmp_path / "home")
    yield server


def test_a_model_of_the_hub_makes_the_same_clips(folder, server, tmp_path, capsys):
  commit = server.put_folder("me/model", folder)
  video = np.zeros((1, 5, 16, 16, 3), np.float32)
  here = videoar_jax.load_tokenizer(folder / "tokenizer").encode(video)
  there = videoar_jax.load_tokenizer("hf://me/model/tokenizer").encode(video)
  np.testing.assert_array_equal(there, here)
  assert all(name.startswith("tokenizer/") for name in server.downloaded)
  model = videoar_jax.load_model(pathlib.Path("hf://me/model"))
  clips = videoar_jax.load_model(folder).sample(PROMPTS, seed=3)
  np.testing.assert_array_equal(model.sample(PROMPTS, seed=3), clips)
  flags = [f"--model=hf://me/model@{commit}", f"--prompt={PROMPTS[0]}", "--num_samples=1"]
  assert sample.main([*flags, f"--out={tmp_path / 'clips'}"]) == 0
  assert f"note: hf://me/model@{commit} is of commit {commit}" in capsys.readouterr().err
  assert len(list((tmp_path / "clips").glob("*.mp4"))) == 1


def test_what_is_no_whole_model_is_named(folder, server, tmp_path, capsys):
  server.put_folder("me/model", folder)
  files = server.files("me/model")
  weights = files[model_folder.WEIGHTS]
  server.put("me/cut", files | {model_folder.WEIGHTS: weights[:-1]})
  server.put("me/other", {"config.json": b'{"architectures": []}'})
  server.put("me/nothing", {"README.md": b""})

  def said(command, name, text, *flags):
    assert command.main([f"--model={name}", *flags]) == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("error: ") and error.count("\n") == 1

  prompt = ("--prompt=x", f"--out={tmp_path / 'clips'}")
  size = f"{model_folder.WEIGHTS} has {len(weights) - 1:,} bytes instead of {len(weights):,}"
  said(sample, "hf://me/cut", size, *prompt)
  for name in ("hf://me/other", "hf://me/nothing", "hf://me/model/tokenizer"):
    said(sample, name, f"{name} holds no model of this package, which has a file", *prompt)
  generation = ("--suite=generation", f"--out={tmp_path / 'evaluation'}")
  said(evaluate, "hf://me/other", "holds no model of this package", *generation)
  said(plan, "hf://me/other", "holds no model of this package", "--topology=v5e:2x4")
  assert not (tmp_path / "clips").exists() and not (tmp_path / "evaluation").exists()


def test_nothing_is_written_to_the_hub(server, capsys):
  refused = "=hf://me/x is on the Hugging Face hub, from which models are only read here"
  assert sample.main(["--model=x", "--prompt=x", "--out=hf://me/x"]) == 2
  assert f"--out{refused}" in capsys.readouterr().err
  assert convert.main(["model", "--workdir=x", "--out=hf://me/x"]) == 2
  assert f"--out{refused}" in capsys.readouterr().err
  assert convert.main(["push", "--model=hf://me/x", "--to=me/y"]) == 2
  assert f"--model{refused}" in capsys.readouterr().err
  flags = [sys.executable, "-m", "videoar_jax.main", "--config=configs/quickstart.py"]
  done = subprocess.run(
    [*flags, "--workdir=hf://me/x"],
    cwd=REPOSITORY,
    env=environment(),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and f"--workdir{refused}" in done.stderr


@pytest.fixture
def quiet(monkeypatch):
  monkeypatch.setattr(GeneratorTask, "media", lambda *_: {})
  monkeypatch.setattr(run, "start_log", lambda path: None)


def test_a_run_starts_from_the_hub(folder, server, tmp_path, monkeypatch, quiet, caplog):
  old = server.put_folder("me/model", folder)
  name = "hf://me/model/tokenizer"
  values = make_config(
    stages=("generator",),
    frozen_tokenizer=name,
    tokenizer={},
    **{
      "stage.generator.init.from": "hf://me/model/generator.safetensors",
      "stage.generator.loop.num_steps": 1,
    },
  )
  workdir = tmp_path / "w"
  assert run.Run(values, workdir).train()
  assert "model.json" not in server.downloaded  # Only what is named.
  assert json.loads((workdir / "config.json").read_text())["frozen_tokenizer"] == name
  known = {name: old, "hf://me/model/generator.safetensors": old}

  def recorded():
    return json.loads((workdir / "run.json").read_text())["hub"]

  assert recorded() == known
  # A commit that changes nothing that the run has of it.
  server.put("me/model", server.files("me/model") | {"README.md": b"new"})
  server.forget(monkeypatch)
  run.Run(values, workdir)
  assert recorded() == known
  changed = server.files("me/model")["tokenizer/tokenizer.safetensors"][:-1] + b"x"
  new = server.put(
    "me/model", server.files("me/model") | {"tokenizer/tokenizer.safetensors": changed}
  )
  server.forget(monkeypatch)
  with pytest.raises(ValueError, match=f"{name}@{new} differs from .* that run.json has"):
    run.Run(values, workdir)
  values.frozen_tokenizer = f"{name}@{old}"
  run.Run(values, workdir)
  # Without network, the copy is taken; a trained model does not ask the hub at all.
  values.frozen_tokenizer = name
  server.address = NOWHERE
  server.use(monkeypatch, tmp_path / "other_home")
  with caplog.at_level(logging.WARNING, logger="videoar_jax"):
    run.Run(values, workdir)
  assert "the hub cannot be reached" in caplog.text and "copy in the workdir" in caplog.text
  caplog.clear()
  trained = load.find_run(workdir)[1]
  assert trained.frozen_tokenizer == workdir / "files" / "frozen_tokenizer"
  assert not caplog.records
  shutil.rmtree(workdir)
  with pytest.raises(ValueError, match=f"^frozen_tokenizer={name}: the hub cannot be reached"):
    run.Run(values, workdir)


def test_fine_tuning_names_the_commit(folder, server):
  commit = server.put_folder("me/model", folder)
  config = model_folder.fine_tuning_config("hf://me/model")
  assert config.frozen_tokenizer == f"hf://me/model/tokenizer@{commit}"
  assert config.stage.generator.init["from"] == f"hf://me/model@{commit}"
  assert config.text.tokenizer == "words"


def test_texts_on_the_hub(server, tmp_path, monkeypatch, caplog):
  """A tokenizer's file is copied into the workdir; features are read where they were downloaded."""
  tensors.write(tmp_path / "x.safetensors", {"": np.ones((1, 8), np.float32)})
  features = (tmp_path / "x.safetensors").read_bytes()
  commit = server.put("me/text", {"a/tokenizer.json": b"{}", "x.safetensors": features})
  read = parse.finalize(make_config(**{"text.tokenizer": "hf://me/text/x.safetensors"}))
  assert commit in read.text.tokenizer
  np.testing.assert_array_equal(read.text.encoder.null()[0], np.ones(8))
  name, workdir = "hf://me/text/a/tokenizer.json@main", tmp_path / "w"
  values = {"frozen_tokenizer": None, "text": {"tokenizer": name}, "sampling": {}}
  found = file_copies.with_copies(values, workdir, is_training=True)
  assert commit in found["text"]["tokenizer"]
  workdir.mkdir()
  file_copies.keep(found, None, workdir, is_new=True)
  copy = workdir / "files" / "tokenizer.json"
  assert copy.read_bytes() == b"{}"
  # A trained model has its copy. So has a run that resumes without network.
  server.address = NOWHERE
  server.use(monkeypatch, tmp_path / "other_home")
  for is_training in (False, True):
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="videoar_jax"):
      found = file_copies.with_copies(values, workdir, is_training=is_training)
    assert found["text"]["tokenizer"] == str(copy)
  assert "copy in the workdir is used" in caplog.text
  with pytest.raises(ValueError, match=f"^text.tokenizer={name}: the hub cannot be reached"):
    file_copies.with_copies(values, tmp_path / "new", is_training=True)


def test_processes_have_one_commit(server, monkeypatch):
  server.put("me/model", {"model.json": b""})
  hub.local("hf://me/model")
  validate.check_commits()
  monkeypatch.setattr(processes, "broadcast", lambda own: own + 1)
  with pytest.raises(ValueError, match="processes took other commits of hf://me/model; "):
    validate.check_commits()


def test_the_command_line_uses_the_hub_of_its_environment(folder, server, tmp_path):
  """And only that: the copy that it makes says where it is from."""
  commit = server.put_folder("me/model", folder)
  flags = [sys.executable, "-m", "videoar_jax.convert", "model", "--workdir=hf://me/model"]
  done = subprocess.run(
    [*flags, f"--out={tmp_path / 'copy'}", "--dtype=bfloat16"],
    cwd=REPOSITORY,
    env=environment() | server.environment(tmp_path / "home"),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert f"note: hf://me/model is of commit {commit}" in done.stderr
  source = json.loads((tmp_path / "copy" / model_folder.FILE).read_text())["source"]
  assert source.startswith(f"hf://me/model@{commit}, stage generator")
  assert hub.commits() == {}
