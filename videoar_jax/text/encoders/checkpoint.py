"""A folder of safetensors files, in one piece or in shards, read one tensor at a time."""

import json
import pathlib

import numpy as np

from videoar_jax.interop import tensors

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class CheckpointFiles:
  """Tensors by key; they stay on disk until they are read.

  Args:
    folder: has `model.safetensors`, or `model.safetensors.index.json` and the shards that it names,
      or a single safetensors file of another name.
  Attributes:
    files: the files, in order.
  Raises:
    ValueError: a file is missing or damaged, or the index does not fit the shards.
  """

  def __init__(self, folder: str | pathlib.Path):
    folder = pathlib.Path(folder)
    index = folder / _INDEX
    names: dict[str, str] = {}
    if index.is_file() and not (folder / _WHOLE).is_file():
      names = _read_index(index)
      self.files = [folder / name for name in sorted(set(names.values()))]
    else:
      self.files = [_single(folder)]
    self._readers, lost = {}, set(names)
    for file in self.files:
      reader = tensors.open_file(file)
      for key in reader.keys():  # noqa: SIM118  # The reader is not a dict.
        if key in self._readers:
          raise ValueError(f"{folder}: two shards have the tensor {key}; fetch the folder again")
        self._readers[key] = reader
        if names.get(key) == file.name:
          lost.remove(key)
    if lost:
      pairs = ", ".join(f"{key} in {names[key]}" for key in sorted(lost))
      raise ValueError(f"{index} names tensors that are not in their shards: {pairs}")

  def keys(self) -> list[str]:
    """Returns the keys of all tensors."""
    return list(self._readers)

  def shape(self, key: str) -> tuple[int, ...]:
    """Returns the shape of a tensor; reads no more than a header."""
    return tuple(self._readers[key].get_slice(key).get_shape())

  def get(self, key: str) -> np.ndarray:
    """Reads a tensor."""
    return self._readers[key].get_tensor(key)


def _single(folder: pathlib.Path) -> pathlib.Path:
  """Returns the only safetensors file of a folder, or the one of the usual name."""
  if (folder / _WHOLE).is_file():
    return folder / _WHOLE
  files = sorted(folder.glob("*.safetensors"))
  if len(files) != 1:
    what = f"{len(files)} safetensors files, but no {_INDEX}" if files else "no safetensors files"
    raise ValueError(f"{folder} has {what}; it needs {_WHOLE}, or shards and their {_INDEX}")
  return files[0]


def _read_index(path: pathlib.Path) -> dict[str, str]:
  """Returns the shard of each tensor.

  Raises:
    ValueError: the index is damaged, or names shards that are not there.
  """
  try:
    names = json.loads(path.read_text("utf-8"))["weight_map"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error
  if not isinstance(names, dict) or not all(isinstance(x, str) for x in names.values()):
    raise ValueError(f"{path} is damaged: its weight_map must name the file of each tensor")
  shards = sorted(set(names.values()))
  # Files elsewhere are none of the checkpoint's.
  absent = [x for x in shards if pathlib.Path(x).name != x or not (path.parent / x).is_file()]
  if absent or not shards:
    said = f"names files that are not in its folder: {', '.join(absent)}" if absent else "is empty"
    raise ValueError(f"{path} {said}; fetch the folder again")
  return names
