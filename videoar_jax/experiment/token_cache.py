"""The token cache: the trained tokenizer encodes the data once, for all later stages."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from videoar_jax.data.pipeline import READING_FIELDS, DataConfig
from videoar_jax.data.sources import latents
from videoar_jax.experiment import paths
from videoar_jax.experiment.command_line import check_local
from videoar_jax.experiment.diff import differing_fields
from videoar_jax.interop.atomic import remove_partials
from videoar_jax.parallel import processes
from videoar_jax.parallel.compiler import compiler_options
from videoar_jax.parallel.mesh import process_shard, shard_batch
from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES, platform_of
from videoar_jax.runtime.goodput import GoodputTracker, report_at_exit
from videoar_jax.runtime.preemption import Preempted
from videoar_jax.runtime.watchdog import Watchdog
from videoar_jax.tokenizers.base import TokenizerConfig, TokenizerFamily
from videoar_jax.train.state import Template, flatten

log = logging.getLogger(__name__)
T, U = TypeVar("T"), TypeVar("U")

_NUM_THREADS = 4
# Batches that one device encodes at a time: on CPU, small convolutions keep only one core busy.
_NUM_AHEAD = 2
# A batch that takes longer ends the process, like a training step that exceeds its timeout.
BATCH_TIMEOUT_S = 3600


@dataclasses.dataclass(frozen=True)
class CacheConfig:
  """What is encoded, and where it is stored.

  Attributes:
    num_clips: clips to encode of sprites, which are endless; None for files, see `num_epochs`.
    num_epochs: epochs of the files to encode; each has different clips of the videos.
    batch_size: clips that are encoded together, over all devices.
    clips_per_shard: clips per shard file.
    posterior_dtype: of the means and log-variances that a continuous tokenizer's latents are drawn
      from in every step, "float16" or "float32"; others' latents are bfloat16.
    path: folder of the shards, which other runs may read too; None for one in the workdir.
  """

  num_clips: int | None = None
  num_epochs: int = 1
  batch_size: int = 16
  clips_per_shard: int = 1024
  posterior_dtype: str = "float16"
  path: str | None = None

  def __post_init__(self):
    for name in ("num_clips", "num_epochs", "batch_size", "clips_per_shard"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name}={value} must be at least 1")
    if self.posterior_dtype not in ("float16", "float32"):
      raise ValueError(f"posterior_dtype={self.posterior_dtype!r} must be 'float16' or 'float32'")
    if self.path is not None:
      check_local(self.path, "path")


@dataclasses.dataclass(frozen=True)
class Cache:
  """A stage that encodes clips.

  Attributes:
    name: of the stage.
    after: name of the trained stage right before it; "" for none, with a frozen tokenizer.
    data: the clips.
    config: see `CacheConfig`.
  """

  name: str
  after: str
  data: DataConfig
  config: CacheConfig

  def __post_init__(self):
    is_endless = self.data.source == "sprites"
    if is_endless and self.config.num_clips is None:
      raise ValueError("num_clips is missing: sprites are endless; set how many clips to encode")
    if is_endless and self.config.num_epochs != 1:
      raise ValueError("num_epochs: sprites have no epochs; remove it, and set num_clips")
    if not is_endless and self.config.num_clips is not None:
      raise ValueError(
        f"num_clips={self.config.num_clips} is for sprites alone; set num_epochs, or "
        "data.clips_per_file"
      )

  def folder(self, workdir: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the shards."""
    if self.config.path is None:
      return workdir / self.name
    return pathlib.Path(self.config.path).expanduser().absolute()

  def dtype(self, encoder: TokenizerConfig) -> str:
    """Returns the type in which an encoder's latents, or what they are drawn from, are stored."""
    has_posterior = encoder.num_encoded != encoder.num_channels
    return self.config.posterior_dtype if has_posterior else latents.DTYPE

  def index(
    self, encoder: TokenizerConfig, fingerprint: str, source, tokenizer_dtype: str = "float32"
  ) -> latents.Index:
    """Returns the index of the finished cache of a source and an encoder.

    Args:
      encoder: its settings.
      fingerprint: of its weights.
      source: of clips.
      tokenizer_dtype: of the run.
    Raises:
      ValueError: the source has fewer clips than are asked for.
    """
    data = dataclasses.asdict(self.data)
    for name in READING_FIELDS:
      del data[name]
    epoch_size = self.config.num_clips or len(source)
    return latents.Index(
      encoder=_encoder_facts(encoder),
      fingerprint=fingerprint,
      data=data,
      clips=latents.describe_clips(source),
      latent_shape=(
        *encoder.latent_shape(self.data.num_frames, self.data.resolution),
        encoder.num_encoded,
      ),
      epoch_size=epoch_size,
      num_clips=epoch_size * self.config.num_epochs,
      clips_per_shard=self.config.clips_per_shard,
      files=_files_hash(source),
      dtype=self.dtype(encoder),
      tokenizer_dtype=tokenizer_dtype,
    )


def _files_hash(source) -> str:
  """Returns a hash of a source's files and their sizes; "" for a source without files."""
  if not hasattr(source, "listing"):
    return ""
  return hashlib.sha256(json.dumps(source.listing()).encode()).hexdigest()[:16]


def _encoder_facts(config: TokenizerConfig) -> dict:
  """Returns the tokenizer settings that latents depend on: all but the scales."""
  facts = dataclasses.asdict(config)
  facts.pop("schedule", None)
  return facts


def _defaults(cls: type) -> dict:
  """Returns the defaults of a dataclass's fields."""
  fields = dataclasses.fields(cls)
  return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def encoder_fingerprint(params: dict) -> str:
  """Returns a hash of the weights of a tokenizer's encoder."""
  digest = hashlib.sha256()
  for name, leaf in sorted(flatten(params["encoder"]).items()):
    array = np.asarray(leaf)
    digest.update(f"{name} {array.dtype} {array.shape}".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()[:16]


def check_fits(
  folder: pathlib.Path, wanted: latents.Index, network: type, *, but: tuple[str, ...] = ()
) -> None:
  """Checks that a folder's latents, if any, are the wanted ones.

  Args:
    folder: of the shards.
    wanted: index of the wanted latents.
    network: class of the tokenizer's settings.
    but: fields that are not known yet.
  Raises:
    ValueError: they are not; names the fields that differ, and the fix.
  """
  found = latents.read_index(folder)
  if found is None:
    return
  known = {name: getattr(found, name) for name in but}
  wanted = dataclasses.replace(wanted, **known)
  # What a field that did not exist yet does by default is what was done.
  added = {
    name: {k: v for k, v in _defaults(cls).items() if k in getattr(wanted, name)}
    for name, cls in (("data", DataConfig), ("encoder", network))
  }
  found = dataclasses.replace(
    found, **{name: defaults | getattr(found, name) for name, defaults in added.items()}
  )
  if not found.files:  # An earlier version made them.
    wanted = dataclasses.replace(wanted, files="")
  different = differing_fields(_without_places(found), _without_places(wanted))
  if different:
    lines = "\n  ".join(different)
    raise ValueError(
      f"the latents in {folder} are stale: they were made with other settings (there -> now):\n"
      f"  {lines}\nRemove that folder to encode again, or restore these fields, or give the cache "
      "another path"
    )


def _without_places(index: latents.Index) -> dict:
  """Returns an index for comparison, in which files may be moved if it knows what they are."""
  facts = dataclasses.asdict(index)
  if index.files:
    facts["data"] |= {"path": None, "split_file": None}
  return paths.resolved(facts)


def encode(
  folder: pathlib.Path,
  index: latents.Index,
  source,
  family: TokenizerFamily,
  tokenizer: Template,
  params: dict,
  mesh: Mesh,
  batch_size: int,
) -> None:
  """Encodes the clips of an index into its missing shards.

  Each process writes its own shards; all encode together, one batch at a time.

  Args:
    folder: of the shards.
    index: what to encode.
    source: clips.
    family: of the tokenizer.
    tokenizer: structure of the autoencoder.
    params: its parameters, on every device.
    mesh: devices.
    batch_size: clips at a time, over all devices.
  Raises:
    ValueError: the folder holds other latents.
    Preempted: SIGTERM came to one of several processes; complete shards are kept.
  """
  check_fits(folder, index, family.network)
  is_missing = np.isin(np.arange(index.num_shards), index.missing(folder))
  # Other processes may see new files late.
  missing = np.flatnonzero(processes.broadcast(is_missing)).tolist()
  if not missing:
    log.info("all clips are already encoded in %s", folder)
    return
  if processes.is_first():
    remove_partials(folder)  # Shards are large, and a run may be killed often.
    latents.write_index(folder, index)
  processes.wait_for_all(f"the index of {folder} is written")
  encode_batch = _make_encode(family, tokenizer, mesh, latents.DTYPES[index.dtype])
  process, num_processes = jax.process_index(), jax.process_count()
  if process_shard(mesh)[1] != num_processes:
    raise ValueError(
      "processes that share samples cannot encode; let mesh.sequence x mesh.tensor divide the "
      "devices of a process"
    )
  rows = batch_size // num_processes
  started = time.perf_counter()
  total = sum(len(index.clips_of(shard)) for shard in missing)
  with (
    tqdm(total=total, desc="encode", unit="clip", dynamic_ncols=True) as bar,
    Watchdog(BATCH_TIMEOUT_S) as watchdog,
    report_at_exit(GoodputTracker("encoding")) as clock,
  ):
    for first in range(0, len(missing), num_processes):
      shards = missing[first : first + num_processes]
      num_batches = max(-(-len(index.clips_of(shard)) // rows) for shard in shards)
      # A process without a shard still takes part in encoding, and discards the result.
      clips = index.clips_of(shards[process] if process < len(shards) else shards[0])
      encoded = _encode_clips(
        clips, source, encode_batch, params, mesh, rows, num_batches, bar, clock, watchdog
      )
      if process < len(shards):
        latents.write_clips(index.path(folder, shards[process]), encoded)
      else:
        for _ in encoded:
          pass
  processes.wait_for_all(f"the clips of {folder} are encoded")
  seconds = time.perf_counter() - started
  log.info("encoded %d clips in %.0f s, %.1f a second", total, seconds, total / seconds)


def _make_encode(family: TokenizerFamily, tokenizer: Template, mesh: Mesh, dtype: np.dtype):
  """Returns a function from parameters and a batch of pixels to what is stored, split by clips."""

  def encode_batch(params, video):
    return family.encode_posterior(tokenizer.module(params), video).astype(dtype)

  split = NamedSharding(mesh, PartitionSpec(LOGICAL_AXIS_RULES["batch"]))
  options = compiler_options(platform_of(mesh))
  return jax.jit(encode_batch, out_shardings=split, compiler_options=options)


def _encode_clips(
  clips: range,
  source,
  encode_batch,
  params,
  mesh: Mesh,
  rows: int,
  num_batches: int,
  bar,
  clock: GoodputTracker,
  watchdog: Watchdog,
) -> Iterator[tuple[dict, np.ndarray]]:
  """Yields (item, latent) of clips in order; all processes encode their batches together."""
  import grain  # Imported late, as in `data.pipeline`.

  # The last batches are padded, so that all have one shape.
  padded = [*clips, *itertools.repeat(clips[-1], rows * num_batches - len(clips))]
  dataset = grain.MapDataset.source(padded).map(lambda clip: source[clip])
  dataset = dataset.batch(rows, batch_fn=list)
  options = grain.ReadOptions(num_threads=_NUM_THREADS, prefetch_buffer_size=_NUM_THREADS)
  left = len(clips)

  def encode_items(items: list[dict]) -> tuple[list[dict], np.ndarray]:
    video = shard_batch(np.stack([item["video"] for item in items]), mesh)
    with jax.set_mesh(mesh):
      return items, _own_rows(encode_batch(params, video))

  # Programs of several devices must start in the same order on each of them.
  num_ahead = _NUM_AHEAD if mesh.size == 1 else 1
  with contextlib.closing(iter(dataset.to_iter_dataset(options))) as batches:
    for items, encoded in _map_ahead(encode_items, clock.each("data", batches), num_ahead):
      kept = items[:left]
      yield from zip(kept, encoded, strict=False)
      left -= len(kept)
      bar.update(len(kept))
      watchdog.beat()
      if processes.is_preemption_agreed():
        raise Preempted("SIGTERM: stopped while clips were encoded", signal.SIGTERM)


def _map_ahead(function: Callable[[T], U], values: Iterable[T], num: int) -> Iterator[U]:
  """Yields the function of each value in order, and computes as many at a time, in threads."""
  if num == 1:
    yield from map(function, values)
    return
  with ThreadPoolExecutor(num) as threads:
    waiting: collections.deque[Future[U]] = collections.deque()
    try:
      for value in values:
        waiting.append(threads.submit(function, value))
        if len(waiting) == num:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      for future in waiting:
        future.cancel()


def _own_rows(array: jax.Array) -> np.ndarray:
  """Returns this process's part of an array that is sharded along its first axis."""
  parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
