"""Prompts as InfinityStar gets them, with what they begin and end with. Source: INFINITY S8."""

import contextlib

import numpy as np

from videoar_jax.models.infinity_star.config import InfinityStarSampling


class Prompter:
  """Encodes prompts as the network gets them, with what they begin and end with.

  Args:
    text_encoder: maps texts to tokens or features, with `encode`.
    sampling: defaults of requests.
    seconds: default duration of a clip; 0 for images.
  """

  def __init__(self, text_encoder, sampling: InfinityStarSampling, seconds: float):
    self.text_encoder, self.sampling, self.seconds = text_encoder, sampling, seconds

  def encode(
    self, text: str, sampling: InfinityStarSampling | None = None, seconds: float | None = None
  ) -> np.ndarray:
    """Returns the tokens or features of a prompt.

    Args:
      text: of the user.
      sampling: what prompts begin and end with; None for the default.
      seconds: duration of the clip; None for the default.
    Raises:
      ValueError: it cannot be encoded. If it is only too long, the error has an attribute `cut`, as
        `text.tokenizers.PromptTooLong` has: the user's words that fit.
    """
    sampling = self.sampling if sampling is None else sampling
    seconds = self.seconds if seconds is None else seconds
    words = text.split(" ")
    try:
      return self.text_encoder.encode(sampling.prompt(text, seconds))
    except ValueError as error:
      if not hasattr(error, "cut"):
        raise
      del error.cut
      while words and not hasattr(error, "cut"):
        words.pop()
        with contextlib.suppress(ValueError):
          self.text_encoder.encode(sampling.prompt(" ".join(words), seconds))
          error.cut = " ".join(words)
      raise
