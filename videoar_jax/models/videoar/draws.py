"""Random draws of bits: each sample has keys of its own, whatever batch it is in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def sample_bits(
  keys: Array,
  logits: Float[Array, "b n d"],
  *,
  temperature: float | Array,
  top_p: float | Array,
) -> UInt8[Array, "b n d"]:
  """Draws bits.

  Args:
    keys: a key for each sample.
    logits: of p(bit = 1).
    temperature: divides the logits; 0 takes the likelier value.
    top_p: values of probability <= 1 - top_p are never drawn; 1 keeps both.
  """
  safe = jnp.where(temperature > 0, temperature, 1.0)
  p = jax.nn.sigmoid(logits / safe)
  likelier = p > 0.5
  uniform = jax.vmap(lambda key: jax.random.uniform(key, logits.shape[1:]))(keys)
  is_dropped = (jnp.minimum(p, 1 - p) <= 1 - top_p) | (temperature <= 0)
  return jnp.where(is_dropped, likelier, uniform < p).astype(jnp.uint8)
