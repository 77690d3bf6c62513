"""Prompts as features that a text encoder, such as T5, has computed ahead of time.

A safetensors file has a tensor `[n, c]` for each prompt, named by the prompt itself; n is the
prompt's own number of tokens. A folder may have many such files. `python -m videoar_jax.convert
text_features` makes them with a pretrained encoder; for one that this package does not have:

  from videoar_jax.interop import tensors
  tensors.write("features.safetensors", {prompt: encode(prompt) for prompt in {"", *prompts}})
"""

import difflib
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float32

from videoar_jax.interop import tensors
from videoar_jax.interop.atomic import replacing

SUFFIX = ".safetensors"
_FILE_BYTES = 2**30  # About as many are in a file of a folder, and in memory, at once.


class TextFeatures:
  """Looks up the features of prompts.

  Attributes:
    length: rows of every encoded prompt, P; shorter prompts are padded with rows of zeros.
    text_dim: width of a feature, c.

  Args:
    path: a file, or a folder of files.
    length: largest number of rows of a prompt.
  Raises:
    ValueError: there is no file, a file cannot be read, two files have the same prompt, a tensor's
      shape is not `[n, c]`, or the empty prompt is missing, which guidance needs.
  """

  vocabulary_size = 0

  def __init__(self, path: str, length: int):
    if length < 1:
      raise ValueError(f"text.length is {length}; it must be at least 1.")
    given = pathlib.Path(path)
    files = sorted(given.glob(f"*{SUFFIX}")) if given.is_dir() else [given]
    if not files:
      raise ValueError(f"text.tokenizer={path!r}: the folder has no {SUFFIX} files")
    self.path, self.length, self.text_dim = path, length, 0
    self._files: dict[str, str] = {}
    for file in files:
      self._read_header(str(file))
    if "" not in self._files:
      raise ValueError(
        f"text.tokenizer={path!r} has {len(self._files)} prompts, but not the empty one, which "
        'guidance uses for "no condition"; add the features of "" under the name ""'
      )

  def _read_header(self, file: str) -> None:
    reader = _reader(file)
    for prompt in reader.keys():  # noqa: SIM118  # The reader is not a dict.
      if prompt in self._files:
        raise ValueError(f"{file} and {self._files[prompt]} both have the prompt {prompt[:60]!r}")
      shape = reader.get_slice(prompt).get_shape()
      if shape and not self.text_dim:
        self.text_dim = shape[-1]
      if len(shape) != 2 or shape[1] != self.text_dim or 0 in shape:
        raise ValueError(
          f"{file}: features of {prompt[:60]!r} have shape {shape}; they must be [n, width], with "
          f"the same width in all files (here {self.text_dim}) and at least one row"
        )
      if shape[0] > self.length:
        raise ValueError(
          f"{file}: features of {prompt[:60]!r} have {shape[0]} rows; set text.length, now "
          f"{self.length}, to at least {shape[0]}"
        )
      self._files[prompt] = file

  def encode(self, text: str) -> Float32[np.ndarray, "P c"]:
    """Returns the features of a prompt.

    Raises:
      ValueError: no file has the prompt.
    """
    if text not in self._files:
      near = difflib.get_close_matches(text, list(self._files)[:10_000], n=1)
      hint = f"; did you mean {near[0][:60]!r}?" if near and near[0] else ""
      if len(self._files) == 1:  # As in the copy that a workdir keeps.
        hint = (
          ", but only those of the empty prompt; name a file of the prompts, or the folder of the "
          "text encoder: --text_features"
        )
      raise ValueError(f"text.tokenizer={self.path!r} has no features of {text[:60]!r}{hint}")
    found = np.asarray(_reader(self._files[text]).get_tensor(text), np.float32)
    return np.pad(found, ((0, self.length - len(found)), (0, 0)))

  def null(self) -> Float32[np.ndarray, "P c"]:
    """Returns the features of "", which mean "no condition" in classifier-free guidance."""
    return self.encode("")


def write_features(path: str | os.PathLike, encoder, prompts: Iterable[str]) -> int:
  """Writes features of prompts to a file, or to a folder of files of about 1 GB each.

  Args:
    path: a file, if it ends in `.safetensors`; else a folder, which must not exist.
    encoder: with `features`, from a prompt to `[n, c]`.
    prompts: the prompts, each once, "" among them.
  Returns:
    The largest number of rows, for `text.length`.
  Raises:
    OSError: a file cannot be written.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == SUFFIX:
    return _write_file(path, {prompt: _rows(encoder, prompt) for prompt in prompts})
  with replacing(path) as partial:
    partial.mkdir()
    parts = enumerate(_parts(encoder, prompts))
    return max(_write_file(partial / f"{i:05}{SUFFIX}", arrays) for i, arrays in parts)


def _parts(encoder, prompts: Iterable[str]) -> Iterator[dict[str, np.ndarray]]:
  """Yields features by prompt, as many at once as a file has."""
  arrays, num_bytes = {}, 0
  for prompt in prompts:
    if num_bytes >= _FILE_BYTES:
      yield arrays
      arrays, num_bytes = {}, 0
    arrays[prompt] = _rows(encoder, prompt)
    num_bytes += arrays[prompt].nbytes
  yield arrays


def _write_file(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> int:
  """Writes a file; returns its largest number of rows."""
  tensors.write(path, arrays)
  return max(map(len, arrays.values()))


def _rows(encoder, prompt: str) -> np.ndarray:
  """Returns the features of a prompt; a row of padding for one without tokens."""
  features = encoder.features(prompt)
  return features if len(features) else np.zeros((1, encoder.text_dim), features.dtype)


@functools.cache
def _reader(file: str):
  """Opens a file once per process; tensors stay on disk until they are read."""
  try:
    return tensors.open_file(file)
  except ValueError as error:
    raise ValueError(f"text.tokenizer: {error}") from error
