"""How much moves in clips: read from every source that can have it, and kept by the cache."""

import json
import math
import shutil

import numpy as np
import pytest
from media_files import write_video

from videoar_jax.data import prepare
from videoar_jax.data.clip_encoding import Settings
from videoar_jax.data.pipeline import DataConfig, make_iterator, make_source
from videoar_jax.data.sources import latents, records
from videoar_jax.data.sources.motion import flow_of
from videoar_jax.data.synthetic.sprites import SpritesSource
from videoar_jax.experiment import data_listing

CLIP = {"num_frames": 2, "resolution": (32, 64)}
FLOWS = {"a.mp4": 2.5, "b.mp4": 0, "c.mp4": None}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
  return write_video(tmp_path_factory.mktemp("video") / "a.mp4", 40, 8)


def entry(key, file):
  flow = FLOWS[file]
  return {key: file, "caption": file} | ({} if flow is None else {"flow": flow})


def make_folder(path, video):
  for file in FLOWS:
    shutil.copy(video, path / file)
  lines = (json.dumps(entry("file", file)) for file in FLOWS)
  (path / "captions.jsonl").write_text("\n".join(lines))
  return {"source": "folder", "path": str(path)}


def make_index(path, video):
  make_folder(path, video)
  (path / "captions.jsonl").unlink()
  lines = (json.dumps(entry("path", file)) for file in FLOWS)
  (path / "index.jsonl").write_text("\n".join(lines))
  return {"source": "index", "path": str(path / "index.jsonl")}


def make_shards(path, video):
  samples = [records.pack(entry("name", file), video.read_bytes()) for file in FLOWS]
  records.write_shard(path / "x.array_record", samples)
  return {"source": "shards", "path": str(path)}


def make_prepared(path, video):
  for name in ("in", "out"):
    (path / name).mkdir()
  make_folder(path / "in", video)
  prepare.prepare(str(path / "in"), path / "out", Settings(), prepare.local_runner(1))
  return {"source": "shards", "path": str(path / "out")}


@pytest.mark.parametrize("make", [make_folder, make_index, make_shards, make_prepared])
def test_every_source_of_files_reads_it(tmp_path, video, make):
  source = make_source(DataConfig(**CLIP, **make(tmp_path, video)), "train")
  found = {item["caption"]: item["flow"] for item in map(source.__getitem__, range(len(source)))}
  assert {file: None if math.isnan(flow) else flow for file, flow in found.items()} == FLOWS
  batch = next(
    make_iterator(source, batch_size=3, seed=0, tokenize=lambda text: np.zeros(1), fields=("flow",))
  )
  assert batch["flow"].dtype == np.float32
  np.testing.assert_array_equal(np.sort(batch["flow"]), np.float32([0, 2.5, math.nan]))


@pytest.mark.parametrize("make", [make_folder, make_index])
def test_another_motion_is_noticed(tmp_path, video, monkeypatch, make):
  """By the cache, which stores it, and by a run that is resumed."""
  data = DataConfig(**CLIP, **make(tmp_path, video))
  source = make_source(data, "train")
  assert source.known_flows() == {"a.mp4": 2.5, "b.mp4": 0}
  before = latents.describe_clips(source), data_listing.describe(source)["captions"]
  monkeypatch.setitem(FLOWS, "c.mp4", 1.0)
  make(tmp_path, video)
  source = make_source(data, "train")
  assert latents.describe_clips(source) != before[0]
  assert data_listing.describe(source)["captions"] != before[1]


@pytest.mark.parametrize("make", [make_folder, make_index])
def test_a_wrong_one_is_named_with_its_line(tmp_path, video, monkeypatch, make):
  monkeypatch.setitem(FLOWS, "b.mp4", "fast")
  with pytest.raises(ValueError, match=r"line 2: flow is .*'fast'"):
    make_source(DataConfig(**CLIP, **make(tmp_path, video)), "train")


def test_only_numbers_are_motion():
  for value, expected in ((3, 3.0), (0.5, 0.5), (0, 0.0)):
    assert flow_of({"flow": value}) == expected
  assert math.isnan(flow_of({})) and math.isnan(flow_of({"flow": None}))
  for value in (-1, "3", True, math.inf, [1]):
    with pytest.raises(ValueError, match="flow is not"):
      flow_of({"flow": value})


def test_sprites_know_their_own():
  """Against the way of their pixels' centre of mass between two frames."""
  settings = {"num_frames": 2, "resolution": (256, 128), "frame_rate": 4.0, "version": 2}
  source, compared = SpritesSource("train", **settings), 0
  for index in range(40):
    item = source[index]
    if item["attributes"].objects[0].motion == "bounce":
      continue
    shown = np.abs(item["video"].astype(float) - item["video"][0, 0, 0]).sum(-1)
    places = np.indices(shown.shape[1:])
    centres = [(frame * places).sum((1, 2)) / frame.sum() for frame in shown]
    assert item["flow"] == pytest.approx(np.linalg.norm(centres[1] - centres[0]), abs=0.3)
    compared += 1
  assert compared > 10


def test_encoded_clips_keep_it(tmp_path):
  index = latents.Index({}, "", {}, "", (1, 1, 1, 2), 2, 2, 2)
  flows = (1.25, math.nan)
  clips = [
    ({"id": i, "caption": "", "class_id": 0, "flow": np.float32(flow)}, np.zeros((1, 1, 1, 2)))
    for i, flow in enumerate(flows)
  ]
  latents.write_index(tmp_path, index)
  latents.write_clips(
    index.path(tmp_path, 0), ((item, x.astype(latents.DTYPE)) for item, x in clips)
  )
  source = latents.LatentsSource(tmp_path, index)
  np.testing.assert_array_equal([source[i]["flow"] for i in range(2)], np.float32(flows))
