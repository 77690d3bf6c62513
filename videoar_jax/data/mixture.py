"""Batches of several shapes and sources, in an order that depends on the seed alone.

A batch has one shape and comes from one bucket: samples of one source, read at one resolution. A
repeating table maps the batch's index to its bucket and number of frames. It also gives how many
samples of the bucket the earlier batches took, and so which samples come next. Any thread on any
host can therefore make any batch without the ones before it, and the iterator's state is the number
of batches taken.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from videoar_jax.data import buckets
from videoar_jax.data.sources.base import ClipSource, EncodedSource

# Batches until the table repeats: shares are exact to a thousandth.
PERIOD = 1000
# Length of an endless dataset, in batches. Grain may round it up, which must not overflow.
ENDLESS = 2**40

Shape = tuple[int, int, int]  # Frames, height, width.


@dataclasses.dataclass(frozen=True)
class Bucket:
  """Samples of one source that are read at one resolution, each once per epoch.

  Attributes:
    name: name of the source, for messages.
    samples: indices of the samples in the source.
    epoch_size: samples in the source; sample i in epoch e is item `i + e * epoch_size`.
    readers: the source at each number of frames; items are those of `make_source`.
    shapes: clip shape of each reader.
    batch_sizes: clips in a global batch of each shape.
    encoders: for each shape, maps a caption to an array, see `EncodedSource`.
    share: share of the batches that come from this bucket, divided equally among its shapes.
  """

  name: str
  samples: Sequence[int] | np.ndarray
  epoch_size: int
  readers: tuple
  shapes: tuple[Shape, ...]
  batch_sizes: tuple[int, ...]
  encoders: tuple[Callable[[str], np.ndarray], ...]
  share: float


def make_buckets(
  name: str,
  source,
  *,
  num_frames: Sequence[int],
  resolutions: Sequence[tuple[int, int]],
  batch_size: Callable[[Shape], int],
  encoder: Callable[[Shape], Callable[[str], np.ndarray]],
  share: float,
) -> list[Bucket]:
  """Divides a source into buckets: each sample goes to the resolution of nearest aspect ratio.

  Args:
    name: name of the source, for messages.
    source: from `make_source`.
    num_frames: lengths of clips; the batches of a bucket alternate between them.
    resolutions: (H, W) of each bucket.
    batch_size: maps a shape to the size of its global batch.
    encoder: maps a shape to what maps its captions to arrays of fixed shape. If that raises
      ValueError, another sample takes the place of this one.
    share: share of the batches that come from this source.
  Raises:
    ValueError: a resolution has no sample, or the source does not know its samples' sizes.
  """
  chosen = [range(len(source))]
  if len(resolutions) > 1 and hasattr(source, "aspect_ratios"):
    nearest = buckets.nearest(source.aspect_ratios(), resolutions)
    # A source may count each sample several times, one pass after the other.
    nearest = np.tile(nearest, len(source) // len(nearest))
    chosen = [np.flatnonzero(nearest == i) for i in range(len(resolutions))]
  elif len(resolutions) > 1:  # Sprites can be drawn at any resolution.
    chosen = [range(i, len(source), len(resolutions)) for i in range(len(resolutions))]
  empty = [r for r, samples in zip(resolutions, chosen, strict=True) if len(samples) == 0]
  if empty:
    raise ValueError(
      f"{name}: no sample is nearest to {empty[0][0]}x{empty[0][1]} pixels (height x width); "
      "remove this aspect ratio"
    )
  found = []
  for (height, width), samples in zip(resolutions, chosen, strict=True):
    shapes = tuple((frames, height, width) for frames in num_frames)
    sizes = tuple(batch_size(shape) for shape in shapes)
    # In proportion to the batches that its samples fill, so that all samples of a source are seen
    # equally often.
    readers = tuple(source.reshaped(frames, (height, width)) for frames in num_frames)
    weight = len(samples) / (sum(sizes) / len(sizes))
    encoders = tuple(map(encoder, shapes))
    found.append(Bucket(name, samples, len(source), readers, shapes, sizes, encoders, weight))
  total = sum(bucket.share for bucket in found)
  return [dataclasses.replace(bucket, share=share * bucket.share / total) for bucket in found]


def share_out(shares: Sequence[float], length: int) -> np.ndarray:
  """Returns a sequence of `length` indices that keeps to the shares at every point.

  Each entry is the index that is furthest behind its share; the first one, if several are equally
  far behind.
  """
  shares, taken, turns = np.asarray(shares), np.zeros(len(shares)), np.empty(length, np.int64)
  for i in range(length):
    # Round, so that floating-point error does not break ties.
    turns[i] = np.argmax(np.round(shares * (i + 1) - taken, 9))
    taken[turns[i]] += 1
  return turns


class Mixture:
  """All batches of a stage.

  Args:
    buckets: from `make_buckets`; shares sum to 1.
    seed: seed of the shuffling; each bucket and each epoch has its own order.
    fields: further fields of items to put into batches, beside clips, texts and ids.
  Raises:
    ValueError: shares do not sum to 1, or one is too small to get a batch.
  """

  def __init__(self, buckets: list[Bucket], *, seed: int, fields: tuple[str, ...] = ()):
    self.buckets, self._fields = buckets, fields
    if abs(sum(bucket.share for bucket in buckets) - 1) > 1e-6:
      raise ValueError(
        f"shares of the mixture are {[b.share for b in buckets]}; they must sum to 1"
      )
    # Each kind of batch: (bucket index, shape index).
    self._kinds = [(b, s) for b, bucket in enumerate(buckets) for s in range(len(bucket.shapes))]
    import grain  # Imported late, as in `pipeline`.

    shares = [buckets[b].share / len(buckets[b].shapes) for b, _ in self._kinds]
    self._turns = share_out(shares, PERIOD)
    for kind in sorted(set(range(len(self._kinds))) - set(self._turns.tolist())):
      raise ValueError(
        f"{self.describe(kind)} would be {shares[kind]:.2%} of the batches, which is less than one "
        f"in {PERIOD}; remove its aspect ratio or raise its weight"
      )
    sizes = np.zeros((PERIOD, len(buckets)), np.int64)
    for turn, kind in enumerate(self._turns):
      b, s = self._kinds[kind]
      sizes[turn, b] = buckets[b].batch_sizes[s]
    # Samples of each bucket that are taken before each entry of the table, and by all of it.
    self._before, self._total = np.cumsum(sizes, axis=0) - sizes, sizes.sum(axis=0)
    self._orders = [
      grain.MapDataset.range(len(bucket.samples)).shuffle((seed + 7919 * b) % 2**32).repeat(None)
      for b, bucket in enumerate(buckets)
    ]

  def describe(self, kind: int) -> str:
    """Returns the source and shape of a kind of batch, as text."""
    b, s = self._kinds[kind]
    frames, height, width = self.buckets[b].shapes[s]
    return f"{self.buckets[b].name} {frames}x{height}x{width}"

  @property
  def shapes(self) -> list[tuple[Shape, int]]:
    """The distinct (shape, global batch size) of all batches."""
    pairs = [pair for b in self.buckets for pair in zip(b.shapes, b.batch_sizes, strict=True)]
    return list(dict.fromkeys(pairs))

  def drawn(self, first: int, last: int) -> dict[str, dict[str, int]]:
    """Returns {batches, clips} of each source and shape, over batches `first` to `last - 1`."""
    result = {}
    for kind, (b, s) in enumerate(self._kinds):
      count = self._count(kind, last) - self._count(kind, first)
      size = self.buckets[b].batch_sizes[s]
      result[self.describe(kind)] = {"batches": count, "clips": count * size}
    return result

  def _count(self, kind: int, end: int) -> int:
    """Returns how many of the first `end` batches are of a kind."""
    rounds, rest = divmod(end, PERIOD)
    is_kind = self._turns == kind
    return int(rounds * is_kind.sum() + is_kind[:rest].sum())

  def items(self, batch: int) -> tuple[int, int, list[int]]:
    """Returns a batch's bucket index, its shape index, and the items of its clips."""
    rounds, turn = divmod(batch, PERIOD)
    b, s = self._kinds[self._turns[turn]]
    bucket, order = self.buckets[b], self._orders[b]
    start = int(rounds * self._total[b] + self._before[turn, b])
    positions = range(start, start + bucket.batch_sizes[s])
    items = [
      int(bucket.samples[order[p]]) + p // len(bucket.samples) * bucket.epoch_size
      for p in positions
    ]
    return b, s, items

  def read(self, batch: int, process_index: int = 0, process_count: int = 1) -> dict:
    """Returns this process's shard of a batch."""
    b, s, items = self.items(batch)
    size = len(items) // process_count
    reader = EncodedSource(self.buckets[b].readers[s], self.buckets[b].encoders[s])
    clips = [reader[item] for item in items[process_index * size : (process_index + 1) * size]]
    return {
      "video": np.stack([clip["video"] for clip in clips]),
      "text": np.stack([clip["text"] for clip in clips]),
      "id": np.array([clip["id"] for clip in clips], np.int64),
      "bucket": np.full(size, b, np.int32),
      **{name: np.stack([clip[name] for clip in clips]) for name in self._fields},
    }

  def iterator(
    self,
    *,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    prefetch: int = 4,
  ) -> Iterator[dict]:
    """Returns an endless iterator over this process's shard of each batch.

    Args:
      process_index, process_count: this process, and the number of processes.
      num_threads: threads, each of which makes a batch; 0 makes batches in the caller's thread.
      prefetch: batches to make ahead, if there are threads.
    Returns:
      Iterator over batches like those of `make_iterator`, with the index of their `bucket`. Its
      state does not depend on the number of processes.
    Raises:
      ValueError: the processes do not divide a batch.
    """
    import grain

    for shape, size in self.shapes:
      if size % process_count:
        raise ValueError(
          f"a batch of {size} clips of shape {shape} does not divide over {process_count} processes"
        )
    for bucket in self.buckets:
      if isinstance(bucket.readers[0], ClipSource):  # A bucket's readers share one list.
        bucket.readers[0].bad_samples.num_parts = process_count
    dataset = grain.MapDataset.range(ENDLESS).map(
      lambda batch: self.read(batch, process_index, process_count)
    )
    options = grain.ReadOptions(
      num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0
    )
    return iter(dataset.to_iter_dataset(options))
