"""Text prompts as bytes: no vocabulary file, any language, nothing to download."""

import numpy as np
from jaxtyping import Int32

PAD_ID = 0
END_ID = 1
NUM_SPECIAL = 2


class ByteTokenizer:
  """Encodes a prompt as its UTF-8 bytes, an end token and padding.

  Attributes:
    length: tokens in every encoded prompt, P.
    vocabulary_size: number of token ids: 256 bytes and the special ids.
    pad_id: id of the padding; `tokens != pad_id` is the mask of a prompt.
    end_id: id of the token after a prompt's last byte.
  """

  vocabulary_size = 256 + NUM_SPECIAL
  pad_id = PAD_ID
  end_id = END_ID

  def __init__(self, length: int):
    if length < 1:
      raise ValueError(f"text.length is {length}; it must be at least 1, for the end token.")
    self.length = length

  def encode(self, text: str) -> Int32[np.ndarray, "P"]:
    """Returns the token ids of a prompt.

    Raises:
      ValueError: the prompt and its end token do not fit.
    """
    data = text.encode("utf-8")
    if len(data) + 1 > self.length:
      raise ValueError(
        f"The prompt {text[:60]!r} has {len(data)} bytes, but text.length = {self.length} has room "
        f"for {self.length - 1} and the end token; set text.length to at least {len(data) + 1} "
        "or shorten the prompt."
      )
    tokens = np.full(self.length, PAD_ID, np.int32)
    tokens[: len(data)] = np.frombuffer(data, np.uint8)
    tokens[: len(data)] += NUM_SPECIAL
    tokens[len(data)] = END_ID
    return tokens

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
