import json
import re

import numpy as np
import pytest
from media_files import write_image

from videoar_jax import open_data
from videoar_jax.data.pipeline import DataConfig, make_iterator, make_source
from videoar_jax.text.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer(96)


class Numbers:
  """A source of `length` items that contain their index."""

  def __init__(self, length):
    self.length = length

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    video = np.full((1, 2, 2, 3), index % 256, np.uint8)
    return {"video": video, "caption": str(index), "class_id": index % 7, "id": index}


def iterator(source, batch_size=4, seed=3, **options):
  options = {"tokenize": TOKENIZER.encode} | options
  return make_iterator(source, batch_size=batch_size, seed=seed, **options)


def take(batches, count):
  return [next(batches) for _ in range(count)]


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for name in x:
      assert np.array_equal(x[name], y[name]), name


def ids(batches):
  return np.concatenate([batch["id"] for batch in batches]).tolist()


def test_batch_holds_what_it_says():
  source = make_source(DataConfig(num_frames=5, resolution=(32, 48), num_objects=(1, 2)), "train")
  batch = next(iterator(source))
  kinds = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
  assert kinds == {
    "video": ((4, 5, 32, 48, 3), "uint8"),
    "text": ((4, 96), "int32"),
    "id": ((4,), "int64"),
  }
  for row, index in enumerate(batch["id"].tolist()):
    assert np.array_equal(batch["video"][row], source[index]["video"])
    assert TOKENIZER.decode(batch["text"][row]) == source[index]["caption"]


@pytest.mark.parametrize("num_threads", [0, 4])
def test_resume_continues_bit_for_bit(num_threads):
  source = make_source(DataConfig(num_frames=3, resolution=(16, 16)), "train")
  batches = iterator(source, num_threads=num_threads)
  take(batches, 3)
  state = json.loads(json.dumps(batches.get_state()))
  expected = take(batches, 4)
  fresh = iterator(source, num_threads=num_threads)
  take(fresh, 1)
  fresh.set_state(state)
  assert_same(take(fresh, 4), expected)
  batches.set_state(state)
  assert_same(take(batches, 4), expected)


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_each_global_batch_in_order(process_count):
  whole = take(iterator(Numbers(10)), 6)
  parts = [
    take(iterator(Numbers(10), process_index=p, process_count=process_count), 6)
    for p in range(process_count)
  ]
  joined = [
    {name: np.concatenate([part[i][name] for part in parts]) for name in whole[0]} for i in range(6)
  ]
  assert_same(joined, whole)


@pytest.mark.parametrize("threads", [(0, 0, 0), (1, 4, 0), (4, 0, 1), (4, 4, 4)])
def test_hosts_and_threads_may_change_in_the_middle_of_an_epoch(threads):
  """Each item of three epochs is read once: by 1, then 2, then 4 hosts."""
  seen, state = [], None
  counts = ((1, 2), (2, 3), (4, 4))
  for (process_count, num_batches), num_threads in zip(counts, threads, strict=True):
    for p in range(process_count):
      hosts = {"process_index": p, "process_count": process_count, "num_threads": num_threads}
      batches = iterator(Numbers(12), **hosts)
      if state is not None:
        batches.set_state(state)
      seen += ids(take(batches, num_batches))
      after = json.loads(json.dumps(batches.get_state()))
      batches.close()
    state = after
  assert sorted(seen) == list(range(36))


def test_each_epoch_has_each_item_once_in_another_order():
  seen = np.array(ids(take(iterator(Numbers(12)), 9))).reshape(3, 12)
  for epoch in range(3):
    # A later epoch asks for later clips of the same videos.
    assert sorted(seen[epoch]) == list(range(12 * epoch, 12 * (epoch + 1)))
  orders = {tuple(order % 12) for order in seen}
  assert len(orders) == 3 and tuple(range(12)) not in orders


def test_order_depends_on_the_seed_and_can_be_left():
  a, b = ids(take(iterator(Numbers(50)), 5)), ids(take(iterator(Numbers(50), seed=4), 5))
  assert a != b
  assert ids(take(iterator(Numbers(50), shuffle=False), 5)) == list(range(20))


@pytest.mark.parametrize("process_count", [1, 2])
def test_a_finite_number_of_epochs_ends_with_the_last_full_batch(process_count):
  for process in range(process_count):
    batches = iterator(
      Numbers(11), num_epochs=2, process_index=process, process_count=process_count
    )
    assert len(list(batches)) == 5


def test_batches_that_cannot_be_made_are_refused():
  with pytest.raises(ValueError, match="multiple of 3"):
    iterator(Numbers(10), process_count=3)
  with pytest.raises(ValueError, match=r"3 clips.*batch of 4"):
    iterator(Numbers(3), num_epochs=1)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"source": "movies"}, r"data\.source is 'movies'.*sprites, folder"),
    ({"source": "folder"}, r"data\.path is not set"),
    ({"path": "/videos"}, r"data\.path .*data\.source = 'folder'"),
    ({"num_frames": 0}, r"data\.num_frames is 0.*1 or more"),
    ({"frame_rate": 0.0}, r"data\.frame_rate"),
    ({"resolution": (64, 0)}, r"data\.resolution"),
    ({"resolution": 64}, r"data\.resolution"),
    ({"num_objects": 3}, r"data\.num_objects is 3.*1, 2 or \(1, 2\)"),
    ({"clips_per_file": 0}, r"data\.clips_per_file"),
    ({"cache_bytes": -1}, r"data\.cache_bytes"),
  ],
)
def test_config_names_the_field_and_the_mend(options, message, without_type_checks):
  with pytest.raises(ValueError, match=message):
    DataConfig(**options)


def test_unknown_split_is_refused():
  with pytest.raises(ValueError, match="train, test"):
    make_source(DataConfig(), "validation")


def test_open_data_opens_what_training_reads(tmp_path):
  write_image(tmp_path / "cats" / "a.png", 9)
  source = open_data(tmp_path, num_frames=1, resolution=(8, 8), seed=3)
  assert (len(source), source.files, source.class_names) == (1, ["cats/a.png"], ["cats"])
  assert source.skipped == [] and source.seed == 3
  item = source[0]
  assert item["video"].shape == (1, 8, 8, 3) and (item["caption"], item["class_id"]) == ("cats", 0)
  sprites = open_data(None, "sprites", "test", num_frames=3, version=2)
  assert sprites[0]["video"].shape == (3, 64, 64, 3) and sprites.split == "test"
  with pytest.raises(ValueError, match=r"colour is not a field of DataConfig.* background,"):
    open_data(tmp_path, colour="red")


@pytest.mark.parametrize(
  ("given", "wanted"),
  [
    ({"num_frames": "9"}, "an integer"),
    ({"num_frames": 9.5}, "an integer"),
    ({"seed": None}, "an integer"),
    ({"frame_rate": "8"}, "a number"),
    ({"frame_rate": None}, "a number"),
    ({"stored_frame_rate": "8"}, "a number"),
    ({"frame_rates": 4.0}, "a tuple of numbers"),
    ({"frame_rates": ("4",)}, "a tuple of numbers"),
  ],
)
def test_fields_of_wrong_types_are_named(tmp_path, given, wanted, without_type_checks):
  [(name, value)] = given.items()
  with pytest.raises(
    ValueError, match=f"data.{name} is {re.escape(repr(value))}; set it to {wanted}"
  ):
    open_data(tmp_path, **given)
