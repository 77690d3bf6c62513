"""Bad samples of a data source: listed once each, counted by cause; too many stop the run."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from videoar_jax.data.sources.media_files import printable
from videoar_jax.interop.strict_json import to_json

_NUM_SHOWN = 20


def bad_sample(cause: str, details: str) -> ValueError:
  """Returns the error to raise for a bad sample.

  Args:
    cause: what is wrong, without details of the sample: equal causes are counted together.
    details: a note for the log.
  """
  error = ValueError(cause)
  error.add_note(details)
  return error


def count_causes(causes: Iterable[str]) -> str:
  """Returns how often there is each cause, as text."""
  return "; ".join(f"{count} x {cause}" for cause, count in Counter(causes).most_common())


def cause_of(error: Exception) -> tuple[str, str, bool]:
  """Returns why a sample is bad: the cause, details for the log, and whether it was foreseen.

  Readers raise ValueError or OSError for what can be wrong with a file. Anything else that a file
  brings out of a library is that file's fault, too, and no reason to end a run.
  """
  if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
    return str(error), ": ".join(getattr(error, "__notes__", ())), True
  if isinstance(error, OSError):
    return f"cannot be read ({error.strerror or type(error).__name__})", "", True
  kind = type(error)
  name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
  return f"cannot be read ({name})", str(error), False


class BadSamples:
  """The bad samples of one source.

  Args:
    source: name of the source, for messages.
    num_samples: number of samples in the source.
    max_share: largest allowed share of bad samples. A single one is always allowed, unless the
      share is 0: in a small folder it is more than any sensible share.

  Attributes:
    skipped: (key, cause) of each bad sample.
    num_parts: processes that share the samples; each keeps its own count.
    num_reads: samples that this process has read, good or bad.
  """

  def __init__(self, source: str, num_samples: int, max_share: float):
    self.source, self.num_samples, self.max_share = source, num_samples, max_share
    self.skipped: list[tuple[str, str]] = []
    self._details: dict[str, str] = {}
    self.num_parts, self.num_reads, self._num_bad_reads = 1, 0, 0
    self._keys: set[str] = set()
    self._file: BadSamplesFile | None = None
    self._lock = threading.Lock()

  def add(self, key: str, cause: str, details: str = "") -> bool:
    """Adds a bad sample; returns whether it is new to the list.

    Raises:
      ValueError: there are too many bad samples; the message lists the first ones.
    """
    is_new = self._add(key, cause, details)
    self._check()
    return is_new

  def add_all(self, samples: Iterable[tuple[str, str]]) -> None:
    """Adds (key, cause) of bad samples that were found together.

    Raises:
      ValueError: there are too many; the message counts all of them.
    """
    for key, cause in samples:
      self._add(key, cause)
    self._check()

  def _add(self, key: str, cause: str, details: str = "") -> bool:
    key, cause = printable(key), printable(cause)
    with self._lock:
      self._num_bad_reads += 1
      is_new = key not in self._keys
      if is_new:
        self._keys.add(key)
        self.skipped.append((key, cause))
        if len(self._details) < _NUM_SHOWN:
          self._details[key] = details
        if self._file is not None:
          self._file.add(self.source, key, cause)
    return is_new

  def _check(self) -> None:
    if self._are_too_many():
      raise ValueError(self._too_many())

  def _are_too_many(self) -> bool:
    num_allowed = self.max_share * self.num_samples / self.num_parts
    if len(self.skipped) <= max(num_allowed, 1 if self.max_share else 0):
      return False
    # Each of several processes reads a different part of the samples in every epoch. In time it
    # finds all bad samples of the source, so the test is their share among its own reads.
    return self.num_parts == 1 or self._num_bad_reads > self.max_share * self.num_reads

  def write_to(self, file: BadSamplesFile) -> None:
    """Writes the bad samples so far to a file, and from now on each new one."""
    with self._lock:
      self._file = file
      for key, cause in self.skipped:
        file.add(self.source, key, cause)

  def causes(self) -> str:
    """Returns the number of samples by cause, as text."""
    return count_causes(cause for _, cause in self.skipped)

  def _too_many(self) -> str:
    lines = [f"  {key}: {cause}{self._detail(key)}" for key, cause in self.skipped[:_NUM_SHOWN]]
    return (
      f"{self.source}: {len(self.skipped)} of {self._what()} cannot be used, more than "
      f"data.max_bad_share={self.max_share:g} allows ({self.causes()}). Fix them, or raise the "
      "limit. The first ones:\n" + "\n".join(lines)
    )

  def _detail(self, key: str) -> str:
    return f" ({printable(self._details[key])})" if self._details.get(key) else ""

  def _what(self) -> str:
    part = f" (this process reads 1 in {self.num_parts})" if self.num_parts > 1 else ""
    return f"{self.num_samples} samples{part}"


def write_bad_samples(path: Path, sources: Iterable) -> None:
  """Writes the bad samples of sources to a file: those so far, and from now on each new one.

  Lines are {"source", "key", "cause"}, one per sample; lines of an earlier run are kept.

  Args:
    path: the file.
    sources: data sources; those without `bad_samples` are left out.
  """
  file = BadSamplesFile(path)
  for source in sources:
    if hasattr(source, "bad_samples"):
      source.bad_samples.write_to(file)


class BadSamplesFile:
  """The file of `write_bad_samples`."""

  def __init__(self, path: Path):
    self._path, self._lock = path, threading.Lock()
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # An earlier run was cut off while it wrote a line.
      path.write_text(whole)
    found = map(json.loads, whole.splitlines())
    self._known = {(entry["source"], entry["key"]) for entry in found}

  def add(self, source: str, key: str, cause: str) -> None:
    """Adds a line, unless the sample has one."""
    with self._lock:
      if (source, key) not in self._known:
        self._known.add((source, key))
        with self._path.open("a") as file:
          file.write(to_json({"source": source, "key": key, "cause": cause}) + "\n")
