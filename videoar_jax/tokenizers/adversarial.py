"""Adversarial losses of autoencoder and discriminator, with the R1 and LeCAM regularizers.

Source: VIDEOAR section 2.5.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

KINDS = ("non_saturating", "hinge")
LecamEma = dict  # {"real", "fake"}: running means of the discriminator's logits, scalars.


def autoencoder_loss(kind: str, fake: Float[Array, "..."]) -> Float[Array, ""]:
  """Returns the autoencoder's loss, from the logits of its reconstructions."""
  if kind == "hinge":
    return -jnp.mean(fake)
  return jnp.mean(jax.nn.softplus(-fake))


def discriminator_loss(
  kind: str, real: Float[Array, "..."], fake: Float[Array, "..."]
) -> Float[Array, ""]:
  """Returns the discriminator's loss, from the logits of real clips and of reconstructions."""
  if kind == "hinge":
    return jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake))
  return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


def r1_penalty(
  discriminate: Callable[[Array], Array], video: Float[Array, "b f H W 3"]
) -> Float[Array, ""]:
  """Returns the mean over clips of `|d D / d clip|^2`, where D is the mean of a clip's logits."""

  def total(x):
    logits = discriminate(x)
    return jnp.sum(jnp.mean(logits.reshape(logits.shape[0], -1), axis=1))

  return jnp.mean(jnp.sum(jnp.square(jax.grad(total)(video)), axis=(1, 2, 3, 4)))


def init_lecam_ema() -> LecamEma:
  """Returns the initial running means."""
  return {"real": jnp.zeros(()), "fake": jnp.zeros(())}


def update_lecam_ema(
  lecam_ema: LecamEma, real: Float[Array, "..."], fake: Float[Array, "..."], decay: float
) -> LecamEma:
  """Moves the running means towards a batch's."""
  new = jax.lax.stop_gradient({"real": jnp.mean(real), "fake": jnp.mean(fake)})
  return jax.tree.map(lambda a, b: decay * a + (1.0 - decay) * b, lecam_ema, new)


def lecam_penalty(
  lecam_ema: LecamEma, real: Float[Array, "..."], fake: Float[Array, "..."]
) -> Float[Array, ""]:
  """Returns LeCAM's penalty on the distance of logits from the running mean of the other kind.

  Source: Tseng et al., Regularizing Generative Adversarial Networks under Limited Data, 2021.
  """
  far_real = jnp.mean(jnp.square(jax.nn.relu(real - lecam_ema["fake"])))
  far_fake = jnp.mean(jnp.square(jax.nn.relu(lecam_ema["real"] - fake)))
  return far_real + far_fake


def adaptive_weight(
  reconstruction: Float[Array, "..."], adversarial: Float[Array, "..."], *, limit: float = 1e4
) -> Float[Array, ""]:
  """Returns the weight of the adversarial loss that makes both gradients equally large.

  Args:
    reconstruction: gradient of the other losses with respect to the decoder's last kernel.
    adversarial: gradient of the adversarial loss with respect to it.
    limit: largest weight.
  Source: Esser et al., Taming Transformers for High-Resolution Image Synthesis, 2021.
  """
  norm = jnp.linalg.norm(reconstruction) / (jnp.linalg.norm(adversarial) + 1e-4)
  return jax.lax.stop_gradient(jnp.clip(norm, 0.0, limit))
