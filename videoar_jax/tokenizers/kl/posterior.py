"""Normal distributions of latents, as encoders give them: means and logarithms of variances."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# As in the public autoencoders; without bounds, a variance may overflow.
_LOG_VARIANCES = (-30.0, 20.0)


class Posterior(NamedTuple):
  """A normal distribution of each channel of a latent cell."""

  mean: Float[Array, "b t h w d"]
  log_variance: Float[Array, "b t h w d"]


def posterior_of(encoded: Float[Array, "b t h w e"]) -> Posterior:
  """Returns the distribution that an encoder's output stands for, with bounded variances."""
  mean, log_variance = jnp.split(encoded, 2, axis=-1)
  return Posterior(mean, jnp.clip(log_variance, *_LOG_VARIANCES))


def bounded(encoded: Float[Array, "b t h w e"]) -> Float[Array, "b t h w e"]:
  """Returns an encoder's output with bounded variances."""
  return jnp.concatenate(posterior_of(encoded), axis=-1)


def latents_of(
  encoded: Float[Array, "b t h w e"], key: jax.Array | None
) -> Float[Array, "b t h w d"]:
  """Draws latents from their distributions; without a key, returns the means."""
  mean, log_variance = posterior_of(encoded)
  if key is None:
    return mean
  return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, mean.dtype)
