"""A builder of TensorFlow Datasets, read without TensorFlow."""

import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from type_checks import stand_in

from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.evals import report
from videoar_jax.experiment.schema import RunConfig

NUM_EXAMPLES, NUM_FRAMES = 4, 7


class Toy(tfds.core.GeneratorBasedBuilder):
  """Example i has frames of colour (40 i, 10 k, 0); the last example is too short."""

  VERSION = tfds.core.Version("1.0.0")
  pkg_dir_path = epath.Path(".")

  def _info(self):
    frames = tfds.features.Sequence(tfds.features.Image(shape=(16, 32, 3)))
    label = tfds.features.ClassLabel(names=["dog", "cat"])
    features = {"name": tfds.features.Scalar(np.int64), "frames": frames, "kind": label}
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(NUM_EXAMPLES):
      frames = [
        encode((40 * i, 10 * k, 0)) for k in range(2 if i == NUM_EXAMPLES - 1 else NUM_FRAMES)
      ]
      yield i, {"name": i, "frames": frames, "kind": i % 2}


def encode(colour):
  file = io.BytesIO()
  Image.new("RGB", (32, 16), colour).save(file, "png")
  file.seek(0)
  return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  builder = Toy(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
  builder.download_and_prepare()
  assert "tensorflow" not in sys.modules
  return Path(builder.data_dir)


def make(folder, split="train", num_frames=3, **options):
  config = {"num_frames": num_frames, "resolution": (8, 8)} | options
  return make_source(DataConfig(source="tfds", path=str(folder), **config), split)


def check(source):
  seen = set()
  for i in range(60):
    item = source[i]
    video = item["video"].astype(int)
    assert video.shape == (3, 8, 8, 3) and np.ptp(video, axis=(1, 2)).max() == 0
    example, first = video[0, 0, 0, 0] // 40, video[0, 0, 0, 1] // 10
    assert video[:, 0, 0].tolist() == [[40 * example, 10 * (first + k), 0] for k in range(3)]
    # The builder shuffled the examples, so that which they are is in their pictures.
    assert item["caption"] == ["dog", "cat"][item["class_id"]] == ["dog", "cat"][example % 2]
    seen.add((example, first))
  assert seen == {(example, first) for example in range(3) for first in range(5)}
  assert [cause for _, cause in source.skipped] == ["too short for 3 frames at 8 per second"]


def test_clips_are_the_stored_frames(folder):
  source = make(folder)
  assert len(source) == NUM_EXAMPLES and not source.has_test_split
  check(source)
  assert source.known_captions() == ["dog", "cat"]


def steps(source):
  """Returns how many stored frames lie between the frames of clips."""
  return {
    tuple((np.diff(source[i]["video"][:, 0, 0, 1].astype(int)) // 10).tolist()) for i in range(30)
  }


def test_clips_have_the_frame_rate_that_is_asked_for(folder, tmp_path, caplog):
  assert steps(make(folder, stored_frame_rate=16.0)) == {(2, 2)}
  assert steps(make(folder, stored_frame_rate=4.0)) == {(0, 1), (1, 0)}
  assert steps(make(folder, stored_frame_rate=24.0, frame_rates=(8.0, 12.0))) == {(3, 3), (2, 2)}
  assert "does not say" not in caplog.text
  assert steps(make(folder)) == {(1, 1)} and "UCF-101 has 25" in caplog.text
  # As the builder's metadata, or a feature of each example, says.
  for file in folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  (tmp_path / "metadata.json").write_text('{"fps": 24}')
  assert steps(make(tmp_path)) == {(3, 3)}
  with pytest.raises(ValueError, match="too short for 3 frames at 8 per second"):
    make(folder, stored_frame_rate=100.0)[0]
  with pytest.raises(ValueError, match=r"stored_frame_rate is 0\.0"):
    make(folder, stored_frame_rate=0.0)
  with pytest.raises(ValueError, match="stored_frame_rate applies to tfds, not to sprites"):
    DataConfig(stored_frame_rate=8.0)


def test_each_example_may_have_a_rate_of_its_own(folder, monkeypatch):
  source = make(folder, max_bad_share=1.0)
  frames = [np.full((16, 32, 3), 10 * k, np.uint8) for k in range(20)]
  examples = [{"frames": frames, "kind": 0, "fps": rate} for rate in (16.0, 8.0, 0.0, 40.0)]
  monkeypatch.setattr(source, "_examples", examples)
  monkeypatch.setattr(source, "_rate_feature", "fps")
  read = [np.diff(source[i]["video"][:, 0, 0, 1].astype(int)) // 10 for i in range(4)]
  assert [read[i].tolist() for i in (0, 1, 3)] == [[2, 2], [1, 1], [5, 5]]
  assert source.skipped == [("train/2", "its frame rate is not a positive number")]


@pytest.mark.parametrize("depth", [8, 16])
def test_frames_are_shown_as_those_of_files(folder, monkeypatch, depth):
  """Transparent pixels show the background; of 16 bits, the upper ones count."""
  colours = {1: [90], 3: [10, 90, 200], 4: [255, 0, 255, 0]}
  shown = [(90, 90, 90), (10, 90, 200), (1, 2, 3)]
  pixels = [np.array(colour, np.uint16) << (depth - 8) for colour in colours.values()]
  frames = [np.full((3, 8, 8, len(c)), c.astype(f"uint{depth}")) for c in pixels]
  source = make(folder, background=(1, 2, 3), max_bad_share=1.0)
  examples = [{"frames": list(f), "kind": 0} for f in [*frames, frames[0].astype(np.float32)]]
  monkeypatch.setattr(source, "_examples", examples)
  for i, colour in enumerate(shown):
    assert np.all(source[i]["video"] == colour)
  source[3]
  assert source.skipped == [("train/3", "pixels of type float32 are not supported")]


def test_the_report_names_the_builder(folder):
  run = stand_in(RunConfig, data=types.SimpleNamespace(source="tfds"))
  facts = report._data_facts(run, make(folder), make(folder, "test"))
  assert facts["path"] == str(folder) and facts["num_train_files"] == NUM_EXAMPLES


def test_a_video_feature_needs_no_tensorflow(folder, tmp_path):
  """As TensorFlow writes it, which the tests cannot do themselves."""
  for file in folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  path = tmp_path / "features.json"
  features = json.loads(path.read_text())
  feature = features["featuresDict"]["features"]["frames"]
  video = {
    "shape": {"dimensions": ["-1", "16", "32", "3"]},
    "dtype": "uint8",
    "encodingFormat": "png",
  }
  feature.pop("sequence")
  feature |= {
    "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
    "video": video,
  }
  path.write_text(json.dumps(features))
  check(make(tmp_path))
  assert "tensorflow" not in sys.modules


def test_what_is_no_builder_is_named(folder, tmp_path):
  with pytest.raises(
    ValueError, match=r"no dataset_info.json; set it to the folder of a builder's"
  ):
    make(tmp_path)
  for file in folder.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  info = json.loads((tmp_path / "dataset_info.json").read_text())
  (tmp_path / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
  with pytest.raises(ValueError, match=r"tfrecord format; prepare it as ArrayRecord"):
    make(tmp_path)
  (tmp_path / "dataset_info.json").write_text(json.dumps(info))
  features = json.loads((tmp_path / "features.json").read_text())
  del features["featuresDict"]["features"]["frames"]
  (tmp_path / "features.json").write_text(json.dumps(features))
  with pytest.raises(ValueError, match=r"no feature of type Video.*it has kind, name"):
    make(tmp_path)
