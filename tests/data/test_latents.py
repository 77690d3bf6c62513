"""Encoded clips: what is read is what was written, in the order of the source."""

import dataclasses
import json

import numpy as np
import pytest

from videoar_jax.data.pipeline import make_iterator
from videoar_jax.data.sources import latents, records

SHAPE = (2, 3, 4, 5)
NUM_FILES, NUM_EPOCHS = 6, 3
DTYPE = latents.DTYPES["bfloat16"]
INDEX = latents.Index(
  encoder={"num_bits": 5},
  fingerprint="f",
  data={"source": "folder"},
  clips="c",
  latent_shape=SHAPE,
  epoch_size=NUM_FILES,
  num_clips=NUM_FILES * NUM_EPOCHS,
  clips_per_shard=4,
)


class Clips:
  """A source of `NUM_FILES` files, whose later epochs are different clips."""

  def __len__(self):
    return NUM_FILES

  def __getitem__(self, index):
    video = np.full((1, 2, 2, 3), index, np.uint8)
    return {"video": video, "caption": f"Nr. {index} ü\n", "class_id": index % 3, "id": index}


def code(index):
  """Returns a latent that identifies a clip."""
  return np.random.default_rng(index).normal(size=SHAPE).astype(DTYPE)


def write(folder, shards=range(INDEX.num_shards)):
  latents.write_index(folder, INDEX)
  for shard in shards:
    clips = ((Clips()[i], code(i)) for i in INDEX.clips_of(shard))
    latents.write_clips(INDEX.path(folder, shard), clips)
  return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write(tmp_path_factory.mktemp("latents"))


def test_reads_what_was_written(folder):
  assert latents.read_index(folder) == INDEX
  source = latents.LatentsSource(folder, INDEX)
  assert len(source) == NUM_FILES
  for i in np.random.default_rng(0).permutation(2 * INDEX.num_clips).tolist():
    # What goes beyond the last epoch begins again.
    item, clip = source[i], Clips()[i % INDEX.num_clips]
    assert item["latents"].dtype == DTYPE
    np.testing.assert_array_equal(item["latents"], code(clip["id"]))
    assert [item[name] for name in ("id", "caption", "class_id")] == [
      clip[name] for name in ("id", "caption", "class_id")
    ]


def batches(source, count, state=None):
  options = {"batch_size": 4, "seed": 3, "tokenize": lambda text: np.array([len(text)])}
  iterator = make_iterator(source, **options)
  if state is not None:
    iterator.set_state(state)
  found = [next(iterator) for _ in range(count)]
  state = json.loads(json.dumps(iterator.get_state()))
  iterator.close()
  return found, state


def test_batches_are_those_of_the_source_and_resume(folder):
  count = NUM_FILES * NUM_EPOCHS // 4
  live, _ = batches(Clips(), count)
  coded, _ = batches(latents.LatentsSource(folder, INDEX), count)
  for one, other in zip(live, coded, strict=True):
    assert other.keys() == one.keys() - {"video"} | {"latents"}
    for name in ("id", "text"):
      np.testing.assert_array_equal(one[name], other[name])
    np.testing.assert_array_equal(other["latents"], [code(i) for i in other["id"]])
  first, state = batches(latents.LatentsSource(folder, INDEX), 2)
  rest, _ = batches(latents.LatentsSource(folder, INDEX), count - 2, state)
  for one, other in zip(first + rest, coded, strict=True):
    np.testing.assert_array_equal(one["latents"], other["latents"])


def test_unfinished_and_damaged_shards_are_named(tmp_path):
  write(tmp_path, shards=(0, 2))
  assert INDEX.missing(tmp_path) == [1, 3, 4]
  with pytest.raises(ValueError, match="2 of 5 shards; finish the run"):
    latents.LatentsSource(tmp_path, INDEX)
  write(tmp_path)
  path = INDEX.path(tmp_path, 3)
  whole = path.read_bytes()
  for damaged in (b"", whole[: len(whole) // 2], b"x" * len(whole)):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"latents-00003-of-00005\.array_record is damaged"):
      latents.LatentsSource(tmp_path, INDEX)
  path.write_bytes(INDEX.path(tmp_path, 4).read_bytes())  # A whole one, of fewer clips.
  with pytest.raises(ValueError, match=r"has 16 clips, but its index\.json says 18; remove it"):
    latents.LatentsSource(tmp_path, INDEX)
  (tmp_path / "index.json").write_text('{"encoder": {}}')
  with pytest.raises(ValueError, match=r"index\.json is damaged.*to encode again"):
    latents.read_index(tmp_path)


def test_a_shard_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / "a.array_record"

  def cut_off():
    yield b"one"
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    records.write_shard(path, cut_off())
  assert not list(tmp_path.iterdir())


def test_records_keep_any_bytes():
  payload = bytes(range(256)) + b"\n{}\n"
  assert records.unpack(records.pack({"caption": "a\nü"}, payload)) == (
    {"caption": "a\nü"},
    payload,
  )
  for wrong in (b"", b"{}", b"[1]\nx", b"\xff\nx"):
    with pytest.raises(ValueError, match="line of JSON"):
      records.unpack(wrong)


def test_description_of_clips_follows_files_and_captions():
  @dataclasses.dataclass
  class Source:
    files: list
    captions: list

    def known_captions(self):
      return self.captions

  described = {
    latents.describe_clips(Source(files, captions))
    for files in (["a.mp4"], ["b.mp4"])
    for captions in (["one"], ["two"])
  }
  assert len(described) == 4
