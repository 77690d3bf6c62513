"""Public checkpoints as parameters of a network: every tensor is checked, and read when needed."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from videoar_jax.interop.tensor_files import shapes_of

Shapes = Mapping[str, tuple[int, ...]]

# Tensors by which public networks are known.
_KNOWN = {
  "semantic_head2.weight": "InfinityStar's transformer",
  "text_proj.weight": "InfinityStar's transformer",
  "semantic_head.weight": "InfinityStar's transformer",
  "pos_start": "Infinity's transformer",
  "encoder.conv_in.conv.weight": "an image or video tokenizer of Infinity or InfinityStar",
  "image_encoder.patch_embed.proj.weight": "NOVA's transformer",
  "encoder.conv_in.weight": "a continuous autoencoder, as NOVA's vae/",
  "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 encoder",
}


def looks_like(names: Iterable[str]) -> str:
  """Returns what a checkpoint's names look like, for errors."""
  names = sorted(names)
  for known, what in _KNOWN.items():
    if any(name == known or name.endswith(f".{known}") for name in names):
      return f"it looks like {what}"
  return f"its names begin with {', '.join(names[:3])}" if names else "it is empty"


class Source(NamedTuple):
  """Where a parameter comes from.

  Attributes:
    names: of the public tensors: one, or one for each layer, which are stacked.
    transform: from such a tensor to the parameter, or its part of one layer.
    is_stacked: whether the parameter has a leading layer axis.
  """

  names: tuple[str, ...]
  transform: Callable[[np.ndarray], np.ndarray] = np.asarray
  is_stacked: bool = False


def check_floats(name: str, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns a public tensor; raises ValueError if it is not of finite floating-point numbers."""
  tensor = np.asarray(tensors[name])
  if tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
    raise ValueError(f"{name} is of type {tensor.dtype}, not of floating-point numbers")
  if not np.isfinite(tensor).all():
    raise ValueError(f"{name} holds values that are not finite")
  return tensor


class PublicTensors:
  """The parameters of a network, read from public tensors.

  Args:
    tensors: by the public name; a lazy mapping is read one tensor at a time.
    sources: of each parameter, by its name in files.
    shapes: of each parameter.
    unused: public tensors that no network reads.
  """

  def __init__(
    self,
    tensors: Mapping[str, np.ndarray],
    sources: Mapping[str, Source],
    shapes: Shapes,
    unused: frozenset[str] = frozenset(),
  ):
    self._tensors, self._sources, self.shapes, self._unused = tensors, sources, shapes, unused

  def check(self, what: str) -> None:
    """Checks all names and shapes; reads nothing of a lazy mapping.

    Args:
      what: the network, for errors.
    Raises:
      ValueError: lists every missing, unexpected or misshapen tensor.
    """
    shapes = shapes_of(self._tensors)
    known = {name for source in self._sources.values() for name in source.names}
    wrong = [f"missing: {name}" for name in sorted(known - shapes.keys())]
    wrong += [f"unexpected: {name}" for name in shapes if name not in known | self._unused]
    for name, source in self._sources.items():
      wanted = self._part(name)
      for public in source.names:
        if public in shapes and _shape_after(source.transform, shapes[public]) != wanted:
          wrong.append(f"shape: {public} is {shapes[public]}, which does not make {wanted}")
    if wrong:
      raise ValueError(f"these are not the tensors of {what}: {'; '.join(wrong)}")

  def _part(self, name: str) -> tuple[int, ...]:
    """Returns the shape of what one public tensor becomes."""
    shape = tuple(self.shapes[name])
    return shape[1:] if self._sources[name].is_stacked else shape

  def read(self, name: str) -> np.ndarray:
    """Returns a parameter, in the type of its public tensors.

    Raises:
      ValueError: a public tensor holds what no weights are.
    """
    source = self._sources[name]
    if not source.is_stacked:
      return source.transform(check_floats(source.names[0], self._tensors))
    whole = None
    for i, public in enumerate(source.names):
      part = source.transform(check_floats(public, self._tensors))
      whole = np.empty(self.shapes[name], part.dtype) if whole is None else whole
      whole[i] = part
    return whole

  def source_dtype(self, name: str) -> np.dtype:
    """Returns the type of a parameter's public tensors."""
    return np.asarray(self._tensors[self._sources[name].names[0]]).dtype

  def read_all(self) -> dict[str, np.ndarray]:
    """Returns all parameters, by their names in files."""
    return {name: self.read(name) for name in self.shapes}


def _shape_after(
  transform: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]
) -> tuple[int, ...] | None:
  """Returns the shape that a transform makes of another; None if it does not take that."""
  try:
    return transform(np.broadcast_to(np.uint8(0), shape)).shape
  except (ValueError, IndexError):
    return None
