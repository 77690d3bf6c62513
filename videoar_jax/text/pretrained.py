"""Prompts as features that a pretrained text encoder computes: T5, umT5 or Phi-2.

Features are kept on disk, in `~/.cache/videoar_jax/text`, so that the captions of a dataset are
encoded once. The weights are loaded for the first prompt that is not there.
"""

import hashlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Float32

from videoar_jax.text.encoders.files import DTYPES, EncoderFolder
from videoar_jax.text.feature_cache import FeatureCache

log = logging.getLogger(__name__)

# Prompts are padded to powers of two, from this one: one program for each.
_SHORTEST = 16


class PretrainedText:
  """Encodes prompts with a pretrained text encoder, on this process's first device.

  Attributes:
    path: the folder.
    length: rows of every encoded prompt, P; shorter prompts are padded with rows of zeros.
    text_dim: width of a feature, c.
    dtype: of the weights.

  Args:
    path: see `encoders.files.EncoderFolder`.
    length: largest number of tokens of a prompt, with those that the tokenizer adds, such as an end
      token. Longer prompts are cut before these, as in the public models.
    dtype: of the weights and of products with them, "float32" or "bfloat16"; features are rounded
      to it.
  Raises:
    ValueError: a file is missing, damaged, or of another network.
  """

  vocabulary_size = 0

  def __init__(self, path: str, length: int, dtype: str = "float32"):
    if dtype not in DTYPES:
      raise ValueError(f"text.dtype={dtype!r} must be {' or '.join(map(repr, DTYPES))}")
    self.path, self.length, self.dtype = path, length, dtype
    self._folder = EncoderFolder(path)
    self.text_dim = self._folder.config.d_model
    self._tokenizer = tokenizer = self._folder.open_tokenizer()
    if length <= tokenizer.num_special_tokens_to_add(False):
      raise ValueError(
        f"text.length is {length}; it must be more than the "
        f"{tokenizer.num_special_tokens_to_add(False)} tokens that the tokenizer adds to a prompt"
      )
    tokenizer.enable_truncation(length)
    self._module = self._program = self._cache = None
    self._cut: set[bytes] = set()
    self._lock = threading.Lock()
    # A thread of its own: who asks for features may be tracing a program, or have set a mesh.
    self._thread = ThreadPoolExecutor(1, "text_encoder")

  def __reduce__(self):
    # Weights stay behind: other processes load what they need.
    return PretrainedText, (self.path, self.length, self.dtype)

  @property
  def num_bytes(self) -> int:
    """Bytes of the weights, which stay on the device once they are loaded."""
    return self._folder.num_parameters * np.dtype(self.dtype).itemsize

  @property
  def num_cut(self) -> int:
    """Number of different prompts so far that were too long."""
    return len(self._cut)

  def encode(self, text: str) -> Float32[np.ndarray, "P c"]:
    """Returns the features of a prompt, and rows of zeros.

    Raises:
      ValueError: the prompt is no text, or the weights cannot be loaded.
    """
    found = np.asarray(self.features(text), np.float32)
    return np.pad(found, ((0, self.length - len(found)), (0, 0)))

  def null(self) -> Float32[np.ndarray, "P c"]:
    """Returns the features of "", which mean "no condition" in classifier-free guidance."""
    return self.encode("")

  def features(self, text: str) -> Float[np.ndarray, "n c"]:
    """Returns the features of a prompt's own tokens, in `dtype`.

    Raises:
      ValueError: as `encode`.
    """
    ids = self._ids(text)
    if not len(ids):  # Phi's tokenizer adds nothing to an empty prompt.
      return np.zeros((0, self.text_dim), np.dtype(self.dtype))
    with self._lock:
      self._cache = self._cache or FeatureCache(self._folder.fingerprint(self.dtype))
    name = hashlib.sha256(ids.tobytes()).hexdigest()
    found = self._cache.get(name)
    if found is None:
      found = self._thread.submit(self._compute, ids).result()
      self._cache.put(name, found)
    return found

  def _ids(self, text: str) -> np.ndarray:
    """Returns the tokens of a prompt; of one that is too long, as many as fit."""
    if not isinstance(text, str):
      raise ValueError(f"a prompt must be a text, not {text!r}")
    encoded = self._tokenizer.encode(text)
    if encoded.overflowing:
      self._note_cut(text)
    return np.asarray(encoded.ids, np.int32)

  def _note_cut(self, text: str) -> None:
    if not self._cut:
      log.warning(
        "prompts of more than text.length=%d tokens are cut, the first of them %r",
        *(self.length, text[:60]),
      )
    self._cut.add(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16])

  def _compute(self, ids: np.ndarray) -> np.ndarray:
    """Returns the features of tokens."""
    import jax

    device = jax.local_devices()[0]
    if self._module is None:
      log.info("loading the text encoder %s", self.path)
      self._module = self._folder.load(self.dtype, device)
      self._program = jax.jit(lambda module, ids, is_token: module(ids, is_token))
    padding = max(_SHORTEST, 1 << (len(ids) - 1).bit_length()) - len(ids)
    inputs = np.pad(ids, (0, padding))[None], np.pad(np.ones(len(ids), bool), (0, padding))[None]
    # Accelerators would otherwise round the operands of float32 products.
    with jax.default_matmul_precision("float32"):
      features = self._program(self._module, *jax.device_put(inputs, device))
    return jax.device_get(features)[0, : len(ids)].astype(np.dtype(self.dtype))
