"""Features of prompts, kept in memory and on disk."""

import collections
import logging
import pathlib
import threading

import numpy as np
from jaxtyping import Float

from videoar_jax.interop import tensors
from videoar_jax.interop.caches import cache_root

log = logging.getLogger(__name__)

_MAX_BYTES = 2**28  # In memory.


class FeatureCache:
  """Arrays by name: the latest in memory, all of them on disk, a file each.

  Several threads and processes may use it at once. Without a folder that can be written to, only
  memory is used.

  Args:
    fingerprint: names what computes the features.
  """

  def __init__(self, fingerprint: str):
    self._memory: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
    self._num_bytes, self._lock, self._is_told = 0, threading.Lock(), False
    try:
      self._folder: pathlib.Path | None = cache_root() / "text" / fingerprint
    except RuntimeError as error:
      self._folder = None
      log.warning("features of prompts are not kept on disk: %s", error)

  def get(self, name: str) -> Float[np.ndarray, "n c"] | None:
    """Returns an array; None if it is not there."""
    with self._lock:
      found = self._memory.get(name)
      if found is not None:
        self._memory.move_to_end(name)
        return found
    file = self._file(name)
    if file is None or not file.is_file():
      return None
    try:
      found = tensors.read(file)["features"]
    except (ValueError, KeyError) as error:
      log.warning("%s is computed again: %s", file, error)
      return None
    self._remember(name, found)
    return found

  def put(self, name: str, features: Float[np.ndarray, "n c"]) -> None:
    """Keeps an array."""
    self._remember(name, features)
    file = self._file(name)
    if file is None:
      return
    try:
      file.parent.mkdir(parents=True, exist_ok=True)
      tensors.write(file, {"features": features})
    except OSError as error:
      if not self._is_told:
        self._is_told = True
        log.warning("features of prompts are not kept on disk: %s", error)

  def _file(self, name: str) -> pathlib.Path | None:
    return None if self._folder is None else self._folder / name[:2] / f"{name}.safetensors"

  def _remember(self, name: str, features: np.ndarray) -> None:
    with self._lock:
      if name not in self._memory:
        self._memory[name] = features
        self._num_bytes += features.nbytes
      while self._num_bytes > _MAX_BYTES and len(self._memory) > 1:
        _, oldest = self._memory.popitem(last=False)
        self._num_bytes -= oldest.nbytes
