"""Clips of the files in an index, which is a JSON-lines or a Parquet file.

  {"path": "a/b.mp4", "caption": "a dog runs", "class_id": 3, "duration": 4.2, "width": 320, ...}

Instead of "caption", an entry may have a list of "captions", from which each clip draws one.

Paths are relative to the index's folder, or absolute, or URLs; the index may be at a URL, too.
`data.filter` can use any other field of an entry, such as a score; see `filters.py`. The field
`aspect_ratio`, width / height, is computed if it is missing.
"""

import io
import json
from pathlib import Path

from videoar_jax.data import video as clips
from videoar_jax.data.bad_samples import BadSamples, bad_sample
from videoar_jax.data.sources import remote, splits
from videoar_jax.data.sources.base import ClipParams, ClipSource
from videoar_jax.data.sources.filters import parse_filter
from videoar_jax.data.sources.folder import MIN_FILES_TO_SPLIT

EXTENSIONS = (".jsonl", ".parquet")
CANNOT_BE_FETCHED = "cannot be fetched"


def read_entries(path: Path) -> list[tuple[str, dict]]:
  """Returns (place, entry) for each entry of an index; the place is for error messages.

  Raises:
    ValueError: the index is missing or damaged, or an entry has no path; names the line or row.
  """
  if path.suffix not in EXTENSIONS or not path.is_file():
    raise ValueError(f"data.path is {str(path)!r}; set it to an index, {' or '.join(EXTENSIONS)}.")
  entries = _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)
  files: dict[str, str] = {}
  for place, entry in entries:
    file = entry.get("path")
    if not isinstance(file, str) or not file:
      raise ValueError(f"{place}: path is {file!r}; set it to the path of a file")
    if file in files:
      raise ValueError(f"{place}: {file!r} is in {files[file]} already; remove one of them")
    files[file] = place
    if "aspect_ratio" not in entry and entry.get("width") and entry.get("height"):
      entry["aspect_ratio"] = entry["width"] / entry["height"]
  return entries


def _read_jsonl(path: Path) -> list[tuple[str, dict]]:
  entries = []
  for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
    if line.strip():
      place = f"{path}, line {number}"
      try:
        entries.append((place, dict(json.loads(line))))
      except (ValueError, TypeError) as error:
        raise ValueError(
          f'{place}: expected {{"path": "a/b.mp4", "caption": "..."}}, found {line[:80]!r}'
        ) from error
  return entries


def _read_parquet(path: Path) -> list[tuple[str, dict]]:
  import pyarrow  # Slow to import, and rarely needed.
  from pyarrow import parquet

  try:
    rows = parquet.read_table(path).to_pylist()
  except (pyarrow.ArrowException, OSError) as error:
    raise ValueError(f"{path} is not a complete Parquet file ({error})") from error
  return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


class IndexSource(ClipSource):
  """Random access to clips of the files in an index.

  Files are opened when they are read. A file that is missing, damaged, too short or without a
  caption is replaced by another one.

  Args:
    path: the index.
    split: "train" or "test"; a tenth of the entries is for testing, if the filter keeps at least
      20. Which entries those are does not depend on the filter.
    filter: which entries to keep, see `filters.py`; None for all.
    max_bad_share: largest allowed share of unusable entries.
    **clip: see `ClipSource`.

  Attributes:
    files: paths in use, as in the index.
    has_test_split: False if there are too few entries; then both splits have all of them.

  Raises:
    ValueError: the index or the filter is wrong, or the filter keeps no entry.
  """

  def __init__(
    self,
    path: str | Path,
    split: str,
    *,
    filter: str | None = None,
    max_bad_share: float = 1.0,
    **clip,
  ):
    self.path = remote.local_file(path)
    # Paths are relative to the original index, not to a local copy of it.
    self._root = str(path).rpartition("/")[0] if remote.is_url(path) else self.path.parent
    entries = read_entries(self.path)
    keep = parse_filter(filter) if filter else lambda entry: True
    self._entries = {}
    for place, entry in entries:
      try:
        if keep(entry):
          self._entries[entry["path"]] = entry
      except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if not self._entries:
      raise ValueError(f"{self.path}: data.filter={filter!r} keeps none of {len(entries)} entries")
    names = splits.split_by_hash([entry["path"] for _, entry in entries], split)
    chosen = [name for name in names if name in self._entries]
    self.has_test_split = len(self._entries) >= MIN_FILES_TO_SPLIT and bool(chosen)
    files = chosen if self.has_test_split else list(self._entries)
    bad_samples = BadSamples(str(self.path), len(self._entries), max_bad_share)
    super().__init__(files, split, bad_samples=bad_samples, **clip)

  def longest_captions(self) -> list[str]:
    """Returns every caption, to check that they fit the prompt's length."""
    entries = [self._entries[file] for file in self.files]
    captions = [[entry.get("caption"), *(entry.get("captions") or ())] for entry in entries]
    return [caption for variants in captions for caption in variants if isinstance(caption, str)]

  def aspect_ratios(self) -> list[float]:
    """Returns height / width of each sample, in the order of `files`."""
    for file in self.files:
      if not self._entries[file].get("aspect_ratio"):
        raise ValueError(f"{self.path}: {file!r} has no width and height; add them")
    return [1 / self._entries[file]["aspect_ratio"] for file in self.files]

  def _read(self, position: int, params: ClipParams) -> dict:
    file = self.files[position]
    media = open_media(remote.join(self._root, file))
    return self._item(lambda: media, self._entries[file], params)


def open_media(path: str) -> clips.Media:
  """Returns a path, or the bytes of the file at a URL.

  Raises:
    ValueError: there is no such file, or it cannot be fetched.
  """
  if remote.is_url(path):
    try:
      return io.BytesIO(remote.read(path))
    except ValueError as error:
      is_missing = isinstance(error.__cause__, FileNotFoundError)
      raise bad_sample("no such file" if is_missing else CANNOT_BE_FETCHED, str(error)) from error
  if not Path(path).is_file():
    raise ValueError("no such file")
  return path
