"""The trained bitwise tokenizer: video to latents to bits and back."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from videoar_jax.parallel.compiler import jitted
from videoar_jax.tokenizers.autoencoder import Autoencoder
from videoar_jax.tokenizers.bsq import quantizer
from videoar_jax.tokenizers.bsq.schedules import Schedule, check_schedule, default_schedule
from videoar_jax.tokenizers.coder import Coder


@dataclasses.dataclass(frozen=True)
class Codes:
  """A quantized clip.

  Attributes:
    bits: one array per scale, uint8 `[b, t, h_s, w_s, d]`.
    quantized: the accumulated codes `[b, t, h, w, d]`, what the decoder takes.
  """

  bits: list[UInt8[Array, "b t _y _x d"]]
  quantized: Float[Array, "b t h w d"]


# Of all tokenizers.
_quantize = jitted(quantizer.quantize, static_argnums=1)


class Tokenizer(Coder):
  """An autoencoder with its schedule of scales.

  Args:
    autoencoder: the trained module.
    schedule: scales for the latent grid it ends with; other grids take the public or default one.
  """

  def __init__(self, autoencoder: Autoencoder, schedule: Schedule | None = None):
    super().__init__(autoencoder)
    self.schedule = schedule

  def quantize(
    self, latents: Float[Array | np.ndarray, "b t h w d"], schedule: Schedule | None = None
  ) -> Codes:
    """Quantizes latents, each frame alone.

    Args:
      latents: from `encode`.
      schedule: scales (h, w), ending at the latent grid; None takes the trained one.
    Raises:
      ValueError: the schedule does not increase to the latent grid.
    """
    grid = tuple(latents.shape[-3:-1])
    if schedule is None:
      is_trained_grid = self.schedule is not None and self.schedule[-1] == grid
      schedule = self.schedule if is_trained_grid else default_schedule(grid)
    schedule = tuple((int(h), int(w)) for h, w in schedule)
    check_schedule(schedule, grid)
    quantized = _quantize(jnp.asarray(latents), schedule)
    return Codes(quantized.bits, quantized.quantized)
