"""Samples that cannot be used: each is listed once, counted, and too many stop the run."""

import json
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_NUM_SHOWN = 20


class Faults:
  """What went wrong with the samples of a source.

  Args:
    source: its name, for people.
    num_samples: how many it has.
    max_share: more faults than this share of the samples are an error.

  Attributes:
    skipped: (key, cause) of each sample that cannot be used.
  """

  def __init__(self, source: str, num_samples: int, max_share: float):
    self.source, self.num_samples, self.max_share = source, num_samples, max_share
    self.skipped: list[tuple[str, str]] = []
    self._keys: set[str] = set()
    self._lock = threading.Lock()

  def add(self, key: str, cause: str) -> bool:
    """Lists a sample; returns whether it was not listed before.

    Raises:
      ValueError: there are too many; names them.
    """
    with self._lock:
      is_new = key not in self._keys
      if is_new:
        self._keys.add(key)
        self.skipped.append((key, cause))
    if len(self.skipped) > self.max_share * self.num_samples:
      raise ValueError(self._too_many())
    return is_new

  def causes(self) -> str:
    """Returns how many samples each cause has, as a text."""
    counts = Counter(cause for _, cause in self.skipped)
    return "; ".join(f"{count} x {cause}" for cause, count in counts.most_common())

  def _too_many(self) -> str:
    lines = [f"  {key}: {cause}" for key, cause in self.skipped[:_NUM_SHOWN]]
    return (
      f"{self.source}: {len(self.skipped)} of {self.num_samples} samples cannot be used, more than "
      f"data.max_bad_share={self.max_share:g} allows ({self.causes()}). Mend them, or raise the "
      "share. The first ones:\n" + "\n".join(lines)
    )


def write_faults(path: Path, sources: Iterable) -> None:
  """Adds the faults of sources to a file of lines {"source", "key", "cause"}, each sample once.

  Sources without a list of faults have none.
  """
  lines = dict.fromkeys(path.read_text().splitlines()) if path.exists() else {}
  for source in sources:
    for key, cause in getattr(source, "skipped", []):
      fault = {"source": source.faults.source, "key": key, "cause": cause}
      lines[json.dumps(fault)] = None
  if lines:
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(f"{line}\n" for line in lines))
    partial.replace(path)
