"""Texts that a model completes, such as by a clip's duration, before their encoder gets them."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


def encode_completed(text_encoder: Any, text: str, complete: Callable[[str], str]) -> np.ndarray:
  """Returns the tokens or features of a text that is completed first.

  Args:
    text_encoder: maps texts to tokens or features, with `encode`.
    text: of the user.
    complete: adds words to it.
  Raises:
    ValueError: it cannot be encoded. If it is only too long, the error has an attribute `cut`, as
      `text.tokenizers.PromptTooLong` has: the user's words that fit.
  """
  words = text.split(" ")
  try:
    return text_encoder.encode(complete(text))
  except ValueError as error:
    if not hasattr(error, "cut"):
      raise
    del error.cut
    while words and not hasattr(error, "cut"):
      words.pop()
      with contextlib.suppress(ValueError):
        text_encoder.encode(complete(" ".join(words)))
        error.cut = " ".join(words)
    raise


@dataclasses.dataclass(frozen=True)
class CompletedText:
  """Encodes captions that are completed first.

  Attributes:
    text_encoder: maps texts to tokens or features, with `encode`.
    complete: adds words to a caption.
  """

  text_encoder: Any
  complete: Callable[[str], str]

  def encode(self, text: str) -> np.ndarray:
    """Returns the tokens or features of a caption; see `encode_completed`."""
    return encode_completed(self.text_encoder, text, self.complete)
