"""Prompts as tokens: bytes or words, which need no vocabulary; a tokenizer file; or classes.

The interface, shared with `TextFeatures` and `PretrainedText`, is `length`, `vocabulary_size`,
`text_dim`, `encode` and `null`. Token 0 is padding.
"""

import difflib
import pathlib
import re
import unicodedata
import zlib

import numpy as np
from jaxtyping import Int32

from videoar_jax.text.encoders.files import is_encoder
from videoar_jax.text.features import SUFFIX, TextFeatures
from videoar_jax.text.pretrained import PretrainedText
from videoar_jax.text.tokenizer_files import open_tokenizer

PAD_ID = 0
END_ID = 1
NUM_SPECIAL = 2


class PromptTooLong(ValueError):
  """A prompt that does not fit `text.length`.

  Attributes:
    cut: the beginning of the prompt, as much as fits.
  """

  def __init__(self, message: str, cut: str):
    super().__init__(message)
    self.cut = cut


class ByteTokenizer:
  """Encodes a prompt as its UTF-8 bytes, an end token and padding.

  Attributes:
    length: tokens in every encoded prompt, P.
    vocabulary_size: number of token ids: 256 bytes and the special ids.
    text_dim: 0, for tokens.
    end_id: id of the token after a prompt's last byte.
  """

  vocabulary_size = 256 + NUM_SPECIAL
  text_dim = 0
  end_id = END_ID

  def __init__(self, length: int):
    _check_length(length)
    self.length = length

  def encode(self, text: str) -> Int32[np.ndarray, "P"]:
    """Returns the token ids of a prompt.

    Raises:
      PromptTooLong: the prompt and its end token do not fit.
    """
    data = text.encode("utf-8")
    cut = data[: self.length - 1].decode("utf-8", "ignore")
    return _to_tokens(list(data), text, "bytes", self.length, cut)

  def null(self) -> Int32[np.ndarray, "P"]:
    """Returns the empty prompt, which stands for "no condition" in classifier-free guidance."""
    return self.encode("")

  def decode(self, tokens: Int32[np.ndarray, "P"]) -> str:
    """Returns the text up to the end token; bytes that are not UTF-8 become U+FFFD."""
    tokens = np.asarray(tokens)
    (ends,) = np.nonzero(tokens == END_ID)
    tokens = tokens[: ends[0]] if len(ends) else tokens
    data = tokens[tokens >= NUM_SPECIAL] - NUM_SPECIAL
    return data.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class WordTokenizer:
  """Encodes a prompt as its words, in lower case, an end token and padding.

  For short captions in languages that separate words by spaces: a small network does not have to
  learn spelling first. A word's token is its hash, so that any text can be encoded without fitting
  a vocabulary. Words may collide (with a probability of 10% among 30 words, 70% among 100).

  Attributes:
    length: tokens in every encoded prompt, P.
    vocabulary_size: number of token ids.
    text_dim: 0, for tokens.
    end_id: id of the token after a prompt's last word.
  """

  vocabulary_size = 4096
  text_dim = 0
  end_id = END_ID

  def __init__(self, length: int):
    _check_length(length)
    self.length = length

  def encode(self, text: str) -> Int32[np.ndarray, "P"]:
    """Returns the token ids of a prompt: one per word of letters and digits, or punctuation mark.

    Spaces, and underscores as in folder names, only separate words.

    Raises:
      PromptTooLong: the prompt and its end token do not fit.
    """
    text = unicodedata.normalize("NFC", text)  # Accents have several encodings; use one.
    words = list(re.finditer(r"[^\W_]+|[^\w\s]", text.lower()))
    num_hashes = self.vocabulary_size - NUM_SPECIAL
    ids = [zlib.crc32(word[0].encode("utf-8")) % num_hashes for word in words]
    ends = [0, *(word.end() for word in words)]
    cut = text.lower()[: ends[min(self.length, len(ends)) - 1]]
    return _to_tokens(ids, text, "words", self.length, cut)

  def null(self) -> Int32[np.ndarray, "P"]:
    """Returns the empty prompt, which stands for "no condition" in classifier-free guidance."""
    return self.encode("")


class FileTokenizer:
  """Encodes a prompt with a JSON file of Hugging Face `tokenizers`, an end token and padding.

  Our own end and padding ids come before the file's ids, so that prompts end the same way whatever
  special tokens the file has.

  Args:
    path: the file.
    length: tokens in every encoded prompt, P.
  Raises:
    ValueError: the file cannot be read, or the package is missing.
  """

  text_dim = 0
  end_id = END_ID

  def __init__(self, path: str, length: int):
    _check_length(length)
    try:
      self._tokenizer = open_tokenizer(path)
    except ValueError as error:
      raise ValueError(f"text.tokenizer={error}") from error
    self.length = length
    self.vocabulary_size = NUM_SPECIAL + 1 + max(self._tokenizer.get_vocab().values(), default=0)

  def encode(self, text: str) -> Int32[np.ndarray, "P"]:
    """Returns the token ids of a prompt.

    Raises:
      PromptTooLong: the prompt and its end token do not fit.
    """
    ids = self._ids(text)
    cut = text if len(ids) < self.length else self._cut(text)
    return _to_tokens(ids, text, "tokens", self.length, cut)

  def _ids(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def _cut(self, text: str) -> str:
    """Returns as much of the beginning of a prompt as fits."""
    ends = [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]
    # The tokens of a part may differ from those of the whole, and be more.
    parts = (text[:end] for end in reversed(ends[: self.length - 1]))
    return next((part for part in parts if len(self._ids(part)) < self.length), "")

  def null(self) -> Int32[np.ndarray, "P"]:
    """Returns the empty prompt, which stands for "no condition" in classifier-free guidance."""
    return self.encode("")


def _check_length(length: int) -> None:
  if length < 1:
    raise ValueError(f"text.length is {length}; it must be at least 1, for the end token.")


def _to_tokens(
  ids: list[int], text: str, unit: str, length: int, cut: str
) -> Int32[np.ndarray, "P"]:
  """Returns the ids, shifted past the special ids, then the end token and padding.

  Raises:
    PromptTooLong: the ids and the end token do not fit.
  """
  if len(ids) + 1 > length:
    raise PromptTooLong(
      f"The prompt {text[:60]!r} has {len(ids)} {unit}, but text.length = {length} has room "
      f"for {length - 1} and the end token; set text.length to at least {len(ids) + 1} "
      "or shorten the prompt.",
      cut,
    )
  tokens = np.full(length, PAD_ID, np.int32)
  tokens[: len(ids)] = np.array(ids, np.int32) + NUM_SPECIAL
  tokens[len(ids)] = END_ID
  return tokens


class ClassTokenizer:
  """Encodes a class name as one token; a further token is the null class.

  Args:
    names: names of the classes, in the order of their tokens.
    length: tokens in every encoded prompt, which must be 1.
  Raises:
    ValueError: there are no names, two are equal, or the length is not 1.
  """

  text_dim = 0
  null_id = END_ID

  def __init__(self, names: tuple[str, ...], length: int):
    if not names or len(set(names)) < len(names):
      raise ValueError("text.classes must list the names of the classes, each once")
    if length != 1:
      raise ValueError(f"text.length is {length}; a class is one token: set text.length = 1")
    self.length = length
    self.vocabulary_size = NUM_SPECIAL + len(names)
    self._ids = {name: NUM_SPECIAL + i for i, name in enumerate(names)}

  def encode(self, text: str) -> Int32[np.ndarray, "1"]:
    """Returns the token of a class; "", the caption after dropout, is the null class.

    Raises:
      ValueError: the class is unknown.
    """
    if not text:
      return self.null()
    if text not in self._ids:
      near = difflib.get_close_matches(text, self._ids, n=1)
      hint = f"did you mean {near[0]!r}?" if near else "add it to text.classes"
      raise ValueError(f"The class {text[:60]!r} is unknown; {hint}")
    return np.array([self._ids[text]], np.int32)

  def null(self) -> Int32[np.ndarray, "1"]:
    """Returns the null class, which stands for "no condition" in classifier-free guidance."""
    return np.array([self.null_id], np.int32)


TextEncoder = (
  ByteTokenizer | WordTokenizer | FileTokenizer | ClassTokenizer | TextFeatures | PretrainedText
)


def make_text_encoder(
  tokenizer: str, length: int, classes: tuple[str, ...], dtype: str = "float32"
) -> TextEncoder:
  """Makes the text encoder that `text.tokenizer` names.

  Args:
    tokenizer: "bytes", "words", "classes", or the path of a JSON file, of features, or of the
      folder of a pretrained encoder.
    length: tokens in every encoded prompt, P.
    classes: names of the classes, for "classes".
    dtype: of a pretrained encoder's weights, "float32" or "bfloat16".
  Raises:
    ValueError: `tokenizer` is none of these, or its files are wrong; the message names the field.
  """
  if classes and tokenizer != "classes":
    raise ValueError(f"text.classes is set, but text.tokenizer={tokenizer!r}; set it to 'classes'")
  if tokenizer == "bytes":
    return ByteTokenizer(length)
  if tokenizer == "words":
    return WordTokenizer(length)
  if tokenizer == "classes":
    return ClassTokenizer(classes, length)
  if tokenizer.endswith(".json"):
    return FileTokenizer(tokenizer, length)
  if tokenizer.endswith(SUFFIX) or pathlib.Path(tokenizer).is_dir():
    return _make_features(tokenizer, length, dtype)
  raise ValueError(
    f"text.tokenizer={tokenizer!r} must be 'bytes', 'words', 'classes', a .json tokenizer file, "
    f"a {SUFFIX} file of features or a folder of them, or the folder of a text encoder"
  )


def _make_features(path: str, length: int, dtype: str) -> TextFeatures | PretrainedText:
  try:
    is_pretrained = is_encoder(path)
    encoder = PretrainedText(path, length, dtype) if is_pretrained else None
  except ValueError as error:
    raise ValueError(f"text.tokenizer={path!r}: {error}") from error
  return encoder or TextFeatures(path, length)
