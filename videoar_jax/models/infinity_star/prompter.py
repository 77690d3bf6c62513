"""Prompts as InfinityStar gets them, with what they begin and end with. Source: INFINITY S8."""

import numpy as np

from videoar_jax.models.infinity_star.config import InfinityStarSampling
from videoar_jax.text.completed import encode_completed


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
      ValueError: it cannot be encoded, see `encode_completed`.
    """
    sampling = self.sampling if sampling is None else sampling
    seconds = self.seconds if seconds is None else seconds
    return encode_completed(self.text_encoder, text, lambda words: sampling.prompt(words, seconds))
