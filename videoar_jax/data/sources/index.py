"""Clips of the files in an index, which is a JSON-lines or a Parquet file.

  {"path": "a/b.mp4", "caption": "a dog runs", "class_id": 3, "duration": 4.2, "width": 320, ...}

Instead of "caption", an entry may have a list of "captions", from which each clip draws one. With
"start" and "end", in seconds, it is a segment of the file; a file may have several.

Paths are relative to the index's folder, or absolute, or URLs; the index may be at a URL, too.
`flow` says how much moves, see `motion.py`. `data.filter` can use any other field of an entry, such
as a score; see `filters.py`. The field `aspect_ratio`, width / height, is computed if it is
missing. Numbers that are None or NaN, as tables have them, count as missing.
"""

import decimal
import io
import math
import unicodedata
from pathlib import Path

from videoar_jax.data.bad_samples import BadSamples, bad_sample
from videoar_jax.data.media import clips
from videoar_jax.data.sources import remote, splits
from videoar_jax.data.sources.base import ClipParams, ClipSource, Sample
from videoar_jax.data.sources.captions import captions_of, class_id_of, parse_json, read_lines
from videoar_jax.data.sources.filters import parse_filter
from videoar_jax.data.sources.media_files import normal
from videoar_jax.data.sources.motion import flow_of

EXTENSIONS = (".jsonl", ".parquet")
_SIZES = ("width", "height", "aspect_ratio")
CANNOT_BE_FETCHED = "cannot be fetched"


def read_entries(path: Path) -> list[tuple[str, dict]]:
  """Returns (place, entry) for each entry of an index; the place is for error messages.

  Raises:
    ValueError: the index is missing or damaged, or an entry is wrong; names the line or row.
  """
  if path.suffix not in EXTENSIONS or not path.is_file():
    raise ValueError(f"data.path is {str(path)!r}; set it to an index, {' or '.join(EXTENSIONS)}.")
  entries = _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)
  samples: dict[str, str] = {}
  for place, entry in entries:
    file = entry.get("path")
    if not isinstance(file, str) or not file:
      raise ValueError(f"{place}: path is {file!r}; set it to the path of a file")
    _check_numbers(place, entry)
    sample = sample_name(entry)
    if sample in samples:
      raise ValueError(f"{place}: {sample!r} is in {samples[sample]} already; remove one of them")
    samples[sample] = place
    if not entry.get("aspect_ratio") and entry.get("width") and entry.get("height"):
      entry["aspect_ratio"] = entry["width"] / entry["height"]
  return entries


def _check_numbers(place: str, entry: dict) -> None:
  """Checks an entry's class, motion, size and segment; None replaces numbers that count as missing.

  Raises:
    ValueError: one is not a number, or cannot be.
  """
  for name in (*_SIZES, "start", "end", "flow"):
    if name in entry:
      entry[name] = _number(place, entry, name)
  for name in _SIZES:
    if (entry.get(name) or 0) <= 0 and name in entry:
      entry[name] = None
  if "class_id" in entry:
    try:
      entry["class_id"] = class_id_of(entry)
    except ValueError as error:
      raise ValueError(f"{place}: {error}, but {entry['class_id']!r}; fix or remove it") from None
  try:
    flow_of(entry)
  except ValueError as error:
    raise ValueError(f"{place}: {error}, but {entry['flow']!r}; fix or remove it") from None
  start_s, end_s = segment_of(entry)
  if start_s < 0 or end_s <= start_s:
    raise ValueError(
      f"{place}: start is {entry.get('start')} and end is {entry.get('end')}; they are seconds of "
      "the file: set start to 0 or more, and end to more than start"
    )


def _number(place: str, entry: dict, name: str) -> int | float | None:
  value = entry[name]
  if isinstance(value, decimal.Decimal):
    value = float(value)
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return None
  if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
    raise ValueError(f"{place}: {name} is {value!r}; set it to a number, or leave it out")
  return value


def segment_of(entry: dict) -> tuple[float, float]:
  """Returns the start and the end of an entry's part of its file, in seconds."""
  start_s, end_s = entry.get("start"), entry.get("end")
  return float(start_s or 0), math.inf if end_s is None else float(end_s)


def sample_name(entry: dict) -> str:
  """Returns the name of an entry: its file, with START-END if it is a segment."""
  start_s, end_s = segment_of(entry)
  file = file_name(entry)
  return file if (start_s, end_s) == (0, math.inf) else f"{file}#{start_s}-{end_s}"


def file_name(entry: dict) -> str:
  """Returns the path of an entry's file in one spelling."""
  return entry["path"] if remote.is_url(entry["path"]) else normal(entry["path"])


def _read_jsonl(path: Path) -> list[tuple[str, dict]]:
  entries = []
  for number, line in read_lines(path):
    place = f"{path}, line {number}"
    try:
      entries.append((place, dict(parse_json(line))))
    except (ValueError, TypeError) as error:
      raise ValueError(
        f'{place}: expected {{"path": "a/b.mp4", "caption": "..."}}, found {line[:80]!r}'
      ) from error
  return entries


def _read_parquet(path: Path) -> list[tuple[str, dict]]:
  from pyarrow import parquet  # Slow to import, and rarely needed.

  try:
    rows = parquet.read_table(path).to_pylist()
  except MemoryError:
    raise
  except Exception as error:  # Damage shows in many ways, not only as pyarrow's own exceptions.
    raise ValueError(f"{path} is not a complete Parquet file ({error})") from error
  return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


class IndexSource(ClipSource):
  """Random access to clips of the files in an index.

  Files are opened when they are read. A file that is missing, damaged, too short or without a
  caption is replaced by another one.

  Args:
    path: the index.
    split: "train" or "test"; a tenth of the files is for testing, if the filter keeps at least 20.
      Which files those are does not depend on the filter.
    filter: which entries to keep, see `filters.py`; None for all.
    max_bad_share: largest allowed share of unusable entries.
    **clip: see `ClipSource`.

  Attributes:
    files: samples in use: paths as in the index, with #START-END for segments.
    has_test_split: False if there are too few files; then both splits have all of them.

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
          self._entries[sample_name(entry)] = entry
      except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if not entries:
      raise ValueError(f"{self.path} has no entries")
    if not self._entries:
      raise ValueError(f"{self.path}: data.filter={filter!r} keeps none of {len(entries)} entries")
    # All segments of a file are in the same split.
    samples = {sample: file_name(entry) for sample, entry in self._entries.items()}
    parts = None
    if len(set(samples.values())) >= splits.MIN_FILES_TO_SPLIT:
      parts = splits.parts_by_hash(list(dict.fromkeys(file_name(entry) for _, entry in entries)))
    files, self.has_test_split = splits.choose(parts, samples, split)
    bad_samples = BadSamples(str(self.path), len(self._entries), max_bad_share)
    super().__init__(files, split, bad_samples=bad_samples, **clip)

  def _known_captions(self, position: int) -> list[str]:
    try:
      return captions_of(self._entries[self.files[position]])
    except ValueError:
      return []

  def _known_flow(self, position: int) -> float:
    return flow_of(self._entries[self.files[position]])

  def aspect_ratios(self) -> list[float]:
    """Returns height / width of each sample, in the order of `files`.

    Raises:
      ValueError: an entry has no width and height.
    """
    for file in self.files:
      if not self._entries[file].get("aspect_ratio"):
        raise ValueError(f"{self.path}: {file!r} has no width and height; add them")
    return [1 / self._entries[file]["aspect_ratio"] for file in self.files]

  def _file_of(self, position: int) -> str | None:
    path = remote.join(self._root, self._entries[self.files[position]]["path"])
    return None if remote.is_url(path) else find_file(path)

  def _find(self, position: int) -> Sample:
    entry = self._entries[self.files[position]]
    path = remote.join(self._root, entry["path"])

    def read(params: ClipParams):
      media = open_media(path)
      return self._clip(lambda: media, params, *segment_of(entry))

    return Sample(captions_of(entry), entry.get("class_id"), read, flow_of(entry))


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
  found = find_file(path)
  if found is None:
    raise ValueError("no such file")
  return found


def find_file(path: str) -> str | None:
  """Returns a file's path as the file system spells it; None if there is no such file."""
  # The index and the file system may spell accents differently.
  for spelling in (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))):
    if Path(spelling).is_file():
      return spelling
  return None
