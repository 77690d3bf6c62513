"""Bits as what a network predicts: their loss, the weights of scales, and random draws."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

SCALE_WEIGHTINGS = ("none", "sqrt")


def cross_entropy(
  logits: Float[Array, "*b"], labels: Float[Array, "*b"] | UInt8[Array, "*b"]
) -> Float[Array, "*b"]:
  """Returns the cross-entropy of each bit, in nats: `log(1 + e^x) - x y`."""
  return jax.nn.softplus(logits) - logits * labels


def scale_weights(sizes: Sequence[int], weighting: str) -> Float[np.ndarray, "n"]:
  """Returns the weight of each token in the loss, with mean 1.

  Args:
    sizes: tokens of each scale.
    weighting: "none" weights all equally; "sqrt" divides the weight of a scale by the square root
      of its number of tokens, so that coarse scales count for more.
  """
  counts = np.array(sizes, np.float32)
  scale = np.ones_like(counts) if weighting == "none" else 1.0 / np.sqrt(counts)
  weights = np.repeat(scale, sizes)
  return weights / weights.mean()


def sample_bits(
  keys: Array,
  logits: Float[Array, "b n d"],
  *,
  temperature: float | np.floating | Array,
  top_p: float | Array,
) -> UInt8[Array, "b n d"]:
  """Draws bits; each sample has a key of its own, whatever batch it is in.

  Args:
    keys: a key for each sample.
    logits: of p(bit = 1).
    temperature: divides the logits; 0 takes the likelier value.
    top_p: values of probability <= 1 - top_p are never drawn; 1 keeps both.
  """
  uniform = jax.vmap(lambda key: jax.random.uniform(key, logits.shape[1:]))(keys)
  return drawn_bits(uniform, logits, temperature=temperature, top_p=top_p)


def drawn_bits(
  uniform: Float[Array, "b n d"],
  logits: Float[Array, "b n d"],
  *,
  temperature: float | np.floating | Array,
  top_p: float | Array,
) -> UInt8[Array, "b n d"]:
  """Returns the bits that uniform random numbers in [0, 1) stand for; see `sample_bits`."""
  safe = jnp.where(temperature > 0, temperature, 1.0)
  p = jax.nn.sigmoid(logits / safe)
  likelier = p > 0.5
  is_dropped = (jnp.minimum(p, 1 - p) <= 1 - top_p) | (temperature <= 0)
  return jnp.where(is_dropped, likelier, uniform < p).astype(jnp.uint8)
