"""Features of I3D of many clips: kept on disk by what they are of, and shared out over processes.

A key describes the data and the protocol completely. Under its hash, features are kept in blocks of
`BLOCK` clips in `$VIDEOAR_JAX_DATA/features`, so that a computation that was stopped resumes, and
so that several processes, or several commands, each compute a part.
"""

import contextlib
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float
from tqdm import tqdm

from videoar_jax.data.sources import remote
from videoar_jax.interop.atomic import replacing

BLOCK = 64  # Clips.

Embed = Callable[[Sequence], Float[np.ndarray, "b d"]]


def features_of(
  items: Sequence, embed: Embed, width: int, key: Mapping[str, Any], what: str
) -> Float[np.ndarray, "n d"]:
  """Returns the features of items, in order; all processes must call this.

  Args:
    items: descriptions of the clips, such as files and frames.
    embed: returns the features of some of them.
    width: number of features.
    key: describes items, features and network, as JSON; equal keys mean equal features.
    what: names the progress bar.
  Raises:
    ValueError, OSError: a clip cannot be read.
  """
  folder = folder_of(key)
  starts = range(0, len(items), BLOCK)
  own = starts[jax.process_index() :: jax.process_count()]
  blocks = {}
  # The time that is left comes from this process's own share.
  total = sum(len(items[start : start + BLOCK]) for start in own)
  with tqdm(total=total, desc=what, unit="clip", disable=None) as bar:
    for start in own:
      part = items[start : start + BLOCK]
      path = folder / f"{start:06}.npz"
      found = _read(path, (len(part), width))
      if found is None:
        found = np.asarray(embed(part), np.float32)
        _write(path, found)
      blocks[start] = found
      bar.update(len(part))
  return gather(blocks, len(items), width)


def gather(
  blocks: Mapping[int, Float[np.ndarray, "_b d"]], num: int, width: int
) -> Float[np.ndarray, "n d"]:
  """Returns the rows of all processes in order; all processes must call this.

  Args:
    blocks: this process's rows, by the number of the first one.
    num: rows of all processes.
    width: of a row.
  """
  rows = np.zeros((num, width), np.float32)
  is_own = np.zeros(num, bool)
  for start, block in blocks.items():
    rows[start : start + len(block)] = block
    is_own[start : start + len(block)] = True
  if jax.process_count() == 1:
    return rows
  parts, owned = (multihost_utils.process_allgather(x) for x in (rows, is_own))
  # Each row comes from one process.
  return np.take_along_axis(parts, owned.argmax(0)[None, :, None], axis=0)[0]


def folder_of(key: Mapping[str, Any]) -> pathlib.Path:
  """Returns the folder of a key's features."""
  text = json.dumps(key, sort_keys=True)
  return remote.cache_folder() / "features" / hashlib.sha256(text.encode()).hexdigest()[:32]


def fingerprint(params: Mapping[str, Array | np.ndarray]) -> str:
  """Returns a hash of a network's weights."""
  digest = hashlib.sha256()
  for name in sorted(params):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(params[name]).tobytes())
  return digest.hexdigest()[:32]


def _read(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray | None:
  """Returns a block; None if it is missing or damaged."""
  try:
    with np.load(path, allow_pickle=False) as file:
      found = file["features"]
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None
  return found if found.shape == shape and found.dtype == np.float32 else None


def _write(path: pathlib.Path, features: np.ndarray) -> None:
  # Where nothing can be written, the next start computes them again.
  with contextlib.suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as file:
      np.savez(file, features=features)
