"""The spatial encoder and decoder: fill in a frame's tokens, set by set.

The encoder sees a frame's condition and its known tokens, the decoder the condition and all tokens,
unknown ones as a learned token with their place. Frames do not see each other.

Source: NOVA section 10.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from videoar_jax.models.nova import blocks
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.tokens import places, rotary_angles
from videoar_jax.nn import layers
from videoar_jax.nn.mask import AttentionMask, BlockCausalMask
from videoar_jax.parallel.rules import is_for_tpu


class SpatialTransformer(nnx.Module):
  """From a frame's condition and known tokens to what the diffusion head needs of each token."""

  def __init__(self, rngs: nnx.Rngs, config: NovaConfig):
    m, half = config.d_model, config.num_image_layers // 2
    self.config = config
    self.patch = layers.Linear(rngs, config.token_width, m, (None, "embed"), use_bias=True)
    self.unknown = layers.param(rngs, layers.normal(0.02), (m,), ("embed",))
    self.encoder, self.decoder = (
      layers.stack_layers(lambda r: blocks.Block(r, config), rngs.params(), half) for _ in range(2)
    )
    self.norm = layers.LayerNorm(rngs, m)

  def __call__(
    self,
    condition: Float[Array, "b v m"],
    tokens: Float[Array, "b l p"],
    order: Int[Array, "b k"],
    num_known: int | Int[Array, ""],
    grid: tuple[int, int],
  ) -> Float[Array, "b l m"]:
    """Returns the decoder's output for each token.

    Args:
      condition: of each frame.
      tokens: of each frame; unknown ones are not read.
      order: the first tokens in the frame's order, of which `num_known` are known; the rest is
        filler, so that shapes do not depend on how many are known.
      num_known: how many are known, the same for all frames, at most k.
      grid: tokens per column and per row.
    """
    (b, v, m), k = condition.shape, order.shape[1]
    is_known = jnp.arange(k) < num_known
    known = write(jnp.zeros(tokens.shape[:2], bool), order, jnp.broadcast_to(is_known, (b, k)))
    x = jnp.where(known[..., None], self.patch(tokens), self.unknown[...].astype(tokens.dtype))
    angles = self._angles(v, grid)
    if angles is None:
      x = x + places(grid, m, self.config.position_base).astype(x.dtype)
    shown = jnp.take_along_axis(x, order[..., None], axis=1)
    shown = jnp.concatenate([condition, shown], axis=1)
    shown = self._run(
      self.encoder,
      shown,
      None if angles is None else _take(angles, order, v),
      jnp.concatenate([jnp.ones(v, bool), is_known]),
    )
    condition, shown = shown[:, :v], shown[:, v:]
    shown = jnp.where(is_known[:, None], shown, jnp.take_along_axis(x, order[..., None], axis=1))
    x = jnp.concatenate([condition, write(x, order, shown)], axis=1)
    is_seen = jnp.ones(x.shape[1], bool)
    return self.norm(self._run(self.decoder, x, angles, is_seen)[:, v:])

  def _angles(self, num_conditions: int, grid: tuple[int, int]) -> Float[Array, "l p"] | None:
    if self.config.positions == "absolute":
      return None
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    own = np.stack([np.zeros_like(row), row, column], axis=1)
    positions = np.concatenate([np.zeros((num_conditions, 3)), own]).astype(np.float32)
    return rotary_angles(jnp.asarray(positions), self.config.head_dim, self.config.position_base)

  def _run(self, stack, x, angles, is_seen: Bool[Array, "l"]):
    """Runs blocks in which every token sees all that are seen."""
    length = x.shape[1]
    backend = "splash" if is_for_tpu() else "dense"
    mask = AttentionMask(BlockCausalMask(length, False, 0, (1,)), is_seen[None], None, backend)
    return blocks.run(stack, x, angles, mask, self.config)


def write(
  x: Shaped[Array, "b l ..."], index: Int[Array, "b k"], values: Shaped[Array, "b k ..."]
) -> Shaped[Array, "b l ..."]:
  """Returns tokens, of which some are replaced; values at places beyond the last are dropped."""
  # Mapped, so that each device writes its own part of the batch.
  return jax.vmap(lambda x, i, y: x.at[i].set(y, mode="drop"))(x, index, values)


def _take(angles: Float[Array, "l p"], order: Int[Array, "b k"], num_conditions: int):
  """Returns the angles of a condition and of tokens in a frame's order, `[b, v + k, p]`."""
  first = jnp.broadcast_to(
    angles[:num_conditions], (order.shape[0], num_conditions, angles.shape[1])
  )
  return jnp.concatenate([first, angles[num_conditions:][order]], axis=1)
