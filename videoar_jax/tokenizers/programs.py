"""The programs that code whole clips, shared by the samplers of all families.

Without a mesh as with one, memory does not grow with the clips.
"""

from flax import nnx
from jaxtyping import Array, Float, UInt8

from videoar_jax.parallel.programs import Program
from videoar_jax.tokenizers.decoding import decode
from videoar_jax.tokenizers.encoding import encode


def _to_pixels(
  autoencoder: nnx.Module, latents: Float[Array, "b t h w d"]
) -> UInt8[Array, "b f H W 3"]:
  return decode(autoencoder.decoder, latents)


def _to_latents(
  autoencoder: nnx.Module, video: UInt8[Array, "b f H W 3"]
) -> Float[Array, "b t h w d"]:
  return encode(autoencoder.encoder, video)


to_pixels = Program(_to_pixels)
to_latents = Program(_to_latents)
