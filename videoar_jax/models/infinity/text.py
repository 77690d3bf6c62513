"""What a prompt gives the network: a pooled vector, and rows that tokens attend to.

Source: INFINITY section 5.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.prompts import Text, is_text
from videoar_jax.nn import layers
from videoar_jax.nn.attention import attention
from videoar_jax.parallel.rules import constrain


class Prompt(NamedTuple):
  """An encoded prompt.

  Attributes:
    pooled: the whole prompt, which also modulates every layer, `[b, m]`.
    rows: what tokens attend to, `[b, P, m]`.
    mask: false on padding, `[b, P]`.
  """

  pooled: Float[Array, "b m"]
  rows: Float[Array, "b P m"]
  mask: Bool[Array, "b P"]


class Pool(nnx.Module):
  """Attention from one learned query to a prompt's rows."""

  def __init__(self, rngs: nnx.Rngs, config: InfinityConfig):
    m, n, init = config.d_model, config.num_pool_heads, layers.normal(base_scale(config))
    self.query = layers.param(rngs, init, (n, m // n), (None, None))
    self.key = layers.Linear(rngs, config.text_width, m, (None, "embed"), init=init)
    self.value = layers.Linear(
      rngs, config.text_width, m, (None, "embed"), use_bias=True, init=init
    )
    self.out = layers.Linear(rngs, m, m, ("embed", None), use_bias=True, init=init)

  def __call__(self, rows: Float[Array, "b P e"], mask: Bool[Array, "b P"]) -> Float[Array, "b m"]:
    b, p, _ = rows.shape
    n, k = self.query.shape
    query = jnp.broadcast_to(self.query[...].astype(rows.dtype), (b, 1, n, k))
    key, value = (project(rows).reshape(b, p, n, k) for project in (self.key, self.value))
    return self.out(attention(query, key, value, mask[:, None]).reshape(b, n * k))


class TextEncoder(nnx.Module):
  """Encodes prompts, of features or tokens."""

  def __init__(self, rngs: nnx.Rngs, config: InfinityConfig):
    m, e, init = config.d_model, config.text_width, layers.normal(base_scale(config))
    self.table = (
      None if config.text_dim else layers.Embedding(rngs, config.vocabulary_size, e, scale=1.0)
    )
    # Takes the place of a prompt's rows in predictions without a prompt.
    self.no_prompt = layers.param(
      rngs, layers.normal(1.2 * e**-0.5), (config.text_length, e), (None, None)
    )
    self.norm = layers.RMSNorm(rngs, e)
    self.pool = Pool(rngs, config)
    self.up = layers.Linear(rngs, e, m, (None, "embed"), use_bias=True, init=init)
    self.out = layers.Linear(rngs, m, m, ("embed", None), use_bias=True, init=init)

  def __call__(self, text: Text, is_dropped: Bool[Array | np.ndarray, "b"] | None, dtype) -> Prompt:
    """Encodes prompts.

    Args:
      text: tokens or features, padded: a token of 0, or a row of zeros, is padding, which nothing
        attends to.
      is_dropped: prompts that are replaced by the learned "no prompt", of as many rows; None for
        none.
      dtype: of the result.
    """
    mask = jnp.asarray(is_text(text))
    rows = text if self.table is None else self.table(text)
    rows = jnp.asarray(rows, jnp.float32)
    if is_dropped is not None:
      nothing = self.no_prompt[...].astype(jnp.float32)[: rows.shape[1]]
      rows = jnp.where(is_dropped[:, None, None], nothing, rows)
    rows = self.norm(rows).astype(dtype)
    projected = self.out(jax.nn.gelu(self.up(rows), approximate=True))
    return Prompt(self.pool(rows, mask), constrain(projected, ("batch", None, None)), mask)


def base_scale(config: InfinityConfig) -> float:
  """Returns the standard deviation of fresh weights. Source: INFINITY section 5.7."""
  return (3 * config.d_model) ** -0.5
