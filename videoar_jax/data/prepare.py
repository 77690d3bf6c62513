"""Prepares videos and images for training: short clips of bounded size, in shards.

A run that was killed resumes after its last complete shard. The output folder has

  prepared.json                        settings, and a hash of the files to prepare
  clips-00000-of-00004.array_record    samples, see `sources/shards.py`; absent if all were dropped
  clips-00000-of-00004.json            names (FILE#CLIP), height / width, and what was dropped
  dropped.jsonl                        everything that was dropped: {"key": ..., "cause": ...}
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from videoar_jax.data.bad_samples import cause_of
from videoar_jax.data.clip_encoding import Settings, encode_clips
from videoar_jax.data.output_folder import OutputFolder
from videoar_jax.data.sources import patterns, records, remote, shards
from videoar_jax.data.sources.captions import captions_of
from videoar_jax.data.sources.filters import parse_filter
from videoar_jax.data.sources.folder import describe_files
from videoar_jax.data.sources.index import (
  CANNOT_BE_FETCHED,
  EXTENSIONS,
  file_name,
  read_entries,
  sample_name,
  segment_of,
)
from videoar_jax.data.sources.media_files import list_files, printable
from videoar_jax.interop.strict_json import to_json

log = logging.getLogger(__name__)

DROPPED = "dropped.jsonl"


Job = tuple[str, list]  # The name of a shard, and its files with their metadata.
Write = Callable[[Job], int]  # Writes a shard; returns its number of files.
# Writes the shards of some jobs in any order; yields the number of files of each finished one.
Runner = Callable[[Write, list[Job], OutputFolder], Iterable[int]]


def prepare(
  path: str, out: str | Path, settings: Settings, runner: Runner, filter: str | None = None
) -> str:
  """Prepares the shards that are still missing; returns a report.

  Args:
    path: a folder, an index, or a pattern of files, local or at a URL.
    out: folder for the shards, local or at a URL.
    settings: how to prepare them.
    runner: does the work: `local_runner`, or one of `beam.py`.
    filter: selects entries of an index.
  Raises:
    ValueError: there is nothing to prepare, or `out` holds shards of other files or settings.
  """
  folder = OutputFolder(out)
  found = folder.sizes()
  root, files = _list_input(path, filter)
  size = settings.files_per_shard
  groups = [files[start : start + size] for start in range(0, len(files), size)]
  names = [shards.prepared_name(i, len(groups)) for i in range(len(groups))]
  _check_same(folder, settings, files, len(groups))
  folder.remove_partials()  # Large. Safe, because only one command at a time writes to a folder.
  missing = [job for job in zip(names, groups, strict=True) if _note_name(job[0]) not in found]
  write = functools.partial(write_shard, root, folder.place, settings)
  with tqdm(total=len(files), desc="prepare", unit="file", dynamic_ncols=True) as bar:
    bar.update(len(files) - sum(len(group) for _, group in missing))
    for num_files in runner(write, missing, folder) if missing else ():
      bar.update(num_files)
  return _report(folder, names, len(files))


def _list_input(path: str, filter: str | None) -> tuple[str, list[tuple[str, dict]]]:
  """Returns the root folder or URL, and each file's path relative to it with its metadata."""
  if not patterns.is_listed(path):
    root, files = _list_files(remote.local_file(path), filter)
    # Paths are relative to the original index, not to a local copy of it.
    return path.rpartition("/")[0] if remote.is_url(path) else str(root.absolute()), files
  if filter:
    raise ValueError("--filter applies to an index; leave it out for a folder or a pattern")
  root, files = patterns.list_media(path)
  if not files:
    raise ValueError(f"{path} has nothing to prepare: no video or image")
  return root, files


def _list_files(path: Path, filter: str | None) -> tuple[Path, list[tuple[str, dict]]]:
  """Returns the root folder, and each file's path relative to it with its metadata."""
  if path.is_dir():
    if filter:
      raise ValueError("--filter applies to an index; leave it out for a folder")
    files = describe_files(path)
    if not files:
      raise ValueError(_no_media(path))
  else:
    wanted = f"name a folder, an index ({' or '.join(EXTENSIONS)}), or a quoted pattern"
    if not path.exists():
      raise ValueError(f"INPUT={path} does not exist; {wanted}")
    if path.suffix not in EXTENSIONS:
      raise ValueError(f"INPUT={path} is a single file; {wanted}")
    entries = read_entries(path)
    keep = parse_filter(filter, "--filter") if filter else lambda entry: True
    # Parquet has types that JSON lacks, such as dates.
    files = [
      (entry["path"], json.loads(to_json(entry, default=str)))
      for place, entry in entries
      if _is_kept(keep, place, entry)
    ]
    if not files:
      kept = f"--filter={filter!r} keeps none of {len(entries)} entries"
      raise ValueError(f"{path} has nothing to prepare: {kept if entries else 'no entries'}")
  return (path if path.is_dir() else path.parent), files


def _no_media(folder: Path) -> str:
  listing = list_files(folder)
  message = f"{folder} has nothing to prepare: no video or image"
  if any(file.endswith((".tar", records.SUFFIX)) for file in listing.others):
    return f"{message}. It has shards, which can be trained on as they are: data.source='shards'"
  return message + (f"; other files are there: {listing.other_kinds()}" if listing.others else "")


def _is_kept(keep, place: str, entry: dict) -> bool:
  try:
    return keep(entry)
  except ValueError as error:
    raise ValueError(f"{place}: {error}") from None


def _check_same(out: OutputFolder, settings: Settings, files: list, num_shards: int) -> None:
  """Records the settings and files in `out`, or checks that they equal those recorded there."""
  names = hashlib.sha256(to_json(files).encode()).hexdigest()[:16]
  facts = dataclasses.asdict(settings) | {"files": names, "num_shards": num_shards}
  if not out.has(shards.PREPARED):
    out.write(shards.PREPARED, to_json(facts, indent=2) + "\n")
    return
  wanted = json.loads(to_json(facts))
  # Settings that earlier versions lacked had what are now the defaults.
  found = json.loads(to_json(dataclasses.asdict(Settings())))
  found |= json.loads(out.read([shards.PREPARED])[0])
  different = sorted(name for name in wanted if found.get(name) != wanted[name])
  if different:
    changes = ", ".join(f"{name} {found.get(name)} -> {wanted[name]}" for name in different)
    raise ValueError(
      f"--out={out} was prepared from other files or settings: {changes}. Use another folder, or "
      "remove this one"
    )


def _note_name(shard: str) -> str:
  return shard.removesuffix(records.SUFFIX) + ".json"


def local_runner(num_processes: int) -> Runner:
  """Returns a runner that uses processes on this machine.

  Raises:
    ValueError: there is no process.
  """
  if num_processes < 1:
    raise ValueError(f"--num_processes={num_processes} must be at least 1")

  def run(write: Write, jobs: list[Job], out: OutputFolder) -> Iterator[int]:
    if num_processes == 1:
      yield from map(write, jobs)
      return
    # A forked child could inherit a lock that a thread of the parent holds.
    context = multiprocessing.get_context("spawn")
    try:
      with ProcessPoolExecutor(num_processes, context, _end_with_parent) as pool:
        yield from pool.map(write, jobs)
    except BrokenProcessPool as error:
      raise ValueError(
        "a process was killed, perhaps for want of memory; the same command resumes, with fewer "
        "--num_processes if need be"
      ) from error

  return run


def _end_with_parent() -> None:
  # Otherwise the processes of a command that was killed wait for work forever.
  def wait() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def write_shard(root: str, out: str, settings: Settings, job: Job) -> int:
  """Writes a shard, then the .json file that marks it as done; returns its number of files.

  It runs in other processes and on other machines, where it may run again for the same job: a
  shard that is done is left as it is.

  Raises:
    ValueError: none of several files can be fetched, which is a fault of the storage.
  """
  name, files = job
  folder = OutputFolder(out)
  if folder.has(_note_name(name)):
    return len(files)
  keys, ratios, dropped = [], [], []
  num_unreachable = 0

  def samples() -> Iterator[bytes]:
    nonlocal num_unreachable
    for path, facts in files:
      entry = facts | {"path": path}
      sample, file = sample_name(entry), file_name(entry)
      kept = {name: value for name, value in facts.items() if name not in ("path", "start", "end")}
      try:
        captions_of(facts)  # Raises for a sample without a caption, which is then dropped.
        found = encode_clips(remote.join(root, path), settings, segment_of(entry))
        for number, (data, added) in enumerate(found):
          yield records.pack(kept | added, data)
          keys.append(printable(shards.clip_name(sample, file, number)))
          ratios.append(added["height"] / added["width"])
      except MemoryError:
        raise
      except Exception as error:
        # The clips before the damage are complete and stay.
        dropped.append({"key": printable(sample), "cause": _cause(sample, error)})
        num_unreachable += str(error) == CANNOT_BE_FETCHED

  found = samples()
  first = next(found, None)
  if num_unreachable == len(files) > 1:
    raise ValueError(f"{name}: none of {len(files)} files can be fetched, such as {files[0][0]}")
  if first is not None:
    with folder.writing(name) as path:
      records.write_shard(path, itertools.chain([first], found))
  note = {"keys": keys, "aspect_ratios": ratios, "dropped": dropped}
  folder.write(_note_name(name), to_json(note, ensure_ascii=False) + "\n")
  return len(files)


def _cause(sample: str, error: Exception) -> str:
  """Returns why a file was dropped; logs what nobody foresaw."""
  cause, _, is_foreseen = cause_of(error)
  if not is_foreseen:
    log.warning("%s is dropped", printable(sample), exc_info=error)
  return cause


def _report(out: OutputFolder, names: list[str], num_files: int) -> str:
  """Writes the list of everything that was dropped; returns a summary.

  Raises:
    ValueError: shards are missing, or nothing could be prepared.
  """
  sizes = out.sizes()
  missing = [name for name in names if _note_name(name) not in sizes]
  if missing:
    raise ValueError(
      f"{out} lacks {len(missing)} of {len(names)} shards, such as {missing[0]}; it must be a "
      "folder or a URL that all workers write to"
    )
  notes = [json.loads(text) for text in out.read(list(map(_note_name, names)))]
  dropped = [entry for note in notes for entry in note["dropped"]]
  num_clips = sum(len(note["keys"]) for note in notes)
  out.write(DROPPED, "".join(to_json(entry, ensure_ascii=False) + "\n" for entry in dropped))
  size = sum(sizes.get(name, 0) for name in names)
  lines = [f"{num_clips} samples of {num_files} files, {size / 2**20:.1f} MiB, in {out}"]
  causes = Counter(entry["cause"] for entry in dropped).most_common()
  lines += [f"dropped: {count} x {cause}" for cause, count in causes]
  if num_clips == 0:
    raise ValueError(f"nothing could be prepared: {'; '.join(lines[1:])}")
  if dropped:
    lines.append(f"{out}/{DROPPED} lists the dropped files")
  return "\n".join(lines)
