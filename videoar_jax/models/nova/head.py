"""The diffusion head: an MLP that denoises a token, given what the spatial decoder says of it.

Source: NOVA section 11.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.noise import NUM_STEPS
from videoar_jax.models.nova.tokens import WaveMLP
from videoar_jax.nn import layers

_EPSILON = 1e-6  # Of the norms that the condition modulates.


def _linear(rngs, num_in, num_out, axes=("embed", "mlp")):
  return layers.Linear(rngs, num_in, num_out, axes, use_bias=True)


class _Modulated(nnx.Module):
  """A norm that is scaled and shifted by the condition, and as many further factors as wanted."""

  def __init__(self, rngs: nnx.Rngs, width: int, num: int):
    self.norm = layers.LayerNorm(rngs, width, epsilon=_EPSILON, is_affine=False)
    self.project = _linear(rngs, width, num * width)
    self.num = num

  def factors(self, condition):
    """Returns what `__call__` takes."""
    return self.project(jax.nn.silu(condition))

  def __call__(self, x, factors):
    parts = jnp.split(factors, self.num, axis=-1)
    return self.norm(x) * (1 + parts[0]) + parts[1], *parts[2:]


class HeadBlock(nnx.Module):
  """A residual MLP, modulated before and gated after."""

  def __init__(self, rngs: nnx.Rngs, width: int):
    self.modulated = _Modulated(rngs, width, 3)
    self.up, self.down = _linear(rngs, width, width), _linear(rngs, width, width)
    self.norm = layers.LayerNorm(rngs, width)

  def __call__(self, x, factors):
    h, gate = self.modulated(x, factors)
    return x + gate * self.norm(self.down(jax.nn.silu(self.up(h))))


class Factors(NamedTuple):
  """Scales, shifts and gates of the head's blocks, `[layers, ..., 3 w]`, and before its output."""

  blocks: Float[Array, "n *b _w"]
  out: Float[Array, "*b _v"]


def linear_velocity(sigma: Float[Array, "*b"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
  """Returns the best linear prediction of a flow's velocity from noisy tokens of variance 1.

  Args:
    sigma: share of noise in the tokens.
  Returns:
    The factor of noisy tokens, and the deviation of what it leaves open. Source: arXiv 2206.00364,
    section 5, for the straight path.
  """
  variance = sigma**2 + (1 - sigma) ** 2
  return (2 * sigma - 1) / variance, jax.lax.rsqrt(variance)


class Head(nnx.Module):
  """Predicts noise, or velocity, of tokens."""

  def __init__(self, rngs: nnx.Rngs, config: NovaConfig):
    width, m = config.head_mlp_dim, config.d_model
    self.config = config
    # A token has too few channels to divide over many devices.
    self.embed = _linear(rngs, config.token_width, width, (None, "mlp"))
    self.time = WaveMLP(rngs, width, is_cosine_first=True)
    self.condition_in, self.condition_out = _linear(rngs, m, width), _linear(rngs, width, width)
    self.blocks = layers.stack_layers(
      lambda r: HeadBlock(r, width), rngs.params(), config.num_head_layers
    )
    self.modulated = _Modulated(rngs, width, 2)
    self.out = _linear(rngs, width, config.token_width, ("embed", None))

  @property
  def num_factors(self) -> int:
    """How many numbers `factors` has for a token and a noise level."""
    return (3 * self.config.num_head_layers + 2) * self.config.head_mlp_dim

  def condition(self, z: Float[Array, "*b m"]) -> Float[Array, "*b w"]:
    """Returns what `predict` needs of the spatial decoder's output for each token."""
    return self.condition_out(jax.nn.silu(self.condition_in(z)))

  def predict(
    self,
    noisy: Float[Array, "*b p"],
    time: Int[Array, "*t"] | Float[Array, "*t"],
    condition: Float[Array, "*c w"],
  ) -> Float[Array, "*b p"]:
    """Returns the prediction for noisy tokens.

    Args:
      noisy: the tokens.
      time: noise level in steps of training, from 0 to 1000; broadcast against `*b`.
      condition: from `condition`, broadcast against `*b`.
    """
    condition = self._at(time, condition)
    body = lambda x, block: (block(x, block.modulated.factors(condition)), None)  # noqa: E731
    x, _ = self._run(body, self.embed(noisy), self.blocks, self.config.remat)
    out = self.out(self.modulated(x, self.modulated.factors(condition))[0])
    return self._complete(noisy, time, out)

  def factors(
    self,
    time: Int[Array | np.ndarray, "*t"] | Float[Array | np.ndarray, "*t"],
    condition: Float[Array, "*c w"],
  ) -> Factors:
    """Returns the part of `predict` that does not depend on the noisy tokens; see `predict_with`.

    In sampling, that of many noise levels is computed at once: for the few tokens of a set, it
    takes about as long as reading the weights, which are most of the head's, once.

    Args:
      time, condition: see `predict`.
    """
    condition = self._at(time, condition)
    body = lambda _, block: (None, block.modulated.factors(condition))  # noqa: E731
    _, blocks = self._run(body, None, self.blocks)
    return Factors(blocks, self.modulated.factors(condition))

  def predict_with(
    self, noisy: Float[Array, "*b p"], time: Float[Array, ""], factors: Factors
  ) -> Float[Array, "*b p"]:
    """Returns the prediction for noisy tokens at one noise level.

    Args:
      noisy: the tokens.
      time: the noise level.
      factors: from `factors`, of the same tokens and level.
    """
    body = lambda x, layer: (layer[0](x, layer[1]), None)  # noqa: E731
    x, _ = self._run(body, self.embed(noisy), (self.blocks, factors.blocks))
    return self._complete(noisy, time, self.out(self.modulated(x, factors.out)[0]))

  def _complete(self, noisy, time, out):
    """Adds what is known of the prediction without the network, if `has_noise_skip`."""
    if not self.config.has_noise_skip:
      return out
    skip, scale = linear_velocity(time.astype(jnp.float32)[..., None] / NUM_STEPS)
    return (skip * noisy + scale * out).astype(out.dtype)

  def _at(self, time, condition):
    return condition + self.time(time.astype(jnp.float32)).astype(condition.dtype)

  def _run(self, body, x, stacked, remat: str = "none"):
    return layers.run_stacked(body, x, stacked, is_scanned=self.config.scan_layers, remat=remat)
