"""Folders of pretrained text encoders, as Hugging Face `transformers` saves them.

config.json                              sizes
model.safetensors                        or shards, with model.safetensors.index.json
tokenizer.json                           here, or in ../tokenizer, as `diffusers` has it
"""

import hashlib
import logging
import math
import os
import pathlib

import numpy as np

from videoar_jax.interop import weights
from videoar_jax.interop.atomic import write_text
from videoar_jax.interop.caches import cache_root
from videoar_jax.interop.tensor_files import TensorFiles
from videoar_jax.text.encoders.config import EncoderConfig, T5Config, Tensor, config_of, read_values
from videoar_jax.text.tokenizer_files import open_tokenizer

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16")
_VERSION = "1"  # To change with the features that the same weights give.


def is_encoder(folder: str | os.PathLike) -> bool:
  """Returns whether a folder is one of a text encoder: its `config.json` has a `model_type`.

  Raises:
    ValueError: `config.json` is damaged.
  """
  return "model_type" in read_values(pathlib.Path(folder).expanduser())


def encoder_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files of a text encoder; its tokenizer may be missing, or in `../tokenizer`."""
  files = [folder / "config.json", *sorted(folder.glob("*.safetensors*"))]
  return files + [file for file in _tokenizer_places(folder) if file.is_file()][:1]


class EncoderFolder:
  """A pretrained text encoder on disk.

  Args:
    path: the folder.
  Attributes:
    path: the folder.
    config: sizes.
  Raises:
    ValueError: a file is missing, damaged, or of another network; only headers are read.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path).expanduser()
    values = read_values(self.path)
    if not values:
      raise ValueError(f"{self.path} has no config.json; name the folder of a text encoder")
    try:
      self.config = config_of(values)
    except ValueError as error:
      raise ValueError(f"{self.path / 'config.json'}: {error}") from None
    self._weights = self._check()[0].files

  def _check(self) -> tuple[TensorFiles, dict[str, str]]:
    """Opens the weights, and checks their names and shapes.

    Returns:
      The weights, and the name there of each tensor, by its usual name.
    Raises:
      ValueError: lists every missing, unexpected or misshapen tensor.
    """
    whole, config = self.path / "model.safetensors", self.config
    # A folder may hold the same weights in shards, too.
    files = TensorFiles(whole if whole.is_file() else self.path)
    found, wanted = set(files.keys()), {}
    names: dict[str, str] = {}
    for tensor in config.tensors().values():
      for key in _keys(tensor, config):
        other = config.other_key(key)
        names[key] = other if other in found and key not in found else key
        wanted[names[key]] = tensor.shape
    unneeded = {key for key in found - wanted.keys() if config.not_needed.fullmatch(key)}
    # Broadcast views with these shapes, which take no memory.
    zero = np.float32(0)
    views = {key: np.broadcast_to(zero, files.shapes[key]) for key in sorted(found - unneeded)}
    weights.check(views, wanted, str(self.path))
    return files, names

  @property
  def num_parameters(self) -> int:
    """Number of the network's parameters."""
    config = self.config
    return sum(math.prod(x.shape) * len(_keys(x, config)) for x in config.tensors().values())

  def load(self, dtype: str, device):
    """Loads the network, one parameter at a time.

    Args:
      dtype: of the parameters, one of `DTYPES`.
      device: of JAX, which gets them.
    Returns:
      The module, from ids `[b, l]` and a mask `[b, l]` to features `[b, l, m]`.
    Raises:
      ValueError: the files changed since they were checked, or hold integers.
    """
    import jax
    from flax import nnx

    from videoar_jax.text.encoders.phi import Phi
    from videoar_jax.text.encoders.t5 import T5Encoder
    from videoar_jax.train.state import Template, flatten, unflatten

    (files, names), config = self._check(), self.config
    network = T5Encoder if isinstance(config, T5Config) else Phi
    template = Template.of(lambda key: network(nnx.Rngs(params=key), config))
    params, tensors = {}, config.tensors()
    for name, leaf in flatten(template.shapes).items():
      array = np.empty(leaf.shape, np.dtype(dtype))
      rows = array if "{}" in tensors[name].key else array[None]
      for i, key in enumerate(_keys(tensors[name], config)):
        value = files[names[key]]
        if value.dtype.kind in "biu":
          raise ValueError(f"{self.path}: {key} has whole numbers; take weights that are floats")
        rows[i] = value.T if name.endswith(".kernel") else value
      params[name] = jax.device_put(array, device)
    return template.module(unflatten(params))

  def open_tokenizer(self):
    """Returns the tokenizer, of Hugging Face `tokenizers`.

    Raises:
      ValueError: it is missing, damaged, or of another encoder, or the package is missing.
    """
    file = _tokenizer_of(self.path)
    tokenizer = open_tokenizer(file)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= self.config.vocabulary_size:
      raise ValueError(
        f"{file} has token {largest}, but the encoder has {self.config.vocabulary_size} "
        "embeddings; take the tokenizer of this encoder"
      )
    return tokenizer

  def fingerprint(self, dtype: str) -> str:
    """Returns a digest of all that features depend on: the files' contents, and the dtype."""
    files = [self.path / "config.json", _tokenizer_of(self.path), *self._weights]
    digests = [_digest_of(file.absolute()) for file in files]
    return hashlib.sha256(" ".join([_VERSION, dtype, *digests]).encode()).hexdigest()[:32]


def _keys(tensor: Tensor, config: EncoderConfig) -> list[str]:
  """Returns the keys of a parameter: one, or one for each layer."""
  if "{}" not in tensor.key:
    return [tensor.key]
  return [tensor.key.format(i) for i in range(config.num_layers)]


def _tokenizer_places(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  return folder / "tokenizer.json", folder.parent / "tokenizer" / "tokenizer.json"


def _tokenizer_of(folder: pathlib.Path) -> pathlib.Path:
  found = next((place for place in _tokenizer_places(folder) if place.is_file()), None)
  if found is None:
    raise ValueError(
      f"{folder} has no tokenizer.json; fetch it, or write it with "
      "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )
  return found


def _digest_of(file: pathlib.Path) -> str:
  """Returns the digest of a file's content; of one that did not change, from the cache.

  Weights take seconds to read.
  """
  status = file.stat()
  version = f"{file} {status.st_size} {status.st_mtime_ns}"
  try:
    note = cache_root() / "text" / "digests" / hashlib.sha256(version.encode()).hexdigest()[:32]
    if note.is_file() and len(known := note.read_text()) == 64:
      return known
  except (OSError, RuntimeError, ValueError):
    note = None
  with file.open("rb") as opened:
    digest = hashlib.file_digest(opened, "sha256").hexdigest()
  if note is not None:
    try:
      note.parent.mkdir(parents=True, exist_ok=True)
      write_text(note, digest)
    except OSError as error:
      log.debug("%s cannot be written (%s)", note, error)
  return digest
