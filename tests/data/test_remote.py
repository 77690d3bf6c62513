"""Shards and indices at URLs."""

import json

import fsspec
import numpy as np
import pytest
from media_files import frame_numbers, write_video

from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.data.sources import records, remote

CLIP = {"num_frames": 5, "resolution": (32, 64)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("VIDEOAR_JAX_DATA", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def bucket():
  files = fsspec.filesystem("memory")
  yield files
  if files.exists("/bucket"):
    files.rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
  folder = tmp_path_factory.mktemp("media")
  return [write_video(folder / f"{i}.mp4", 40, 30, value=i).read_bytes() for i in range(3)]


def put_shard(files, folder, media):
  path = folder / "local.array_record"
  samples = [records.pack({"caption": f"number {i}"}, data) for i, data in enumerate(media)]
  records.write_shard(path, samples)
  files.pipe("/bucket/shards/a.array_record", path.read_bytes())


def shown(source):
  return [frame_numbers(source[i]["video"])[0] for i in range(len(source))]


def test_shards_are_copied_once_and_again_when_they_change(bucket, tmp_path, media, cache):
  put_shard(bucket, tmp_path, media)
  bucket.pipe("/bucket/shards/notes.txt", b"not copied")
  config = DataConfig(source="shards", path="memory://bucket/shards/", **CLIP)
  assert shown(make_source(config, "train")) == [0, 1, 2]
  [copy] = cache.rglob("*.array_record")
  assert not list(cache.rglob("*.txt")) and not list(cache.rglob("*.partial"))
  copied = copy.stat().st_mtime_ns
  assert shown(make_source(config, "test")) == [0, 1, 2] and copy.stat().st_mtime_ns == copied
  # Where the note of what was copied is damaged, it is copied again.
  (copy.parent / "copied.json").write_text('{"a')
  assert shown(make_source(config, "train")) == [0, 1, 2] and copy.stat().st_mtime_ns != copied
  put_shard(bucket, tmp_path, media[1:])
  assert shown(make_source(config, "train")) == [1, 2]
  bucket.pipe("/bucket/shards/b.array_record", bucket.cat("/bucket/shards/a.array_record"))
  bucket.rm("/bucket/shards/a.array_record")
  source = make_source(config, "train")
  assert source.files == ["b.array_record/0", "b.array_record/1"]
  assert source.bad_samples.source == "memory://bucket/shards/"


def test_an_index_and_its_files_may_be_at_urls(bucket, tmp_path, media):
  for i, data in enumerate(media):
    bucket.pipe(f"/bucket/videos/{i}.mp4", data)
  (tmp_path / "2.mp4").write_bytes(media[2])
  paths = ["videos/0.mp4", "memory://bucket/videos/1.mp4", (tmp_path / "2.mp4").as_uri()]
  paths.append("videos/gone.mp4")
  lines = [json.dumps({"path": path, "caption": "x"}) for path in paths]
  bucket.pipe("/bucket/clips.jsonl", "\n".join(lines).encode())
  config = DataConfig(source="index", path="memory://bucket/clips.jsonl", **CLIP)
  source = make_source(config, "train")
  assert shown(source)[:3] == [0, 1, 2]
  [(key, cause)] = source.skipped
  assert key == "videos/gone.mp4" and cause == "no such file"
  # The same index on this machine, whose relative paths are beside it.
  (tmp_path / "clips.jsonl").write_text("\n".join(lines[1:3]))
  local = make_source(
    DataConfig(source="index", path=str(tmp_path / "clips.jsonl"), **CLIP), "train"
  )
  np.testing.assert_array_equal(local[0]["video"], source[1]["video"])


@pytest.mark.parametrize(
  ("source", "url", "said"),
  [
    ("shards", "memory://nowhere", "memory://nowhere: there is no such file"),
    ("index", "memory://nowhere/x.jsonl", "memory://nowhere: there is no such file"),
    ("shards", "nothing://bucket", "nothing://bucket cannot be read .*Protocol not known"),
    ("folder", "memory://bucket", "'folder' reads local folders; use 'shards'"),
    ("tfds", "memory://nowhere", "memory://nowhere: there is no such file"),
  ],
)
def test_urls_that_cannot_be_read_are_named(source, url, said):
  with pytest.raises(ValueError, match=said):
    make_source(DataConfig(source=source, path=url, **CLIP), "train")


def test_copies_are_kept_beside_other_caches(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.delenv("VIDEOAR_JAX_DATA")
  assert remote.cache_folder() == tmp_path / ".cache" / "videoar_jax" / "data"
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
  assert remote.cache_folder() == tmp_path / "c" / "videoar_jax" / "data"
  monkeypatch.setenv("VIDEOAR_JAX_DATA", "~/d")
  assert remote.cache_folder() == tmp_path / "d"


def test_names_are_joined_like_paths():
  assert remote.join("gs://a/b/", "c.mp4") == "gs://a/b/c.mp4"
  assert (
    remote.join("gs://a", "s3://b/c.mp4") == remote.join("/x", "s3://b/c.mp4") == "s3://b/c.mp4"
  )
  assert remote.join("gs://a", "/c.mp4") == remote.join("/x", "/c.mp4") == "/c.mp4"
  assert remote.join("/x", "c.mp4") == "/x/c.mp4"
