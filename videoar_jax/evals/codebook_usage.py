"""How a tokenizer uses its bits: which ones vary, how evenly, and what each scale adds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from videoar_jax.nn.resize import linear_resize
from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes


class CodebookUsage:
  """Counts bits over batches of coded clips.

  Here, a bit is one channel of one scale, over all positions, frames and clips.
  """

  def __init__(self):
    self._sizes: list[tuple[int, int]] = []
    self._num_ones: list[np.ndarray] = []
    self._num_tokens: list[int] = []
    self._squares = np.zeros(0)

  def add(
    self,
    latents: Float[Array | np.ndarray, "b t h w d"],
    bits: list[UInt8[Array | np.ndarray, "b t _y _x d"]],
  ) -> None:
    """Counts a batch: unquantized latents, and the bits of each scale."""
    bits = [np.asarray(scale) for scale in bits]
    if not self._sizes:
      self._sizes = [scale.shape[2:4] for scale in bits]
      self._num_ones = [np.zeros(scale.shape[-1], np.int64) for scale in bits]
      self._num_tokens = [0] * len(bits)
      self._squares = np.zeros(len(bits) + 1)
    for s, scale in enumerate(bits):
      self._num_ones[s] += scale.sum((0, 1, 2, 3), dtype=np.int64)
      self._num_tokens[s] += scale[..., 0].size
    self._squares += np.asarray(_jitted_squares()(latents, bits), np.float64)

  def summary(self) -> dict:
    """Returns the statistics.

    Returns:
      flipping: share of bits, over all scales, that are neither always 0 nor always 1.
      entropy: mean of the bits' entropies, in bits: 1 if all are 1 half of the time.
      scales: for each, its size, the same two, each bit's entropy ("entropies"), and
        "quantization_error": the norm of the residual after all scales up to this one, divided by
        the norm of the latent.
    """
    scales = []
    for s, (height, width) in enumerate(self._sizes):
      entropies = _entropy(self._num_ones[s] / self._num_tokens[s])
      flips = (self._num_ones[s] > 0) & (self._num_ones[s] < self._num_tokens[s])
      scales.append(
        {
          "size": f"{height}x{width}",
          "flipping": float(flips.mean()),
          "entropy": float(entropies.mean()),
          "quantization_error": float(np.sqrt(self._squares[s + 1] / self._squares[0])),
          "entropies": entropies.tolist(),
        }
      )
    means = {name: float(np.mean([s[name] for s in scales])) for name in ("flipping", "entropy")}
    return {**means, "scales": scales}


def _entropy(p: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
  """Returns the entropy of Bernoulli variables with probability p, in bits."""
  both = np.stack([p, 1 - p])
  return -(both * np.log2(np.where(both > 0, both, 1.0))).sum(0)


@functools.cache
def _jitted_squares():
  def squares(latents, bits) -> Float[Array, "k"]:
    """Returns the squared norms of the latents and of the residual after each scale."""
    residual = jnp.asarray(latents, jnp.float32)
    result = [jnp.sum(jnp.square(residual))]
    for scale in bits:
      residual = residual - linear_resize(bits_to_codes(scale), latents.shape[-3:-1])
      result.append(jnp.sum(jnp.square(residual)))
    return jnp.stack(result)

  return jax.jit(squares)
