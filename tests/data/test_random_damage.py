"""Random changes of bytes in lists, indices and shards: nothing but ValueError reaches the user."""

import io
import json
import random
import tarfile
import zlib

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from videoar_jax import open_data
from videoar_jax.data.sources import records

NUM_SAMPLES, NUM_TRIES = 4, 60
SUFFIXES = {
  "captions.jsonl": "folder",
  "metadata.jsonl": "folder",
  "clips.jsonl": "index",
  "clips.parquet": "index",
  "a.tar": "shards",
  "a.array_record": "shards",
}


def picture(value):
  buffer = io.BytesIO()
  Image.new("RGB", (8, 8), (value, 90, 120)).save(buffer, "png")
  return buffer.getvalue()


def write(folder, name):
  """Writes pictures and a file that describes or has them; returns that file."""
  path, pictures = folder / name, [picture(40 * i) for i in range(NUM_SAMPLES)]
  facts = [{"caption": f"Nr. {i} é", "class_id": i} for i in range(NUM_SAMPLES)]
  if name == "a.array_record":
    records.write_shard(path, map(records.pack, facts, pictures))
  elif name == "a.tar":
    with tarfile.open(path, "w") as tar:
      for i, data in enumerate(pictures):
        for ending, part in (("png", data), ("json", json.dumps(facts[i]).encode())):
          info = tarfile.TarInfo(f"{i}.{ending}")
          info.size = len(part)
          tar.addfile(info, io.BytesIO(part))
  else:
    for i, data in enumerate(pictures):
      (folder / f"{i}.png").write_bytes(data)
    key = {"captions.jsonl": "file", "metadata.jsonl": "file_name"}.get(name, "path")
    size = {"width": 8, "height": 8, "start": 0.0, "end": 2.0} if key == "path" else {}
    rows = [{key: f"{i}.png"} | fact | size for i, fact in enumerate(facts)]
    if name == "clips.parquet":
      parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
      path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def damaged(data, rng):
  """Returns bytes with up to three places changed, cut off, removed or repeated."""
  data = bytearray(data)
  for _ in range(rng.randint(1, 3)):
    at, length = rng.randrange(len(data)), rng.randint(1, 16)
    match rng.choice(("change", "change", "zero", "cut", "remove", "repeat", "quote")):
      case "change":
        data[at] = rng.randrange(256)
      case "zero":
        data[at : at + length] = bytes(len(data[at : at + length]))
      case "cut" if at > len(data) // 2:
        del data[at:]
      case "remove" if len(data) > 2 * length:
        del data[at : at + length]
      case "repeat":
        data[at:at] = data[at : at + length]
      case "quote":
        data[at : at + 1] = rng.choice((b'"', b"[", b"9", b"-", b"\\u", b"NaN", b"\n", b"\xff"))
  return bytes(data)


def read_all(name, path, **options):
  folder = path if SUFFIXES[name] == "index" else path.parent
  settings = {"num_frames": 1, "resolution": (8, 8), "max_bad_share": 1.0} | options
  source = open_data(folder, SUFFIXES[name], **settings)
  return [source[i] for i in range(len(source))], source


def try_damage(folder, name, seed):
  """Reads a file in which bytes were changed; returns whether any sample could be read."""
  path = folder / name
  whole = path.read_bytes()
  path.write_bytes(damaged(whole, random.Random(zlib.crc32(name.encode()) + seed)))
  try:
    items, source = read_all(name, path)
    # Names and causes go into files and logs.
    json.dumps(source.skipped, ensure_ascii=False).encode()
    "".join(item["caption"] for item in items).encode()
  except ValueError as error:
    assert str(error) and not isinstance(error, UnicodeError)
    return False
  finally:
    path.write_bytes(whole)
  return True


@pytest.mark.parametrize("name", SUFFIXES)
def test_damage_is_never_more_than_an_error_of_the_user(tmp_path, name):
  path = write(tmp_path, name)
  items, source = read_all(name, path)
  assert [item["caption"] for item in items] == [f"Nr. {i} é" for i in range(NUM_SAMPLES)]
  assert not source.skipped
  outcomes = [try_damage(tmp_path, name, seed) for seed in range(NUM_TRIES)]
  assert 0 < sum(outcomes) < NUM_TRIES  # Both kinds of outcome were met.
