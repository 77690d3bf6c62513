"""Prompts as networks get them: tokens, or features of a text encoder, padded with zeros."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Tokens, or text features from another network.
Text = Int[Array | np.ndarray, "b P"] | Float[Array | np.ndarray, "b P e"]


def is_text(text: Text) -> Bool[Array | np.ndarray, "b P"]:
  """Returns the mask of text; a token of 0, or a feature of zeros, is padding."""
  return text != 0 if text.ndim == 2 else jnp.any(text != 0, axis=-1)


def text_settings(text: Any) -> dict[str, int]:
  """Returns the settings of a network that follow from a run's prompts.

  Args:
    text: with `length` and `encoder`, see `models.base.Run`.
  """
  return {
    "vocabulary_size": text.encoder.vocabulary_size,
    "text_dim": text.encoder.text_dim,
    "text_length": text.length,
  }
