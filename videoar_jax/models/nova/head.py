"""The diffusion head: an MLP that denoises a token, given what the spatial decoder says of it.

Source: NOVA section 11.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from videoar_jax.models.nova.config import NovaConfig
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

  def __call__(self, x, condition):
    parts = jnp.split(self.project(jax.nn.silu(condition)), self.num, axis=-1)
    return self.norm(x) * (1 + parts[0]) + parts[1], *parts[2:]


class HeadBlock(nnx.Module):
  """A residual MLP, modulated before and gated after."""

  def __init__(self, rngs: nnx.Rngs, width: int):
    self.modulated = _Modulated(rngs, width, 3)
    self.up, self.down = _linear(rngs, width, width), _linear(rngs, width, width)
    self.norm = layers.LayerNorm(rngs, width)

  def __call__(self, x, condition):
    h, gate = self.modulated(x, condition)
    return x + gate * self.norm(self.down(jax.nn.silu(self.up(h))))


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
    condition = condition + self.time(time.astype(jnp.float32)).astype(condition.dtype)
    x = self.embed(noisy)
    body = lambda x, block: (block(x, condition), None)  # noqa: E731
    x, _ = layers.run_stacked(
      body, x, self.blocks, is_scanned=self.config.scan_layers, remat=self.config.remat
    )
    return self.out(self.modulated(x, condition)[0])
