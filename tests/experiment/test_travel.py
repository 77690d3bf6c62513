"""Runs that travel: workdirs and data that are moved, and data that is changed on the way."""

import json
import os
import shutil

import numpy as np
import pytest
from media_files import write_image
from tiny_runs import make_config

from videoar_jax import sample
from videoar_jax.data.pipeline import make_source
from videoar_jax.data.sources import latents
from videoar_jax.experiment import data_listing, run
from videoar_jax.experiment.load import find_run
from videoar_jax.experiment.paths import absolute, resolved
from videoar_jax.experiment.stages import Stages
from videoar_jax.experiment.token_cache import Cache, CacheConfig, check_fits
from videoar_jax.interop import tensors
from videoar_jax.models.videoar.sequences import all_layouts, guidance_of

PROMPTS = ("", *(f"class{i}" for i in range(10)))
FEATURES = {prompt: np.full((1 + i % 3, 6), 1 + i, np.float32) for i, prompt in enumerate(PROMPTS)}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
  monkeypatch.setattr(run, "start_log", lambda path: None)


@pytest.fixture
def begun(monkeypatch):
  """Makes all stages of a run look begun."""
  monkeypatch.setattr(Stages, "latest_step", lambda self, stage: 1)


def make_folder(folder, num=20):
  for i in range(num):
    write_image(folder / f"class{i % 10}" / f"v{i:02}.png", i)
  return folder


def config_of(folder, **changes):
  """Returns a run on a folder of images."""
  data = {"data.source": "folder", "data.path": str(folder), "data.num_frames": 1}
  return make_config(stages=("tokenizer", "generator"), **data, **changes)


def test_all_spellings_of_a_path_are_one(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "clips").mkdir()
  (tmp_path / "link").symlink_to("clips")
  spellings = [str(tmp_path / "clips"), "clips", "./clips/", "~/clips", "link", "link/../clips"]
  configs = [
    {"data": {"path": path}, "stage": {"a": {"path": path, "init": {"from": path}}}}
    for path in spellings
  ]
  assert all(resolved(values) == resolved(configs[0]) for values in configs)
  assert absolute(configs[4])["data"]["path"] == str(tmp_path / "link")
  # These are no paths.
  others = {"data": {"path": "gs://b/c"}, "text": {"tokenizer": "words"}, "stages": ("a",)}
  others |= {"sampling": {"guidance": "t2v"}, "stage": {"path": {"data": {"path": None}}}}
  assert absolute(others) == resolved(others) == others


def test_a_workdir_is_sampled_and_resumed_elsewhere(tmp_path, begun, monkeypatch):
  """Without the files that its config names, from another folder, with other settings."""
  old, new = tmp_path / "old", tmp_path / "new"
  make_folder(old / "clips", 4)
  tensors.write(old / "features.safetensors", FEATURES)
  table = [[1.0, 2.0]]
  (old / "guidance.json").write_text(json.dumps(table))
  monkeypatch.chdir(old)
  names = {"text.tokenizer": "features.safetensors", "text.length": 3}
  opened = run.Run(config_of("clips", **names, **{"sampling.guidance": "guidance.json"}), old / "w")
  assert opened.stages.run.text.encoder.encode("class0").shape == (3, 6)
  shutil.copytree(old, new)
  shutil.rmtree(old)
  monkeypatch.chdir(tmp_path)
  _, found = find_run(new / "w")
  np.testing.assert_array_equal(found.text.encoder.null(), [[1] * 6, [0] * 6, [0] * 6])
  with pytest.raises(ValueError, match=r"no features of 'class0', .*--text_features"):
    found.text.encoder.encode("class0")
  assert found.generator.text_dim == 6
  np.testing.assert_array_equal(guidance_of(found, all_layouts(found)[0]), table)
  _, given = find_run(new / "w", str(new / "features.safetensors"))
  assert given.text.encoder.encode("class0").any()

  names["text.tokenizer"] = str(new / "features.safetensors")
  settings = {"sampling.guidance": "constant:2", "report.num_clips": 3}
  moved = config_of(new / "clips", **names, **settings)
  (new / "w" / "report.md").touch()
  assert run.Run(moved, new / "w").stages.run.report.num_clips == 3
  assert not (new / "w" / "report.md").exists()  # Another one is due.
  tensors.write(new / "others.safetensors", FEATURES | {"": 2 * FEATURES[""]})
  names["text.tokenizer"] = str(new / "others.safetensors")
  for other in (names, {"text.length": 3, "text.tokenizer": "bytes"}):
    with pytest.raises(ValueError, match=r"text\.tokenizer=.*encodes prompts differently"):
      run.Run(config_of(new / "clips", **settings, **other), new / "w")


def test_a_tokenizer_file_is_copied(tmp_path, begun):
  pytest.importorskip("tokenizers")
  text = '{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}'
  (tmp_path / "t.json").write_text(text)
  config = config_of(
    make_folder(tmp_path / "clips"), **{"text.tokenizer": str(tmp_path / "t.json")}
  )
  run.Run(config, tmp_path / "w")
  (tmp_path / "t.json").unlink()
  assert find_run(tmp_path / "w")[1].text.encoder.vocabulary_size == 3
  run.Run(config, tmp_path / "w")
  (tmp_path / "t.json").write_text(text.replace('"a":0', '"a":0,"b":1'))
  with pytest.raises(ValueError, match="encodes prompts differently"):
    run.Run(config, tmp_path / "w")
  assert find_run(tmp_path / "w")[1].text.encoder.vocabulary_size == 3


def add(folder):
  write_image(folder / "class3" / "new.png", 1)


def remove(folder):
  for file in ("class1/v01.png", "class1/v11.png"):
    (folder / file).unlink()


def change(folder):
  write_image(folder / "class4/v04.png", 1, size=(64, 64))


def add_class(folder):
  write_image(folder / "class0a" / "new.png", 1)


def caption(folder):
  (folder / "captions.jsonl").write_text('{"file": "class5/v05.png", "caption": "new"}\n')


@pytest.mark.parametrize(
  ("make", "said"),
  [
    (add, r"1 added \(class3/new\.png\)"),
    (
      remove,
      r"removed \(class1/v01\.png.*8 classes have other numbers \('class2' 2 -> 1, .*\.\.\.\)",
    ),
    (change, r"1 changed \(class4/v04\.png\)"),
    (add_class, r"1 added \(class0a/new\.png\); 9 classes have other numbers \('class1' 1 -> 2"),
    (caption, r"captions or motion changed"),
  ],
)
def test_changed_data_is_refused_unless_allowed(tmp_path, monkeypatch, make, said):
  folder = make_folder(tmp_path / "clips")
  config = config_of(folder)
  run.Run(config, tmp_path / "w")
  before = (tmp_path / "w" / "data.json").read_text()
  monkeypatch.setattr(Stages, "latest_step", lambda self, stage: 1)
  for file in folder.rglob("*.png"):
    os.utime(file, (1, 1))  # Copies have other times.
  run.Run(config, tmp_path / "w")
  make(folder)
  with pytest.raises(ValueError, match=rf"data (train|test): .*{said}(.|\n)*--allow_changed_data"):
    run.Run(config, tmp_path / "w")
  assert (tmp_path / "w" / "data.json").read_text() == before
  run.Run(config, tmp_path / "w", is_changed_data_allowed=True)
  run.Run(config, tmp_path / "w")


def test_data_may_move_but_not_be_other_data(tmp_path, begun):
  folder = make_folder(tmp_path / "clips")
  run.Run(config_of(folder), tmp_path / "w")
  folder.rename(tmp_path / "moved")
  run.Run(config_of(tmp_path / "moved"), tmp_path / "w")
  saved = json.loads((tmp_path / "w" / "config.json").read_text())
  assert saved["data"]["path"] == str(tmp_path / "moved")
  with pytest.raises(ValueError, match=r"6 removed"):
    run.Run(config_of(make_folder(tmp_path / "other", 14)), tmp_path / "w")
  for text in ("{", "[]", '{"data train": {}}'):
    (tmp_path / "w" / "data.json").write_text(text)
    with pytest.raises(ValueError, match=r"data\.json is damaged .*; remove it"):
      run.Run(config_of(tmp_path / "moved"), tmp_path / "w")
  (tmp_path / "w" / "data.json").unlink()  # As in workdirs of earlier versions.
  with pytest.raises(ValueError, match=r"config\.data\.path: "):
    run.Run(config_of(tmp_path / "other"), tmp_path / "w")


def test_a_stage_that_inherited_its_data_does_not_get_others(tmp_path, begun):
  config = config_of(make_folder(tmp_path / "clips"))
  run.Run(config, tmp_path / "w")
  saved = json.loads((tmp_path / "w" / "data.json").read_text())
  assert saved["stage.generator.data train"] == saved["stage.tokenizer.data train"] == "data train"
  config.stage.generator.data = {"path": str(make_folder(tmp_path / "others", 30))}
  with pytest.raises(ValueError, match=r"\n  stage\.generator\.data train: \d+ added"):
    run.Run(config, tmp_path / "w")


def test_data_that_changes_before_training_is_no_fault(tmp_path):
  config = config_of(make_folder(tmp_path / "clips"))
  run.Run(config, tmp_path / "w")
  add(tmp_path / "clips")
  run.Run(config, tmp_path / "w")
  # Nor are prompts that are encoded in another way.
  tensors.write(tmp_path / "features.safetensors", FEATURES)
  names = {"text.length": 3, "text.tokenizer": str(tmp_path / "features.safetensors")}
  run.Run(config_of(tmp_path / "clips", **names), tmp_path / "x")
  tensors.write(tmp_path / "others.safetensors", FEATURES | {"": 2 * FEATURES[""]})
  names["text.tokenizer"] = str(tmp_path / "others.safetensors")
  run.Run(config_of(tmp_path / "clips", **names), tmp_path / "x")
  samples = data_listing.read(tmp_path / "w")
  assert any("class3/new.png" in listing["samples"] for listing in samples.values())


def test_classes_are_those_of_training(tmp_path):
  config = config_of(make_folder(tmp_path / "clips"))
  run.Run(config, tmp_path / "w")
  shutil.rmtree(tmp_path / "clips")
  workdir, found = find_run(tmp_path / "w")
  names = data_listing.class_names(workdir, found, found.data)
  assert names == [f"class{i}" for i in range(10)]
  stage = found.generator_stages[-1]
  assert sample._class_name(str(tmp_path / "w"), found, stage, 3) == "class3"


def test_many_samples_are_told_by_their_number(tmp_path, monkeypatch):
  monkeypatch.setattr(data_listing, "_MAX_LISTED", 5)
  data = config_of(make_folder(tmp_path / "clips"))
  run.Run(data, tmp_path / "w")
  monkeypatch.setattr(Stages, "latest_step", lambda self, stage: 1)
  remove(tmp_path / "clips")
  with pytest.raises(ValueError, match=r"\d+ samples are now \d+, or others"):
    run.Run(data, tmp_path / "w")


def test_a_cache_of_data_that_moved_is_kept(tmp_path):
  """If the files are of the same sizes; an index without sizes knows the folder alone."""
  folder = make_folder(tmp_path / "clips")
  opened = run.Run(config_of(folder), tmp_path / "w").stages.run

  def index(path):
    data = config_of(path)
    data = run.parse.finalize(data).data
    cache = Cache("cache", "tokenizer", data, CacheConfig())
    return cache.index(opened.tokenizer, "x", make_source(data, "train"))

  network = opened.tokenizer_family.network
  latents.write_index(tmp_path / "cache", index(folder))
  shutil.copytree(folder, tmp_path / "copy")
  check_fits(tmp_path / "cache", index(tmp_path / "copy"), network)
  for file in (tmp_path / "copy").rglob("*.png"):
    write_image(file, 1, size=(64, 64))
  with pytest.raises(ValueError, match="files: "):
    check_fits(tmp_path / "cache", index(tmp_path / "copy"), network)
  facts = json.loads((tmp_path / "cache" / "index.json").read_text())
  del facts["files"]
  (tmp_path / "cache" / "index.json").write_text(json.dumps(facts))
  (tmp_path / "link").symlink_to("clips")
  check_fits(tmp_path / "cache", index(tmp_path / "link"), network)
  with pytest.raises(ValueError, match=r"data\.path: "):
    check_fits(tmp_path / "cache", index(tmp_path / "copy"), network)


def test_changes_of_names_that_are_not_utf_8_can_be_printed(tmp_path, begun):
  folder = make_folder(tmp_path / "clips")
  config = config_of(folder)
  run.Run(config, tmp_path / "w")
  shutil.copy(folder / "class3" / "v03.png", os.fsencode(folder / "class3") + b"/caf\xe9.png")
  with pytest.raises(ValueError, match=r"1 added \(class3/caf\\udce9\.png\)"):
    run.Run(config, tmp_path / "w")
