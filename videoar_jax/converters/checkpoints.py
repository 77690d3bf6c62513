"""Reads public checkpoints: safetensors files, whole or in shards, and PyTorch's own files."""

import json
import pathlib
import pickle
import zipfile
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from videoar_jax.experiment.command_line import one_line
from videoar_jax.interop import hub, tensor_files
from videoar_jax.interop.tensor_files import LazyTensors, TensorFiles
from videoar_jax.interop.tensors import refuse_types

PTH_SUFFIXES = (".pth", ".pt", ".bin")


def name_of(checkpoint: pathlib.Path) -> str:
  """Returns the name of a checkpoint, for display; with its commit, if it is of the hub."""
  return hub.origin(checkpoint) or checkpoint.name


def read_config(path: pathlib.Path) -> dict:
  """Reads a checkpoint's config.json.

  Raises:
    ValueError: it is missing, or no JSON object.
  """
  if not path.is_file():
    raise ValueError(f"{path} is missing; the network's sizes are in it: fetch it, too")
  try:
    values = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
  if not isinstance(values, dict):
    raise ValueError(f"{path} holds no settings by name; fetch it again")
  return values


def diffusers_tensors(checkpoint: pathlib.Path) -> Mapping[str, np.ndarray]:
  """Opens the tensors of a folder of Diffusers, or of a file.

  Raises:
    ValueError, OSError: there are none, or they are damaged.
  """
  if not checkpoint.is_dir():
    return read_tensors(checkpoint)[0]
  # A folder may hold other precisions of the same tensors, too.
  main = checkpoint / "diffusion_pytorch_model.safetensors"
  return TensorFiles(main if main.is_file() else checkpoint)


def read_tensors(
  path: pathlib.Path, *, parts: Sequence[str] = ()
) -> tuple[Mapping[str, np.ndarray], list[str]]:
  """Opens the tensors of a checkpoint, which are read when they are looked up.

  Args:
    path: a .safetensors or a .pth file; an index of safetensors files; or a folder with safetensors
      files or with .pth, .pt or .bin files.
    parts: entries of a .pth file, such as "trainer.ema"; the first one that it has is read, or all
      of it if it has none.
  Returns:
    (tensors by key, without a prefix that all keys share, such as `module.`; names of the other
    entries).
  Raises:
    ValueError, OSError: a file is missing, damaged, of another kind, or has not only tensors.
  """
  if path.is_dir():
    files = sorted(file for file in path.iterdir() if file.suffix in PTH_SUFFIXES)
    if not files or any(path.glob("*.safetensors*")):
      return tensor_files.without_prefix(TensorFiles(path)), []
    return _shards(path, files), []
  if not path.is_file():
    raise ValueError(f"{path} is not a file; set --checkpoint to the path of one")
  if path.suffix == ".safetensors" or path.name.endswith(tensor_files.INDEX_SUFFIX):
    return tensor_files.without_prefix(TensorFiles(path)), []
  if path.suffix in PTH_SUFFIXES:
    inner, unused = _inner(_load_pth(path), parts)
    return tensor_files.without_prefix(_to_arrays(path, inner)), unused
  raise ValueError(f"{path} must be a .safetensors or a .pth file; rename it if it is one")


def _inner(loaded, parts: Sequence[str]):
  """Returns the first of some entries that a file has, and the names of those beside it."""
  for part in parts:
    inner, unused, place = loaded, [], ""
    for name in part.split("."):
      if not isinstance(inner, dict) or not isinstance(inner.get(name), dict):
        break
      unused += [f"{place}{key}" for key in inner if key != name]
      inner, place = inner[name], f"{place}{name}."
    else:
      return inner, unused
  return loaded, []


def _shards(folder: pathlib.Path, files: list[pathlib.Path]) -> LazyTensors:
  """Opens the tensors of a folder with PyTorch's files.

  Raises:
    ValueError: a file is damaged, one that an index names is missing, or a tensor is in two.
  """
  for index in sorted(folder.glob("*.index.json")):
    names = set(read_config(index).get("weight_map", {}).values())
    absent = sorted(names - {file.name for file in files})
    if absent:
      raise ValueError(f"{index} names files that are missing: {', '.join(absent[:5])}")
    files = [file for file in files if file.name in names]
  arrays: dict[str, Mapping[str, np.ndarray]] = {}
  for file in files:
    found = _to_arrays(file, _load_pth(file))
    twice = arrays.keys() & found.keys()
    if twice:
      raise ValueError(f"{file}: the tensor {min(twice)!r} is in another file, too")
    arrays |= dict.fromkeys(found, found)
  shapes = {name: found.shapes[name] for name, found in arrays.items()}
  return tensor_files.without_prefix(LazyTensors(shapes, lambda name: arrays[name][name]))


def _load_pth(path: pathlib.Path):
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f"{path} needs PyTorch, which is not installed: run `python -m pip install 'torch>=2.6'` "
      "(the extra `convert`), or use a .safetensors file"
    ) from error
  try:
    # Files of old versions cannot be mapped into memory.
    is_mapped = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
  except pickle.UnpicklingError as error:
    if "global" not in str(error).lower().partition("weights only load failed")[2]:
      raise ValueError(f"{path} is cut off or damaged; fetch it again") from error
    raise ValueError(
      f"{path} contains code besides its tensors, which was not run. If you trust its source, save "
      "only its tensors, and convert that file"
    ) from error
  except (RuntimeError, EOFError, ValueError, KeyError, AssertionError) as error:
    reason = one_line(error)[:120]
    raise ValueError(f"{path} is cut off or damaged ({reason}); fetch it again") from error


def _to_arrays(path: pathlib.Path, tensors) -> LazyTensors:
  if not isinstance(tensors, dict):
    raise ValueError(f"{path} holds a {type(tensors).__name__}, not tensors by key")
  other = [str(key) for key, value in tensors.items() if not hasattr(value, "is_floating_point")]
  if other:
    inner = [str(key) for key, value in tensors.items() if isinstance(value, dict)]
    fix = f"; save the tensors in one of them alone: {', '.join(inner)}" if inner else ""
    raise ValueError(f"{path} holds entries that are not tensors: {', '.join(other)}{fix}")
  small = {
    str(key): str(value.dtype)
    for key, value in tensors.items()
    if value.is_floating_point() and value.element_size() == 1
  }
  refuse_types(path, small, len(tensors))
  found = {str(key): value for key, value in tensors.items()}
  shapes = {key: tuple(value.shape) for key, value in found.items()}
  return LazyTensors(shapes, lambda key: _to_array(found[key]))


def _to_array(tensor) -> np.ndarray:
  tensor = tensor.detach()  # A parameter is no plain tensor.
  if str(tensor.dtype) == "torch.bfloat16":  # Which PyTorch cannot give to numpy.
    import torch

    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()
