"""Checkpoints of one or several safetensors files, whose tensors are read one at a time."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from videoar_jax.interop import tensors

INDEX_SUFFIX = ".safetensors.index.json"


class LazyTensors(Mapping[str, np.ndarray]):
  """Tensors that are read each time they are looked up.

  Args:
    shapes: of the tensors, by name.
    read: returns a tensor by its name.
  """

  def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]):
    self.shapes, self._read = dict(shapes), read

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self.shapes:
      raise KeyError(name)
    return self._read(name)

  def __contains__(self, name: object) -> bool:
    return name in self.shapes  # Without reading it, as `Mapping` would.

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)


class TensorFiles(LazyTensors):
  """The tensors of a checkpoint by name; a tensor is read each time it is looked up.

  Args:
    path: a .safetensors file; an index (`*.safetensors.index.json`), which names the files of a
      checkpoint in shards; or a folder with one index, or with safetensors files.
  Attributes:
    path: as given.
    files: the safetensors files.
    num_bytes: size of all files.
  Raises:
    ValueError: there are no such files, one is missing or damaged, the index does not fit them, or
      two files hold the same tensor.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path).expanduser()
    index = _index_of(self.path)
    wanted = None if index is None else _read_index(index)
    self.files = _files(self.path, index, wanted)
    self.num_bytes = sum(file.stat().st_size for file in self.files)
    shapes, self._file_of = {}, {}
    for file in self.files:
      for name, shape in tensors.shapes(file).items():
        if name in shapes:
          raise ValueError(f"{file}: the tensor {name!r} is in another file of {self.path}, too")
        self._file_of[name], shapes[name] = file, shape
    if wanted is not None:
      absent = [name for name in wanted if name not in shapes]
      if absent:
        raise ValueError(
          f"{index} names {len(absent)} tensors that its files lack: {_some(absent)}; fetch the "
          "files again"
        )
    super().__init__(shapes, self._get)

  def _get(self, name: str) -> np.ndarray:
    # Opened for each tensor: what an open file has read stays in this process's memory.
    return tensors.open_file(self._file_of[name]).get_tensor(name)

  def reader(self, name: str) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """Returns a function that reads a part of a tensor, as `jax.make_array_from_callback` wants."""
    if not self.shapes[name]:
      return lambda index: self[name]
    return lambda index: tensors.open_file(self._file_of[name]).get_slice(name)[index]


def renamed(tensors: Mapping[str, np.ndarray], names: Mapping[str, str]) -> LazyTensors:
  """Returns tensors by other names, without reading them.

  Args:
    tensors: by their own names.
    names: own name of each new one.
  """
  shapes = shapes_of(tensors)
  return LazyTensors(
    {name: shapes[own] for name, own in names.items()}, lambda name: tensors[names[name]]
  )


def shapes_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of tensors; reads none that a lazy mapping has on disk."""
  if isinstance(arrays, LazyTensors):
    return arrays.shapes
  return {name: tuple(array.shape) for name, array in arrays.items()}


def without_prefix(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
  """Returns tensors without what all their names begin with, such as `module.`; reads none."""
  bare = tensors.without_prefix({name: name for name in arrays})
  return renamed(arrays, bare)


def _index_of(path: pathlib.Path) -> pathlib.Path | None:
  """Returns the index of a checkpoint in shards; None without one."""
  if path.is_file():
    return path if path.name.endswith(INDEX_SUFFIX) else None
  found = sorted(path.glob(f"*{INDEX_SUFFIX}")) if path.is_dir() else []
  if len(found) > 1:
    names = ", ".join(file.name for file in found)
    raise ValueError(f"{path} has several indices, {names}; name one of them")
  return found[0] if found else None


def _read_index(path: pathlib.Path) -> dict[str, str]:
  """Returns the file of each tensor that an index names.

  Raises:
    ValueError: it is no index.
  """
  try:
    names = json.loads(path.read_text())["weight_map"]
    # A path would reach out of the folder.
    if any(pathlib.Path(file).name != file for file in names.values()):
      raise ValueError("its files must be in its own folder")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path} is not an index of safetensors files ({error!r})") from error
  if not names:
    raise ValueError(f"{path} is empty; fetch it again")
  return names


def _files(
  path: pathlib.Path, index: pathlib.Path | None, wanted: dict[str, str] | None
) -> list[pathlib.Path]:
  """Returns the files of a checkpoint.

  Raises:
    ValueError: there are none, or some that the index names are missing.
  """
  if index is not None:
    files = [index.parent / name for name in sorted(set(wanted.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
      raise ValueError(f"{index} names files that are missing: {_some(absent)}; fetch them, too")
    return files
  if path.is_file():
    return [path]
  files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
  if not files:
    kind = "has no .safetensors files" if path.is_dir() else "does not exist"
    raise ValueError(f"{path} {kind}; name a .safetensors file or a folder of them")
  return files


def _some(names: list[str]) -> str:
  return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
