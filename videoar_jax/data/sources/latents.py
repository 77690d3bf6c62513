"""Latents that a trained tokenizer has encoded ahead of training: shards with random access.

  FOLDER/index.json                               the encoder, and the clips that it encoded
  FOLDER/latents-00000-of-00004.array_record      records as in `records.py`: id, caption, class_id,
                                                  flow if known; then the latent, in C order

Record i of the concatenated shards is clip i of the encoded source. The index is written first;
then shards appear one by one, each complete. Of continuous tokenizers, a record has what latents
are drawn from: means, and logarithms of variances.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
from jaxtyping import Float

from videoar_jax.data.sources import records
from videoar_jax.data.sources.captions import CutCaptions
from videoar_jax.data.sources.motion import UNKNOWN
from videoar_jax.interop.strict_json import to_json, write_json

INDEX = "index.json"
DTYPE = "bfloat16"  # Of latents, and of everything in earlier versions.
DTYPES = {name: np.dtype(name) for name in ("float16", "float32")} | {
  DTYPE: np.dtype(ml_dtypes.bfloat16)
}


@dataclasses.dataclass(frozen=True)
class Index:
  """What the shards of a folder hold.

  Attributes:
    encoder: settings of the network that encoded the clips.
    fingerprint: fingerprint of its weights.
    data: settings of the source.
    clips: hash of the source's files, captions and motion, from `describe_clips`.
    latent_shape: shape of a clip's latent, `[t, h, w, d]`.
    epoch_size: clips in one epoch of the source.
    num_clips: clips in all shards, one or more epochs.
    clips_per_shard: clips in every shard but the last.
    files: hash of the source's files and their sizes; "" for none, and in earlier versions.
    dtype: of the latents, in `DTYPES`.
    tokenizer_dtype: in which the network encoded the clips.
  """

  encoder: dict
  fingerprint: str
  data: dict
  clips: str
  latent_shape: tuple[int, ...]
  epoch_size: int
  num_clips: int
  clips_per_shard: int
  files: str = ""
  dtype: str = DTYPE
  tokenizer_dtype: str = "float32"

  @property
  def num_shards(self) -> int:
    """Number of files."""
    return -(-self.num_clips // self.clips_per_shard)

  def path(self, folder: Path, shard: int) -> Path:
    """Returns the file of a shard."""
    return folder / f"latents-{shard:05d}-of-{self.num_shards:05d}{records.SUFFIX}"

  def clips_of(self, shard: int) -> range:
    """Returns the indices of a shard's clips."""
    start = shard * self.clips_per_shard
    return range(start, min(start + self.clips_per_shard, self.num_clips))

  def missing(self, folder: Path) -> list[int]:
    """Returns the shards that are not written yet."""
    return [shard for shard in range(self.num_shards) if not self.path(folder, shard).is_file()]


def describe_clips(source) -> str:
  """Returns a hash of a source's files, captions and motion, which shows whether they changed."""
  facts = [getattr(source, "files", None), source.known_captions()]
  if flows := getattr(source, "known_flows", dict)():
    facts.append(flows)  # Without any, the hash is that of earlier versions.
  return hashlib.sha256(to_json(facts).encode()).hexdigest()[:16]


def read_index(folder: Path) -> Index | None:
  """Reads the index of a folder; returns None if there is none.

  Raises:
    ValueError: the index is damaged.
  """
  path = folder / INDEX
  if not path.is_file():
    return None
  try:
    values = json.loads(path.read_text())
    index = Index(**values | {"latent_shape": tuple(values["latent_shape"])})
    DTYPES[index.dtype]  # KeyError if it is unknown.
    return index
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f"{path} is damaged ({error!r}); remove {folder} to encode again") from error


def write_index(folder: Path, index: Index) -> None:
  """Writes the index of a folder, atomically."""
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / INDEX, dataclasses.asdict(index))


def write_clips(path: Path, clips: Iterable[tuple[dict, Float[np.ndarray, "t h w d"]]]) -> None:
  """Writes a shard of items and their latents, of the index's type, atomically."""

  def pack(item: dict, latents: np.ndarray) -> bytes:
    header = {name: item[name] for name in ("id", "caption", "class_id")}
    if not math.isnan(item.get("flow", UNKNOWN)):
      header["flow"] = float(item["flow"])
    return records.pack(header, np.ascontiguousarray(latents).tobytes())

  records.write_shard(path, (pack(item, latents) for item, latents in clips))


class LatentsSource:
  """Random access to encoded clips, in place of the source that they were encoded from.

  Item i is clip i modulo the number of clips. As long as enough epochs are encoded, an iterator
  reads the same clips in the same order as from the original source.

  Args:
    folder: the folder of the shards.
    index: the index of the folder.
  Raises:
    ValueError: shards are missing or damaged; the message names them.
  """

  def __init__(self, folder: Path, index: Index):
    self.index, self.cut_captions = index, CutCaptions(str(folder))
    missing = index.missing(folder)
    if missing:
      raise ValueError(
        f"{folder} has {index.num_shards - len(missing)} of {index.num_shards} shards; finish the "
        "run that encodes them"
      )
    paths = [index.path(folder, shard) for shard in range(index.num_shards)]
    self._records = records.open_shards(paths)
    if len(self._records) != index.num_clips:
      raise ValueError(
        f"{folder} has {len(self._records)} clips, but its {INDEX} says {index.num_clips}; remove "
        "it to encode again"
      )

  def __len__(self) -> int:
    return self.index.epoch_size

  def __getitem__(self, index: int) -> dict:
    """Returns item `index`.

    Returns:
      latents: [t, h, w, d], of the index's type; caption; class_id; flow; attributes: None; id.
    """
    header, payload = records.unpack(self._records[index % self.index.num_clips])
    latents = np.frombuffer(payload, DTYPES[self.index.dtype]).reshape(self.index.latent_shape)
    flow = np.float32(header.pop("flow", UNKNOWN))
    return {"latents": latents, "flow": flow, "attributes": None} | header
