"""Models as folders: the same clips as the run, nothing else needed, damage is named."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from tiny_runs import make_config, save_tokenizer

import videoar_jax
from videoar_jax import convert, sample
from videoar_jax.experiment import file_copies, model_folder, parse, run
from videoar_jax.experiment.stages import Stages
from videoar_jax.interop import tensors
from videoar_jax.models.videoar.task import GeneratorTask
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.train.state import flatten, with_shardings

PROMPTS = ["a large red circle moves left", "a small blue star moves up"]


@pytest.fixture(scope="module")
def patch():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(GeneratorTask, "media", lambda *_: {})
    patch.setattr(run, "start_log", lambda path: None)
    yield patch


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, patch):
  workdir = tmp_path_factory.mktemp("model") / "run"
  values = make_config()
  save_tokenizer(values, workdir, seed=0)
  run.Run(values, workdir).train()
  return workdir


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
  folder = tmp_path_factory.mktemp("exported") / "model"
  assert convert.main(["model", f"--workdir={workdir}", f"--out={folder}"]) == 0
  return folder


@pytest.fixture(scope="module")
def clips(workdir):
  return videoar_jax.load_model(workdir).sample(PROMPTS, seed=3)


def test_a_model_makes_the_clips_of_its_run(workdir, folder, clips, tmp_path):
  moved = shutil.copytree(folder, tmp_path / "elsewhere")
  np.testing.assert_array_equal(videoar_jax.load_model(moved).sample(PROMPTS, seed=3), clips)
  assert model_folder.check_hashes(moved) == 4
  flags = [f"--model={moved}", f"--prompt={PROMPTS[0]}", "--num_samples=1", "--seed=3"]
  assert sample.main([*flags, f"--out={tmp_path / 'clips'}"]) == 0
  assert len(list((tmp_path / "clips").glob("*.mp4"))) == 1
  again = tmp_path / "again"
  assert convert.main(["model", f"--workdir={moved}", f"--out={again}", "--dtype=bfloat16"]) == 0
  half = (again / model_folder.WEIGHTS).stat().st_size
  assert half < 0.6 * (moved / model_folder.WEIGHTS).stat().st_size
  rounded = videoar_jax.load_model(again).sample(PROMPTS, seed=3)
  assert rounded.shape == clips.shape


def test_a_model_is_rounded_to_int8(workdir, folder, clips, tmp_path):
  """From a folder as from a run; a folder may be in bfloat16."""
  ours, theirs = (videoar_jax.load_model(path, dtype="int8") for path in (folder, workdir))
  jax.tree.map(np.testing.assert_array_equal, ours.generator, theirs.generator)
  rounded = ours.sample(PROMPTS, seed=3)
  assert rounded.shape == clips.shape and rounded.std() > 0
  half, out = tmp_path / "half", tmp_path / "clips"
  assert convert.main(["model", f"--workdir={folder}", f"--out={half}", "--dtype=bfloat16"]) == 0
  flags = [f"--model={half}", f"--prompt={PROMPTS[0]}", "--num_samples=1", "--dtype=int8"]
  assert sample.main([*flags, f"--out={out}"]) == 0
  assert len(list(out.glob("*.mp4"))) == 1


def test_a_stage_starts_from_a_model_with_a_frozen_tokenizer(workdir, folder, tmp_path):
  """With a cache before its first stage; the workdir needs neither folder afterwards."""
  model = shutil.copytree(folder, tmp_path / "model")
  values = make_config(
    stages=("cache", "generator"),
    frozen_tokenizer=str(model / "tokenizer"),
    tokenizer={},
    **{"stage.generator.init.from": str(model), "stage.generator.loop.num_steps": 2},
  )
  opened = run.Run(values, tmp_path / "w")
  stages, (stage,) = opened.stages, opened.stages.run.stages
  trained = Stages(parse.finalize(make_config()), workdir, make_mesh(stages.run.mesh))
  first = stages.first_state(stage, stages.make_trainer(stage, 0), 0)
  _, wanted = trained.load_params(trained.run.stages[-1])
  for name, leaf in flatten(wanted).items():
    np.testing.assert_array_equal(flatten(first["params"])[name], leaf)
  assert opened.train()
  shutil.rmtree(model)
  made = videoar_jax.load_model(tmp_path / "w").sample(PROMPTS[:1])
  assert made.shape == (1, 5, 16, 16, 3)
  tokenizer = videoar_jax.load_tokenizer(tmp_path / "w")
  video = np.zeros((1, 5, 16, 16, 3), np.float32)
  expected = videoar_jax.load_tokenizer(workdir).encode(video)
  np.testing.assert_array_equal(tokenizer.encode(video), expected)
  assert not run.Run(values, tmp_path / "w").train()


def test_a_frozen_tokenizer_that_does_not_fit_is_named(folder, tmp_path):
  frozen = str(folder / "tokenizer")

  def said(text, **changes):
    settings = {"frozen_tokenizer": frozen, "tokenizer": {}, "stages": ("generator",)}
    with pytest.raises(ValueError, match=text):
      parse.finalize(make_config(**settings | changes))

  said("stage.tokenizer trains a tokenizer, but frozen_tokenizer", stages=("tokenizer",))
  said("tokenizer.num_bits is set, but frozen_tokenizer=", tokenizer={"num_bits": 3})
  said("holds no converted tokenizer", frozen_tokenizer=str(tmp_path))
  other = shutil.copytree(frozen, tmp_path / "other")
  text = (other / "tokenizer.json").read_text()
  (other / "tokenizer.json").write_text(text.replace('"bsq"', '"kl"'))
  said("of the tokenizer family 'kl', but 'videoar' takes bsq", frozen_tokenizer=str(other))
  (other / "tokenizer.json").write_text(text[:-9])
  said("tokenizer.json is damaged", frozen_tokenizer=str(other))


def test_the_copy_of_a_tokenizer_is_replaced_until_something_is_trained(folder, tmp_path):
  kept = tmp_path / "w" / "files" / "frozen_tokenizer"
  values = {"text": {"tokenizer": "words"}, "sampling": {}}
  for name, is_new in (("one", True), ("two", True), ("three", False)):
    other = shutil.copytree(folder / "tokenizer", tmp_path / name)
    text = (other / "tokenizer.json").read_text().replace('"source": "', f'"source": "{name} ')
    (other / "tokenizer.json").write_text(text)
    (other / ".cache").mkdir()
    values["frozen_tokenizer"] = str(other)
    (tmp_path / "w").mkdir(exist_ok=True)
    file_copies.keep(values, None, tmp_path / "w", is_new=is_new)
    found = json.loads((kept / "tokenizer.json").read_text())["source"]
    assert found.startswith(f"{name} " if is_new else "two ")
  with pytest.raises(ValueError, match=r"three differs from .* in tokenizer\.json"):
    file_copies.check_same_tokenizer(values, tmp_path / "w")
  file_copies.check_same_tokenizer(
    values | {"frozen_tokenizer": str(tmp_path / "two")}, tmp_path / "w"
  )


def test_too_little_memory_is_said_before_loading(folder, monkeypatch):
  """In the type that is asked for, whatever the type in the file."""
  shapes = tensors.shapes(folder / model_folder.WEIGHTS)
  needed = 4 * sum(map(math.prod, shapes.values()))
  monkeypatch.setattr(model_folder, "available_bytes", lambda: needed - 1)
  sizes = rf"{needed / 2**30:.1f} GiB of memory for its weights in float32, .* in bfloat16, but"
  with monkeypatch.context() as patch:
    patch.setattr(model_folder, "_array", lambda *_: pytest.fail("weights are read"))
    with pytest.raises(ValueError, match=f"needs {sizes}"):
      videoar_jax.load_model(folder)
    with pytest.raises(ValueError, match=r"GiB .* in int8 beside those that are stored, "):
      videoar_jax.load_model(folder, dtype="int8")
  model = videoar_jax.load_model(folder, dtype="bfloat16")
  assert {str(x.dtype) for x in jax.tree.leaves(model.generator)} == {"bfloat16"}
  whole = tensors.read(folder / model_folder.WEIGHTS)["norm_out.scale"]
  np.testing.assert_array_equal(model.generator.norm_out.scale[...], whole.astype("bfloat16"))


def test_a_stage_starts_from_weights_of_half_precision(folder, tmp_path):
  half = tmp_path / "half.safetensors"
  whole = tensors.read(folder / model_folder.WEIGHTS)
  kinds = {name: (x.shape, np.dtype("bfloat16")) for name, x in whole.items()}
  tensors.write_each(half, kinds, whole.__getitem__)
  stages = Stages(parse.finalize(make_config()), tmp_path, make_mesh(MeshConfig()))
  template = stages.module_template(stages.run.stages[-1])
  abstract = with_shardings(template.shapes, template.shardings(stages.mesh))
  for name, found in model_folder.load_initial(half, abstract).items():
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, whole[name].astype("bfloat16").astype(np.float32))


def test_damage_is_named(folder, tmp_path, capsys):
  model = shutil.copytree(folder, tmp_path / "model")

  def said(text):
    assert sample.main([f"--model={model}", "--prompt=x", f"--out={tmp_path / 'clips'}"]) == 2
    assert text in capsys.readouterr().err

  weights = model / model_folder.WEIGHTS
  whole = weights.read_bytes()
  weights.write_bytes(whole[:-1])
  said(f"generator.safetensors has {len(whole) - 1:,} bytes instead of {len(whole):,}")
  weights.write_bytes(whole[:-1] + b"x")
  with pytest.raises(ValueError, match="has changed since"):
    model_folder.check_hashes(model)
  weights.unlink()
  said("generator.safetensors is missing; copy or convert the model again")
  weights.write_bytes(whole)
  facts = json.loads((model / "model.json").read_text())
  (model / "model.json").write_text(json.dumps(facts["source"]))
  said("model.json is damaged")
  assert convert.main(["model", f"--workdir={folder}", f"--out={folder}"]) == 2
  assert "is not empty" in capsys.readouterr().err


def test_a_model_is_no_workdir_to_train_in(folder):
  with pytest.raises(ValueError, match="is a model's folder"):
    run.Run(make_config(), folder)
