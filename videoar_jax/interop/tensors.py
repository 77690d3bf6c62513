"""Named arrays in safetensors files: one way to write them, and one to read any such file."""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import ml_dtypes  # noqa: F401  # Registers bfloat16 with numpy.
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from videoar_jax.interop.atomic import replacing

# Types in the headers of files that numpy has, too.
_READABLE = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "BOOL", "C64"}
_READABLE |= {"U64", "U32", "U16", "U8"}
# Those that `write_each` writes.
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
T = TypeVar("T")


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Returns arrays of any layout and byte order as a safetensors file.

  The library takes the memory of an array as it lies, without an error: of a transposed array, it
  saves other values (0.8.0).
  """
  return save({name: _in_order(value) for name, value in arrays.items()})


def _in_order(value) -> np.ndarray:
  # Unlike `np.ascontiguousarray`, this keeps arrays without axes.
  array = np.asarray(value, order="C")
  return array.astype(array.dtype.newbyteorder("="), copy=False)


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays to a file, atomically.

  Raises:
    OSError: the file cannot be written.
  """
  with replacing(path) as partial:
    # Not with the library's own writer, whose files only their owner can read.
    partial.write_bytes(to_bytes(arrays))


def write_each(
  path: str | os.PathLike,
  kinds: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  make: Callable[[str], np.ndarray],
) -> str:
  """Writes arrays that are made one at a time, atomically; memory holds only one of them.

  The library's writer wants all of them at once.

  Args:
    path: the file.
    kinds: shape and type of each array, by name.
    make: returns an array of that shape by its name; it is converted to that type.
  Returns:
    The file's SHA-256 in hexadecimal.
  Raises:
    ValueError: an array has another shape.
    OSError: the file cannot be written.
  """
  header, end = {}, 0
  for name, (shape, dtype) in kinds.items():
    if np.dtype(dtype).name not in _NAMES:
      raise ValueError(f"{name} is of type {np.dtype(dtype)}; files here are {', '.join(_NAMES)}")
    start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
    header[name] = {
      "dtype": _NAMES[np.dtype(dtype).name],
      "shape": list(shape),
      "data_offsets": [start, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # Readers map the arrays that follow, which must be aligned.
  digest = hashlib.sha256()
  with replacing(path) as partial, partial.open("wb") as file:

    def put(data) -> None:
      digest.update(data)
      file.write(data)

    put(len(text).to_bytes(8, "little"))
    put(text)
    for name, (shape, dtype) in kinds.items():
      array = np.asarray(make(name), dtype, order="C")
      if array.shape != tuple(shape):
        raise ValueError(f"{name} has shape {array.shape}, not {tuple(shape)}")
      put(_in_order(array).reshape(-1).view(np.uint8).data)
    file.flush()
    os.fsync(file.fileno())
  return digest.hexdigest()


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the arrays of a file.

  Raises:
    ValueError: it is missing or damaged, or numpy does not have a tensor's type.
  """
  reader = open_file(path)
  return _guarded(path, lambda: {name: reader.get_tensor(name) for name in list(reader.keys())})


def shapes(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a file's arrays; reads its header alone.

  Raises:
    ValueError: as `read`.
  """
  reader = open_file(path)
  return _guarded(
    path, lambda: {name: tuple(reader.get_slice(name).get_shape()) for name in list(reader.keys())}
  )


def open_file(path: str | os.PathLike):
  """Opens a file, whose arrays stay on disk until they are read; returns the library's reader.

  Raises:
    ValueError: it is missing or damaged, or numpy does not have a tensor's type.
  """
  reader = _guarded(path, lambda: safe_open(path, "numpy"))
  types = _guarded(path, lambda: _types(path))
  others = {name: kind for name, kind in types.items() if kind not in _READABLE}
  refuse_types(path, others, len(types))
  return reader


def refuse_types(path: str | os.PathLike, types: Mapping[str, str], num_tensors: int) -> None:
  """Raises ValueError if a file has tensors of types that numpy lacks, such as float8.

  Args:
    path: the file.
    types: of such tensors, by name.
    num_tensors: tensors of the file.
  """
  if types:
    name, kind = next(iter(types.items()))
    raise ValueError(
      f"{path}: the tensor {name[:60]!r} is of type {kind}, as {len(types)} of {num_tensors} are, "
      "which cannot be loaded; save it as bfloat16 or float32, multiplied by its scale if the file "
      "has one"
    )


def _types(path: str | os.PathLike) -> dict[str, str]:
  """Returns the types of a file's tensors; the library's reader does not tell them."""
  with pathlib.Path(path).open("rb") as file:
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
  return {name: facts["dtype"] for name, facts in header.items() if name != "__metadata__"}


def _guarded(path: str | os.PathLike, read: Callable[[], T]) -> T:
  """Returns what a function reads from a file.

  Raises:
    ValueError: it cannot.
  """
  try:
    return read()
  except SafetensorError as error:
    raise ValueError(f"{path} is cut off or damaged ({error})") from error
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
  except MemoryError:
    raise
  except Exception as error:  # The library raises many types for damaged files.
    what = f"{type(error).__name__}: {error}"
    raise ValueError(f"{path} is cut off or damaged ({what})") from error


def without_prefix(arrays: Mapping[str, T]) -> dict[str, T]:
  """Returns arrays without what all their names begin with, such as `module.` or `_orig_mod.`."""
  if len(arrays) < 2:
    return dict(arrays)
  common = os.path.commonprefix(list(arrays))  # noqa: RUF071  # Names are no paths.
  prefix = "".join(common.rpartition(".")[:2])
  return {name.removeprefix(prefix): value for name, value in arrays.items()}
