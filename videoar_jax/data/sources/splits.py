"""Which samples are for training and which for testing."""

import dataclasses
import hashlib
import posixpath
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from videoar_jax.data.sources.media_files import Names

CLASSES = "classInd.txt"


MIN_FILES_TO_SPLIT = 20


def split_by_hash(keys: list[str], split: str) -> list[str]:
  """Returns the keys of a split: a tenth, chosen by hash, is for testing."""

  def digest(key: str) -> bytes:  # Names of files may have bytes that are not UTF-8.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()

  test = set(sorted(keys, key=digest)[: len(keys) // 10])
  return [key for key in keys if (key in test) == (split == "test")]


def choose(
  parts: dict[str, list[str]] | None, samples: dict[str, str], split: str
) -> tuple[list[str], bool]:
  """Returns the samples of a split, and whether there is a test split.

  What is kept for testing is never trained on, whether or not it can be used.

  Args:
    parts: files of each split, those that cannot be used, too; None if there is no test split.
    samples: the file of each sample that can be used.
    split: "train" or "test". If there is no test split, or none of its files can be used, both
      splits have all samples that may be trained on.
  Raises:
    ValueError: no sample may be trained on.
  """
  if parts is None:
    return list(samples), False
  found = {}
  for name, files in parts.items():
    chosen = set(files)
    found[name] = [sample for sample, file in samples.items() if file in chosen]
  if not found["train"]:
    raise ValueError("none of the files to train on can be used, only files that are for testing")
  has_test_split = bool(found["test"])
  return found[split if has_test_split else "train"], has_test_split


def parts_by_hash(files: list[str]) -> dict[str, list[str]] | None:
  """Returns the files of each split; None if they are too few for two."""
  if len(files) < MIN_FILES_TO_SPLIT:
    return None
  return {split: split_by_hash(files, split) for split in ("train", "test")}


@dataclasses.dataclass(frozen=True)
class OfficialSplit:
  """The official split of UCF-101, or of a data set with lists in the same format.

  Attributes:
    files: files of each split, in the order of its list.
    class_names: in the order of `classInd.txt`.
  """

  files: dict[str, list[str]]
  class_names: list[str]


def read_official_split(path: str | Path, found: Iterable[str]) -> OfficialSplit:
  """Reads `trainlist01.txt`, with `testlist01.txt` and `classInd.txt` beside it.

  Their lines are `Class/video.avi 1`, `Class/video.avi` and `1 Class`.

  Args:
    path: the training list. Its name has "train" where that of the test list has "test".
    found: files below the folder of videos.
  Raises:
    ValueError: a list is missing or wrong; the message names the file and line.
  """
  train = Path(path).expanduser()
  if "train" not in train.name:
    raise ValueError(
      f"data.split_file is {str(path)!r}; set it to the list to train on, such as trainlist01.txt"
    )
  test = train.with_name(train.name.replace("train", "test"))
  numbers = _read_classes(train.with_name(CLASSES))
  names = Names(found)
  files = {"train": _read_list(train, numbers, names), "test": _read_list(test, numbers, names)}
  both = set(files["train"]) & set(files["test"])
  if both:
    raise ValueError(f"{min(both)!r} is in both {train} and {test}; remove it from one")
  return OfficialSplit(files, sorted(numbers, key=numbers.get))


def _read_classes(path: Path) -> dict[str, int]:
  numbers: dict[str, int] = {}
  for place, line in _lines(path):
    number, _, name = line.partition(" ")
    if number != str(len(numbers) + 1) or not name or name in numbers:
      raise ValueError(f"{place}: expected {f'{len(numbers) + 1} ClassName'!r}, found {line!r}")
    numbers[name] = int(number)
  return numbers


def _read_list(path: Path, numbers: dict[str, int], names: Names) -> list[str]:
  files: dict[str, None] = {}
  for place, line in _lines(path):
    # File names may have spaces. A last word of digits is the class number.
    name, _, number = line.rpartition(" ") if line.rpartition(" ")[2].isdigit() else (line, "", "")
    path = posixpath.normpath(name)
    class_name = posixpath.basename(posixpath.dirname(path))
    if class_name not in numbers:
      raise ValueError(f"{place}: there is no class {class_name!r} in {CLASSES}; fix one of them")
    if number and int(number) != numbers[class_name]:
      raise ValueError(
        f"{place}: {class_name} is number {numbers[class_name]} in {CLASSES}, here {number}"
      )
    file = names.find(path)
    if file is None:
      raise ValueError(
        f"{place}: there is no {path!r} below data.path; fix the name or remove the line"
      )
    if file in files:
      raise ValueError(f"{place}: {file!r} is listed already; remove one of the lines")
    files[file] = None
  if not files:
    raise ValueError(f"{path} names no file")
  return list(files)


def _lines(path: Path) -> Iterable[tuple[str, str]]:
  """Yields (place, text) of each line that is not empty."""
  if not path.is_file():
    raise ValueError(f"{path} is missing; data.split_file needs it, as in UCF-101's split lists")
  for number, data in enumerate(path.read_bytes().splitlines(), start=1):
    place = f"{path}, line {number}"
    try:
      line = data.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError:
      raise ValueError(f"{place}: it is not UTF-8; save the file as UTF-8") from None
    if line:
      yield place, unicodedata.normalize("NFC", line)
