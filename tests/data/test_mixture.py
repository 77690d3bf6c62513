"""Batches of several shapes: order and shares, and that nothing is lost or repeated."""

import collections
import contextlib
import itertools
import json

import numpy as np
import pytest

from videoar_jax.data.mixture import PERIOD, Mixture, make_buckets, share_out
from videoar_jax.data.synthetic.sprites import SpritesSource


class Source:
  """`length` samples; every third is tall and the others are wide."""

  def __init__(self, length, rounds=1):
    self.length, self.rounds, self.shape = length, rounds, None

  def __len__(self):
    return self.length * self.rounds

  def aspect_ratios(self):
    return [2.0 if i % 3 == 0 else 0.5 for i in range(self.length)]

  def reshaped(self, num_frames, resolution):
    other = Source(self.length, self.rounds)
    other.shape = (num_frames, *resolution, 3)
    return other

  def __getitem__(self, index):
    video = np.full(self.shape, index % 251, np.uint8)
    return {"video": video, "caption": str(index), "class_id": index % 7, "id": index}


def tokenize(caption):
  return np.array([len(caption)], np.int32)


def batch_size(shape):
  """As many clips as have the pixels of 8 frames of 4x8."""
  return 8 * 32 // int(np.prod(shape))


def make(length=12, share=0.75, seed=3):
  """Wide and tall clips of 1 or 2 frames, and square sprites."""
  found = make_buckets(
    "files",
    Source(length),
    num_frames=(1, 2),
    resolutions=((4, 8), (8, 4)),
    batch_size=batch_size,
    encoder=lambda shape: tokenize,
    share=share,
  )
  sprites = SpritesSource("train", num_frames=1, resolution=(8, 8))
  settings = {"num_frames": (2,), "resolutions": ((8, 8),), "batch_size": batch_size}
  settings["encoder"] = lambda shape: tokenize
  found += make_buckets("sprites", sprites, share=1 - share, **settings)
  return Mixture(found, seed=seed)


def take(mixture, count, state=None, **options):
  with contextlib.closing(mixture.iterator(**options)) as iterator:
    if state is not None:
      iterator.set_state(state)
    batches = list(itertools.islice(iterator, count))
    return batches, json.loads(json.dumps(iterator.get_state()))


def assert_same(a, b):
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for name in x:
      np.testing.assert_array_equal(x[name], y[name])


def test_each_batch_has_one_shape_and_costs_the_same():
  mixture = make()
  batches, _ = take(mixture, 40)
  shapes = {batch["video"].shape for batch in batches}
  wide, high = {(8, 1, 4, 8, 3), (4, 2, 4, 8, 3)}, {(8, 1, 8, 4, 3), (4, 2, 8, 4, 3)}
  assert shapes == wide | high | {(2, 2, 8, 8, 3)}
  assert {np.prod(batch["video"].shape) for batch in batches} == {8 * 32 * 3}
  assert {(size, *shape, 3) for shape, size in mixture.shapes} == shapes
  for batch in batches:
    if batch["bucket"][0] < 2:
      np.testing.assert_array_equal(batch["video"][:, 0, 0, 0, 0], batch["id"] % 251)
      is_high = batch["id"] % 12 % 3 == 0
      assert set(is_high) == {batch["video"].shape[2] == 8} == {batch["bucket"][0] == 1}
      np.testing.assert_array_equal(batch["text"][:, 0], [len(str(i)) for i in batch["id"]])


def test_shares_are_kept_and_told():
  mixture = make()
  batches, _ = take(mixture, 200, num_threads=0)
  counted = collections.Counter(
    (mixture.buckets[batch["bucket"][0]].name, *batch["video"].shape[1:4]) for batch in batches
  )
  # Two thirds of the files are wide.
  expected = {("files", 1, 4, 8): 50, ("files", 2, 4, 8): 50, ("files", 1, 8, 4): 25}
  expected |= {("files", 2, 8, 4): 25, ("sprites", 2, 8, 8): 50}
  assert counted == expected
  told = mixture.drawn(0, 200)
  assert told["files 2x8x4"] == {"batches": 25, "clips": 100}
  assert {name: each["batches"] for name, each in told.items()} == {
    f"{name} {f}x{h}x{w}": count for (name, f, h, w), count in expected.items()
  }
  late = 3 * PERIOD + 17
  assert mixture.drawn(late, late + 1) == mixture.drawn(17, 18)


def test_each_sample_comes_once_an_epoch_over_all_lengths():
  """Also where the table repeats."""
  mixture, length = make(length=1500), 1500
  seen = {0: [], 1: [], 2: []}
  for batch in range(PERIOD + 200):
    bucket, _, items = mixture.items(batch)
    seen[bucket] += items
  for b, size in ((0, 1000), (1, 500)):
    epochs = np.array(seen[b][: len(seen[b]) // size * size]).reshape(-1, size)
    assert len(epochs) == 3
    for epoch, items in enumerate(epochs):
      expected = [i + length * epoch for i in range(length) if (i % 3 == 0) == (b == 1)]
      assert sorted(items.tolist()) == expected
    orders = {tuple(items % length) for items in epochs}
    assert len(orders) == 3 and tuple(sorted(epochs[0] % length)) not in orders


@pytest.mark.parametrize("num_threads", [0, 3])
def test_hosts_and_threads_change_nothing_even_in_the_middle(num_threads):
  """One host, then two, then one with other threads: the batches are those of one host."""
  expected, _ = take(make(), 30)
  first, state = take(make(), 9, num_threads=num_threads)
  parts = [
    take(make(), 11, state, process_index=p, process_count=2, num_threads=num_threads)
    for p in range(2)
  ]
  assert parts[0][1] == parts[1][1]
  second = [
    {name: np.concatenate([batch[name] for batch in pair]) for name in pair[0]}
    for pair in zip(parts[0][0], parts[1][0], strict=True)
  ]
  third, _ = take(make(), 10, parts[1][1])
  assert_same(first + second + third, expected)
  assert make(seed=4).items(0) != make().items(0)


def test_a_source_may_count_its_samples_several_times():
  settings = {"num_frames": (1,), "resolutions": ((4, 8), (8, 4)), "batch_size": batch_size}
  settings["encoder"] = lambda shape: tokenize
  found = make_buckets("files", Source(6, rounds=2), share=1.0, **settings)
  assert [list(bucket.samples) for bucket in found] == [[1, 2, 4, 5, 7, 8, 10, 11], [0, 3, 6, 9]]
  assert [bucket.epoch_size for bucket in found] == [12, 12]


def test_turns_are_as_even_as_they_can_be():
  shares = (0.5, 0.3, 0.2)
  turns = share_out(shares, 100)
  for i in range(1, 101):
    counts = np.bincount(turns[:i], minlength=3)
    assert np.abs(counts - np.array(shares) * i).max() < 1
  assert np.bincount(turns).tolist() == [50, 30, 20]


def test_what_cannot_be_mixed_is_named():
  settings = {"num_frames": (1,), "batch_size": batch_size, "share": 1.0}
  settings["encoder"] = lambda shape: tokenize
  with pytest.raises(ValueError, match="files: no sample is nearest to 8x8 pixels"):
    make_buckets("files", Source(9), resolutions=((4, 8), (8, 8), (8, 4)), **settings)
  [bucket] = make_buckets("files", Source(9), resolutions=((4, 8),), **settings)
  with pytest.raises(ValueError, match="they must sum to 1"):
    Mixture([bucket, bucket], seed=0)
  with pytest.raises(ValueError, match=r"files 2x4x8 would be 0\.03% of the batches"):
    make(share=0.001)
  with pytest.raises(ValueError, match=r"a batch of 2 clips .* does not divide over 4 processes"):
    make().iterator(process_count=4)
