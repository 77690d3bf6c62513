"""Samples that cannot be used: each is listed once, counted by cause, and too many stop the run."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_NUM_SHOWN = 20


def fault(cause: str, details: str) -> ValueError:
  """Returns what is raised of a sample: its cause, which is counted, and details for the log."""
  error = ValueError(cause)
  error.add_note(details)
  return error


class BadSamples:
  """What went wrong with the samples of a source.

  Args:
    source: its name, for people.
    num_samples: how many it has.
    max_share: more faults than this share of the samples are an error.

  Attributes:
    skipped: (key, cause) of each sample that cannot be used.
    num_parts: processes that share the samples; each counts for itself.
    num_reads: of samples by this process, good or bad.
  """

  def __init__(self, source: str, num_samples: int, max_share: float):
    self.source, self.num_samples, self.max_share = source, num_samples, max_share
    self.skipped: list[tuple[str, str]] = []
    self.num_parts, self.num_reads, self._num_bad_reads = 1, 0, 0
    self._keys: set[str] = set()
    self._file: BadSamplesFile | None = None
    self._lock = threading.Lock()

  def add(self, key: str, cause: str) -> bool:
    """Lists a sample; returns whether it was not listed before.

    Raises:
      ValueError: there are too many; names them.
    """
    with self._lock:
      self._num_bad_reads += 1
      is_new = key not in self._keys
      if is_new:
        self._keys.add(key)
        self.skipped.append((key, cause))
        if self._file is not None:
          self._file.add(self.source, key, cause)
    if self._are_too_many():
      raise ValueError(self._too_many())
    return is_new

  def _are_too_many(self) -> bool:
    if len(self.skipped) <= self.max_share * self.num_samples / self.num_parts:
      return False
    # One of several processes reads a part of the samples in an epoch, and other ones in the next:
    # in time it finds all that are bad, so that it is the share of what it read that tells.
    return self.num_parts == 1 or self._num_bad_reads > self.max_share * self.num_reads

  def write_to(self, file: BadSamplesFile) -> None:
    """Lists what was found in a file, and from now on each sample as it is found."""
    with self._lock:
      self._file = file
      for key, cause in self.skipped:
        file.add(self.source, key, cause)

  def causes(self) -> str:
    """Returns how many samples each cause has, as a text."""
    counts = Counter(cause for _, cause in self.skipped)
    return "; ".join(f"{count} x {cause}" for cause, count in counts.most_common())

  def _too_many(self) -> str:
    lines = [f"  {key}: {cause}" for key, cause in self.skipped[:_NUM_SHOWN]]
    return (
      f"{self.source}: {len(self.skipped)} of {self._what()} cannot be used, more than "
      f"data.max_bad_share={self.max_share:g} allows ({self.causes()}). Mend them, or raise the "
      "share. The first ones:\n" + "\n".join(lines)
    )

  def _what(self) -> str:
    part = f", of which 1 in {self.num_parts} is read here," if self.num_parts > 1 else ""
    return f"{self.num_samples} samples{part}"


def write_bad_samples(path: Path, sources: Iterable) -> None:
  """Lists the faults of sources in a file: those so far, and from now on each as it is found.

  Lines are {"source", "key", "cause"}, each sample once; what an earlier run wrote stays.

  Args:
    path: of the file.
    sources: those without `faults` have none.
  """
  file = BadSamplesFile(path)
  for source in sources:
    if hasattr(source, "faults"):
      source.faults.write_to(file)


class BadSamplesFile:
  """The file of `write_bad_samples`."""

  def __init__(self, path: Path):
    self._path, self._lock = path, threading.Lock()
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # The machine failed within a line.
      path.write_text(whole)
    found = map(json.loads, whole.splitlines())
    self._known = {(fault["source"], fault["key"]) for fault in found}

  def add(self, source: str, key: str, cause: str) -> None:
    """Adds a line, unless there is one of this sample."""
    with self._lock:
      if (source, key) not in self._known:
        self._known.add((source, key))
        with self._path.open("a") as file:
          file.write(json.dumps({"source": source, "key": key, "cause": cause}) + "\n")
