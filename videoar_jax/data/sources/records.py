"""Records of ArrayRecord shards: a line of JSON, then raw bytes.

  {"id": 3, "caption": "a dog runs", "class_id": 0}\n<bytes>

The writer defines the meaning of the bytes. Files are written atomically.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from videoar_jax.interop.atomic import replacing
from videoar_jax.interop.strict_json import to_json

SUFFIX = ".array_record"


@runtime_checkable
class Records(Protocol):
  """Records by number, as Grain's `ArrayRecordDataSource` reads them."""

  def __len__(self) -> int:
    """Returns how many there are."""

  def __getitem__(self, position: int) -> bytes:
    """Returns a record."""


def pack(header: dict, payload: bytes) -> bytes:
  """Returns a record; the inverse of `unpack`."""
  # Halves of surrogate pairs, as a text that was cut may have, are no UTF-8.
  return to_json(header, ensure_ascii=False).encode("utf-8", "replace") + b"\n" + payload


def unpack(record: bytes) -> tuple[dict, bytes]:
  """Returns a record's header and its bytes.

  Raises:
    ValueError: the record does not begin with a line of JSON.
  """
  line, newline, payload = record.partition(b"\n")
  try:
    header = json.loads(line)
  except ValueError:
    header = None
  if not newline or not isinstance(header, dict):
    raise ValueError(f"a record begins with {line[:40]!r} instead of a line of JSON")
  return header, payload


def write_shard(path: Path, records: Iterable[bytes]) -> None:
  """Writes a file of records, atomically."""
  # Imported late, here and below: many commands read no records.
  from array_record.python.array_record_module import ArrayRecordWriter

  with replacing(path) as partial:
    # One record per group, so that each can be read without its neighbours.
    writer = ArrayRecordWriter(os.fspath(partial), "group_size:1")
    try:
      for record in records:
        writer.write(record)
    finally:
      if writer.is_open():
        writer.close()


def open_shards(paths: list[Path]) -> Records:
  """Returns random access to the concatenated records of several files.

  Raises:
    ValueError: a file is damaged; the message names it.
  """
  import grain

  for path in paths:
    try:
      grain.sources.ArrayRecordDataSource(os.fspath(path))
    except MemoryError:
      raise
    except Exception as error:  # The library names no exceptions of its own.
      raise ValueError(f"{path} is damaged ({error!r}); remove it and write it again") from error
  return grain.sources.ArrayRecordDataSource([os.fspath(path) for path in paths])
