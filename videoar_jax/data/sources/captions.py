"""Captions of samples: one rule for what counts as a caption, and where a folder has them.

A blank caption counts as missing. A sample has a list of captions, of which each clip draws one;
blank ones are left out. A sample that has only blank ones is bad.
"""

import codecs
import json
import logging
import math
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from videoar_jax.data.sources.media_files import Listing, Names, printable

log = logging.getLogger(__name__)

CAPTIONS = "captions.jsonl"
METADATA = "metadata.jsonl"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LISTS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def captions_of(facts: dict) -> list[str]:
  """Returns the captions of a sample: its list of `captions`, or its `caption`.

  Raises:
    ValueError: there is none that is not blank, or one is not a text.
  """
  found = _clean(facts.get("captions"), list) or _clean(facts.get("caption"), str)
  if not found:
    raise ValueError("no caption")
  return found


def _clean(value, kind: type) -> list[str]:
  """Returns the captions that are not blank, of a list or of a text, as `kind` says.

  Raises:
    ValueError: the value is of another kind.
  """
  if _is_missing(value):
    return []
  if not isinstance(value, kind):
    raise ValueError("a caption is not a text" if kind is str else "captions is not a list")
  if kind is str:
    text = clean_text(value)
    return [text] if text else []
  return [text for caption in value for text in _clean(caption, str)]


def _is_missing(value) -> bool:
  """Returns whether a value is None or NaN, as tables have them."""
  return value is None or (isinstance(value, float) and math.isnan(value))


def clean_text(text: str) -> str:
  """Returns a text without blanks around it and without halves of surrogate pairs."""
  return text.strip().encode("utf-8", "replace").decode()


def first_sentence(caption: str) -> str:
  """Returns a caption up to the first full stop, question or exclamation mark before a blank."""
  return re.split(r"(?<=[.!?])\s", caption, maxsplit=1)[0]


def class_id_of(facts: dict) -> int | None:
  """Returns the class of a sample; None where there is none. Whole floats, as in tables, are one.

  Raises:
    ValueError: it is not a whole number of 0 or more.
  """
  value = facts.get("class_id")
  if _is_missing(value):
    return None
  if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
    raise ValueError("class_id is not an integer")
  if value < 0:
    raise ValueError("class_id is negative")
  return int(value)


def read_captions(folder: Path, listing: Listing) -> dict[str, list[str]]:
  """Returns the captions of each file that has any; an empty list if all of them are blank.

  They are in the first of these places that has one: a line of `captions.jsonl`, a line of a
  `metadata.jsonl` as in Hugging Face's folders, a text file beside the clip: `NAME.txt`.

  Raises:
    ValueError: a line is wrong; the message names the file and line, and how to fix it.
  """
  names = Names(listing.media)
  found = read_list(folder, CAPTIONS, names)
  for file in listing.others:
    if posixpath.basename(file) == METADATA:
      for name, captions in read_list(folder, file, names).items():
        found[name] = found.get(name) or captions
  texts = {_stem(file): file for file in listing.others if _is_text(file)}
  stems, unused = Names(texts), set(texts.values())
  for file in listing.media if texts else ():
    if (stem := stems.find(_stem(file))) is not None:
      unused.discard(texts[stem])
      if not found.get(file):
        found[file] = _clean(_read_text(folder / texts[stem]), str)
  _tell_unused(folder, sorted(unused), [file for file in listing.others if _is_unused_list(file)])
  return found


def _tell_unused(folder: Path, texts: list[str], lists: list[str]) -> None:
  found = [f"{len(texts)} text files belong to no clip, such as {texts[0]}"] if texts else []
  found += [f"{len(lists)} lists are not used, such as {lists[0]}"] if lists else []
  if found:
    log.warning(
      "%s: %s. Captions are in NAME.txt beside NAME.mp4, in %s in the folder itself, or in %s",
      *(printable(str(folder)), printable("; ".join(found)), CAPTIONS, METADATA),
    )


def _stem(file: str) -> str:
  return posixpath.splitext(file)[0]


def _is_text(file: str) -> bool:
  return file.lower().endswith(".txt")


def _is_unused_list(file: str) -> bool:
  """Returns whether a file seems to have captions, but in a format or a place that is not read."""
  stem, ending = posixpath.splitext(posixpath.basename(file).lower())
  is_list = stem in ("captions", "metadata") and ending in _LISTS
  return is_list and file != CAPTIONS and posixpath.basename(file) != METADATA


def may_have_captions(file: str) -> bool:
  """Returns whether a file is one that `read_captions` may read, by its relative path."""
  return _is_text(file) or file == CAPTIONS or posixpath.basename(file) == METADATA


def decoded(data: bytes) -> str:
  """Returns the text of a file with a caption, in UTF-8 or, as its first bytes say, in UTF-16."""
  return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig", "replace")


def _read_text(path: Path) -> str:
  try:
    return decoded(path.read_bytes())
  except OSError as error:
    log.warning("%s cannot be read (%s)", printable(str(path)), error.strerror)
    return ""


def read_list(folder: Path, file: str, names: Names) -> dict[str, list[str]]:
  """Returns the captions of a list, if there is one; its paths are relative to its own folder.

  Raises:
    ValueError: a line is wrong; the message names the file and line, and how to fix it.
  """
  is_metadata, below = file != CAPTIONS, posixpath.dirname(file)
  key = "file_name" if is_metadata else "file"
  captions: dict[str, list[str]] = {}
  is_first = True
  for number, line in read_lines(folder / file):
    place = f"{printable(str(folder / file))}, line {number}"
    try:
      entry = parse_json(line)
      if is_metadata and is_first and not (isinstance(entry, dict) and key in entry):
        log.info("%s is not used: its first line has no file_name", printable(file))
        return {}
      is_first = False
      if not isinstance(entry, dict):
        raise TypeError("it is no object in braces")
      name, variants = _entry(entry, key, is_metadata)
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f'{place}: expected {{"{key}": "a/b.mp4", "caption": "..."}}, found {line[:80]!r} '
        f"({type(error).__name__}: {error})."
      ) from error
    if variants is None:
      continue
    found = names.find(posixpath.join(below, name))
    if found is None:
      raise ValueError(
        f"{place}: there is no video {posixpath.normpath(name)!r} below "
        f"{printable(str(folder / below))!r}; fix the path, which is relative to that folder, or "
        "remove the line."
      )
    if found in captions:
      raise ValueError(f"{place}: {found!r} has a caption already; remove one of the lines.")
    captions[found] = variants
  return captions


def _entry(entry: dict, key: str, is_metadata: bool) -> tuple[str, list[str] | None]:
  """Returns a line's file and its captions; None if a line of metadata has no field for them."""
  if not isinstance(entry[key], str):
    raise TypeError(f"{key} must be a string")
  fields = ("text", "caption", "captions") if is_metadata else ("caption", "captions")
  if not any(field in entry for field in fields):
    if is_metadata:
      return entry[key], None
    raise KeyError("caption")
  try:
    variants = _clean(entry.get("captions"), list)
    for field in fields[:-1]:
      variants = variants or _clean(entry.get(field), str)
  except ValueError as error:
    raise TypeError(str(error)) from None
  return entry[key], variants


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
  """Yields the number and the bytes of each line that is not empty, if there is such a file.

  Raises:
    ValueError: it is in UTF-16.
  """
  if path.is_file():
    data = path.read_bytes()
    if data.startswith(_UTF16):
      raise ValueError(f"{printable(str(path))} is in UTF-16; save it as UTF-8")
    for number, line in enumerate(data.split(b"\n"), start=1):
      if line.strip():
        yield number, line


def parse_json(data: bytes | str):
  """Parses JSON.

  Raises:
    ValueError: it is not valid, or too deep to be read.
  """
  try:
    return json.loads(data)
  except RecursionError:
    raise ValueError("it is nested too deeply") from None


class CutCaptions:
  """Counts a source's captions that are longer than `text.length` allows, and warns of them once.

  Args:
    source: name of the source, for messages.

  Attributes:
    files: samples with a caption that was cut.
  """

  def __init__(self, source: str):
    self.files: set[str] = set()
    self._source, self._is_told = source, False

  def fit(
    self, file: str, caption: str, encode: Callable[[str], np.ndarray]
  ) -> tuple[str, np.ndarray]:
    """Returns a caption, cut to what can be encoded, and its encoding.

    Args:
      file: name of the sample.
      caption: the caption.
      encode: raises ValueError if it cannot encode a caption. If that is only too long, the error
        has an attribute `cut`, the part that fits, as `text.tokenizers.PromptTooLong` has.
    Raises:
      ValueError: the caption cannot be encoded, whatever its length.
    """
    try:
      return caption, encode(caption)
    except ValueError as error:
      cut = getattr(error, "cut", None)
      if cut is None:
        raise
      text, is_new = encode(cut), file not in self.files
      self.files.add(file)
      if is_new and not self._is_told:
        self._is_told = True
        log.warning(
          "%s: captions that are too long are cut to fit, the first that of %s: %s",
          *(printable(self._source), printable(file), error),
        )
      return cut, text
