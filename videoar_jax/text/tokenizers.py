"""Prompts as tokens: bytes or words, which need no vocabulary file; a tokenizer's file; classes.

All have `length`, `vocabulary_size`, `text_dim`, `encode` and `null`, and no more is asked of
them; so have features of text. In what they encode, 0 is padding.
"""

import difflib
import pathlib
import re
import unicodedata
import zlib

import numpy as np
from jaxtyping import Int32

from videoar_jax.text.features import SUFFIX, TextFeatures

PAD_ID = 0
END_ID = 1
NUM_SPECIAL = 2


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
      ValueError: the prompt and its end token do not fit.
    """
    return _to_tokens(list(text.encode("utf-8")), text, "bytes", self.length)

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

  For short captions in languages that part words by spaces: a small network need not learn to
  spell first. The token of a word is a hash of it, so that any text can be encoded and nothing is
  fitted to the data; two words may share one (of 30, two do by a chance of 10%; of 100, of 70%).

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
    """Returns the token ids of a prompt: of words, of letters and digits, and of single signs.

    What is between words is left out: spaces, and the underscores in names of folders.

    Raises:
      ValueError: the prompt and its end token do not fit.
    """
    text = unicodedata.normalize("NFC", text)  # One way of writing accents, of several.
    words = re.findall(r"[^\W_]+|[^\w\s]", text.lower())
    num_hashes = self.vocabulary_size - NUM_SPECIAL
    ids = [zlib.crc32(word.encode("utf-8")) % num_hashes for word in words]
    return _to_tokens(ids, text, "words", self.length)

  def null(self) -> Int32[np.ndarray, "P"]:
    """Returns the empty prompt, which stands for "no condition" in classifier-free guidance."""
    return self.encode("")


class FileTokenizer:
  """Encodes a prompt by a JSON file of Hugging Face `tokenizers`, an end token and padding.

  End and padding are tokens of our own, in front of the file's: whatever special tokens a file has,
  or lacks, a prompt ends in the same way.

  Args:
    path: of the file.
    length: tokens in every encoded prompt, P.
  Raises:
    ValueError: the file cannot be read, or the package is missing.
  """

  text_dim = 0
  end_id = END_ID

  def __init__(self, path: str, length: int):
    _check_length(length)
    try:
      import tokenizers
    except ImportError as error:
      raise ValueError(
        f"text.tokenizer={path!r} needs a package; pip install 'videoar_jax[tokenizers]'"
      ) from error
    try:
      self._tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # The package raises no narrower one.
      raise ValueError(f"text.tokenizer={path!r} is no file of a tokenizer: {error}") from error
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self.length = length
    self.vocabulary_size = NUM_SPECIAL + 1 + max(self._tokenizer.get_vocab().values(), default=0)

  def encode(self, text: str) -> Int32[np.ndarray, "P"]:
    """Returns the token ids of a prompt.

    Raises:
      ValueError: the prompt and its end token do not fit.
    """
    ids = self._tokenizer.encode(text, add_special_tokens=False).ids
    return _to_tokens(ids, text, "tokens", self.length)

  def null(self) -> Int32[np.ndarray, "P"]:
    """Returns the empty prompt, which stands for "no condition" in classifier-free guidance."""
    return self.encode("")


def _check_length(length: int) -> None:
  if length < 1:
    raise ValueError(f"text.length is {length}; it must be at least 1, for the end token.")


def _to_tokens(ids: list[int], text: str, unit: str, length: int) -> Int32[np.ndarray, "P"]:
  """Returns ids behind the special ones, the end token and padding.

  Raises:
    ValueError: they do not fit.
  """
  if len(ids) + 1 > length:
    raise ValueError(
      f"The prompt {text[:60]!r} has {len(ids)} {unit}, but text.length = {length} has room "
      f"for {length - 1} and the end token; set text.length to at least {len(ids) + 1} "
      "or shorten the prompt."
    )
  tokens = np.full(length, PAD_ID, np.int32)
  tokens[: len(ids)] = np.array(ids, np.int32) + NUM_SPECIAL
  tokens[len(ids)] = END_ID
  return tokens


class ClassTokenizer:
  """Encodes the name of a class as one token; another one is the null class.

  Args:
    names: of the classes; their order is that of the tokens.
    length: tokens in every encoded prompt, which must be 1.
  Raises:
    ValueError: there are no names, or two are the same, or the length is not 1.
  """

  text_dim = 0
  null_id = END_ID

  def __init__(self, names: tuple[str, ...], length: int):
    if not names or len(set(names)) < len(names):
      raise ValueError("text.classes: needs the names of the classes, each once")
    if length != 1:
      raise ValueError(f"text.length is {length}; a class is one token: set text.length = 1")
    self.length = length
    self.vocabulary_size = NUM_SPECIAL + len(names)
    self._ids = {name: NUM_SPECIAL + i for i, name in enumerate(names)}

  def encode(self, text: str) -> Int32[np.ndarray, "1"]:
    """Returns the token of a class; "" is the null class, as captions are that are left out.

    Raises:
      ValueError: there is no such class.
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


TextEncoder = ByteTokenizer | WordTokenizer | FileTokenizer | ClassTokenizer | TextFeatures


def make_text_encoder(tokenizer: str, length: int, classes: tuple[str, ...]) -> TextEncoder:
  """Makes what turns prompts into tokens.

  Args:
    tokenizer: "bytes", "words", "classes", the path of a JSON file, or that of features.
    length: tokens in every encoded prompt, P.
    classes: names of the classes, for "classes".
  Raises:
    ValueError: it is none of them, or cannot be made; names the field.
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
    return TextFeatures(tokenizer, length)
  raise ValueError(
    f"text.tokenizer={tokenizer!r} must be 'bytes', 'words', 'classes', a .json file of a "
    f"tokenizer, or a {SUFFIX} file of features or a folder of them"
  )
