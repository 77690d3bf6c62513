"""Stages with batches of several shapes: one program per shape, one network, exact resume."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from tiny_runs import make_config, make_mixed_config, save_tokenizer
from type_checks import stand_in

from videoar_jax.data.mixture import Mixture
from videoar_jax.experiment import parse, run
from videoar_jax.experiment.inputs import Batches
from videoar_jax.experiment.load import find_stage, load_model, load_tokenizer
from videoar_jax.models.base import ClipShape
from videoar_jax.models.videoar import family
from videoar_jax.models.videoar.sequences import layout_of, trained_frames, widest_layout
from videoar_jax.models.videoar.task import GeneratorTask
from videoar_jax.train.trainer import Trainer


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("mixed")
  save_tokenizer(make_mixed_config(), workdir, seed=0)
  return workdir


@pytest.fixture
def trained(workdir, monkeypatch):
  """The workdir with all stages trained, by the test above or by this fixture."""
  monkeypatch.setattr(GeneratorTask, "media", lambda *_: {})
  monkeypatch.setattr(run, "start_log", lambda path: None)
  run.Run(make_mixed_config(), workdir).train()
  return workdir


def records(workdir, stage):
  lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
  clock = ("steps_per_s", "tokens_per_s")
  return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def test_stages_of_several_shapes_train_and_resume(workdir, monkeypatch):
  """One program per shape; an interrupted run ends like an uninterrupted one."""
  trainers, text = [], []
  monkeypatch.setattr(GeneratorTask, "media", lambda *_: {})
  monkeypatch.setattr(run, "start_log", lambda path: None)
  monkeypatch.setattr(
    "videoar_jax.experiment.inputs.log.info", lambda *a: text.append(a[0] % a[1:])
  )
  init = Trainer.__init__

  def keep(self, *arguments, **options):
    init(self, *arguments, **options)
    trainers.append(self)

  monkeypatch.setattr(Trainer, "__init__", keep)
  with pytest.raises(ValueError, match=r"--stage=II starts from stage I; finish --stage=I first"):
    run.Run(make_mixed_config(), workdir).train("II")
  with pytest.raises(ValueError, match=r"--stage=III is not a stage; they are tokenizer, I, II"):
    run.Run(make_mixed_config(), workdir).train("III")
  first = run.Run(make_mixed_config(), workdir)
  assert first.train("I") and not first.is_finished
  assert trainers[-1].step._cache_size() == 2
  assert any("40.0% of the batches are images 1x16x16" in line for line in text)
  whole = records(workdir, "I")
  assert [record["step"] for record in whole] == list(range(1, 11))
  # On clips of the stage's own shape, whatever the step before was of.
  assert [record["step"] for record in whole if "eval/loss" in record] == [3, 6, 9, 10]
  # As a run that was killed after its save of step 8.
  shutil.rmtree(workdir / "I" / "checkpoints" / "10")
  again = run.Run(make_mixed_config(), workdir)
  assert again.train() and again.is_finished
  assert records(workdir, "I") == whole
  assert len(records(workdir, "II")) == 2
  # The network has rows for the four scales of the second stage, from the beginning.
  scales = [trainer.template.shapes["scale_embedding"] for trainer in trainers[-2:]]
  rows = [jax.tree.leaves(embedding)[0].shape[0] for embedding in scales]
  assert rows == [widest_layout(again.stages.run).num_scales] * 2 and rows[0] > 3


def test_models_of_several_resolutions(trained):
  """A trained model makes clips of any shape of its stages, and refuses more scales."""
  model = load_model(trained)
  assert model.resolution == (24, 16) and model.num_steps() == 1 + len(model.layout.schedule)
  small = load_model(trained, resolution=(16, 16))
  clip = small.sample(["a red circle"])
  assert clip.shape == (1, 1, 16, 16, 3) and small.layout.schedule == ((1, 1), (2, 2), (4, 4))
  earlier = load_model(trained / "I" / "checkpoints" / "10", resolution=(24, 16))
  assert earlier.sample(["a red circle"]).shape == (1, 5, 24, 16, 3)
  with pytest.raises(ValueError, match=r"resolution=64x64 has \d scales, but the network .* 5;"):
    load_model(trained, resolution=(64, 64))
  with pytest.raises(ValueError, match=r"^resolution: width 18 is not a multiple"):
    load_model(trained, resolution=(16, 18))


def test_learned_positions_are_of_one_shape():
  """Frames with swapped sides have equally many tokens, at other positions."""
  changes = {
    "data.resolution": (16, 24),
    "tokenizer.schedule": "",
    "generator.patch_sizes": (1,),
    "generator.has_place_embedding": False,
    "generator.positions": "learned",
  }
  settings = parse.finalize(make_config(**changes))
  stage = settings.stages[-1]
  with pytest.raises(ValueError, match=r"resolution=24x16: learned positions serve clips of one"):
    family._sampled_layout(settings, stage, (24, 16))
  assert family._sampled_layout(settings, stage, (16, 24)) == layout_of(settings, stage.data)


def test_the_longest_clips_of_a_mixture_count_as_trained():
  """A prompt moves along in longer clips than these, not than those of the stage's own data."""
  clips = {"weight": 1.0, "num_frames": (1, 9)}
  values = make_mixed_config(**{"stage.I.mixture": {"clips": clips}})
  settings = parse.finalize(values)
  stage = settings.stages[1]
  assert layout_of(settings, stage.data).num_frames == 3
  assert trained_frames(settings, stage) == 5 and trained_frames(settings, settings.stages[2]) == 1


def test_an_embedding_of_places_is_of_one_resolution():
  with pytest.raises(ValueError, match="has_place_embedding=True needs clips of one resolution"):
    parse.finalize(make_mixed_config(**{"generator.has_place_embedding": True}))
  changes = {"data.resolution": (16, 24), "tokenizer.schedule": "", "generator.patch_sizes": (1,)}
  settings = parse.finalize(make_config(**changes))
  stage = settings.stages[-1]
  with pytest.raises(ValueError, match=r"resolution=24x16: an embedding of places serves one"):
    family._sampled_layout(settings, stage, (24, 16))


def test_checkpoint_of_a_tokenizer_is_no_model(trained):
  """Nor is another stage loaded silently; a generator's checkpoint stands for its tokenizer."""
  with pytest.raises(ValueError, match=r"'tokenizer' trains a tokenizer, .* checkpoint of I or II"):
    load_model(next((trained / "tokenizer" / "checkpoints").iterdir()))
  with pytest.raises(ValueError, match="'tokenizer' trains a tokenizer"):
    find_stage(trained / "tokenizer", "generator")
  used = load_tokenizer(trained / "I" / "checkpoints" / "10").autoencoder
  trained = load_tokenizer(trained).autoencoder
  jax.tree.map(np.testing.assert_array_equal, nnx.state(used), nnx.state(trained))


def test_tokenizer_needs_no_text(trained, tmp_path):
  """The text file that a run was trained with may be missing."""
  other = shutil.copytree(trained, tmp_path / "run")
  values = json.loads((other / "config.json").read_text())
  values["text"] = {"tokenizer": str(tmp_path / "gone.safetensors"), "length": 4}
  (other / "config.json").write_text(json.dumps(values))
  assert load_tokenizer(other).config.num_bits == values["tokenizer"]["num_bits"]
  assert find_stage(other, "tokenizer")[1].name == "tokenizer"
  with pytest.raises(ValueError, match=r"gone\.safetensors"):
    load_model(other)


def test_batches_cost_the_same():
  values = make_mixed_config()
  values.stage.I.mixture.clips.num_frames = (5, 9)
  settings = parse.finalize(values)
  batches = Batches(settings, run.make_mesh(settings.mesh, jax.devices()[:1]))
  stage = settings.stages[1]
  sources = [run.make_source(part.data, "train") for part in stage.mixture]
  mixture = batches.mixture(stage, sources, seed=0)
  budget = 4 * layout_of(settings, stage.data).length
  for (frames, *size), rows in mixture.shapes:
    assert rows == budget // layout_of(settings, ClipShape(frames, tuple(size))).length
  by_frames = {shape[0]: rows for shape, rows in mixture.shapes}
  assert by_frames[1] > by_frames[5] == 4 > by_frames[9]
  batch = mixture.read(0)
  assert batch["video"].shape[0] == by_frames[batch["video"].shape[1]]
  assert np.all(batch["bucket"] == batch["bucket"][0])


def test_batches_that_cost_more_are_told(caplog):
  values = make_mixed_config(mesh={"data": 2})
  settings = parse.finalize(values)
  batches = Batches(settings, run.make_mesh(settings.mesh, jax.devices()[:2]))
  stage = settings.stages[1]
  budget = 4 * layout_of(settings, stage.data).length
  shapes = {(1, 16, 16): 0, (5, 16, 16): 4}
  shapes[1, 16, 16] = round(budget * 1.2 / layout_of(settings, ClipShape(1, (16, 16))).length)
  mixture = stand_in(Mixture, shapes=list(shapes.items()))
  batches.warn_of_uneven(stage, mixture)
  [record] = caplog.records
  share = shapes[1, 16, 16] * layout_of(settings, ClipShape(1, (16, 16))).length / budget
  told = f"clips of 1x16x16 (frames x height x width) has {share:.2f} times"
  assert share > 1.1 and told in record.getMessage()
  assert "divide over 2 devices" in record.getMessage()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"clips": {"weight": 0.5}}, r"stage\.I\.mixture: the weights sum to 0\.5"),
    ({"clips": {"weight": -1.0}}, r"mixture\.clips\.weight=-1\.0 must be more than 0"),
    ({"clips": {}}, r"mixture\.clips\.weight=None"),
    ({"clips": {"weight": 1.0, "pixels": 128}}, "pixels and aspect_ratios belong together"),
    (
      {"clips": {"weight": 1.0, "pixels": 100, "aspect_ratios": (1.0,)}},
      r"mixture\.clips: pixels=100 has no table",
    ),
    ({"clips": {"weight": 1.0, "colour": 3}}, r"mixture\.clips\.colour is not a field"),
    ({"clips": {"weight": 1.0, "num_frames": (5, 6)}}, r"6 frames|num_frames"),
  ],
)
def test_mixtures_that_cannot_be_are_named(changes, message):
  values = make_mixed_config()
  values.stage.I.mixture = changes
  with pytest.raises(ValueError, match=message):
    parse.finalize(values)


def test_networks_that_cannot_serve_all_stages_are_named():
  for name, value in (("context", "full_frame"), ("positions", "learned")):
    values = make_mixed_config()
    values.generator[name] = value
    with pytest.raises(ValueError, match=rf"generator\.{name}='{value}' needs"):
      parse.finalize(values)


def test_a_tokenizer_alone_trains_on_images_and_clips(tmp_path, monkeypatch):
  """A run that trains no generator need not configure one."""
  monkeypatch.setattr(run, "start_log", lambda path: None)
  values = make_config().to_dict()
  loop = {"num_steps": 3, "batch_size": 2, "media_every": 100, "optimizer": {"kind": "adamw"}}
  images = {"weight": 0.5, "num_frames": 1, "batch_size": 2}
  stage = {"mixture": {"clips": {"weight": 0.5}, "images": images}, "loop": loop}
  values |= {"stages": ("tokenizer",), "stage": {"tokenizer": stage}}
  del values["generator"]
  trained = run.Run(ConfigDict(values), tmp_path)
  assert trained.train()
  assert [record["step"] for record in records(tmp_path, "tokenizer")] == [1, 2, 3]
