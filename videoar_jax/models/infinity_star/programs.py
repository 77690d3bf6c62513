"""The jitted functions of sampling, on a mesh if there is one."""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8, UInt32

from videoar_jax.models.infinity_star import generate, loss
from videoar_jax.models.infinity_star.layout import Layout
from videoar_jax.models.infinity_star.network import InfinityStar
from videoar_jax.parallel.compiler import jitted
from videoar_jax.parallel.mesh import call_on, shard_padded
from videoar_jax.parallel.programs import Program
from videoar_jax.parallel.rules import constrain
from videoar_jax.tokenizers.base import Tokenizer
from videoar_jax.tokenizers.decoding import decode
from videoar_jax.tokenizers.programs import to_latents
from videoar_jax.tokenizers.star.quantizer import corrupt, draw, quantize
from videoar_jax.tokenizers.star.schedules import Schedule

_REWEIGHT = 4.0  # Of the loss that clips are scored by, the released one.


def scale_program(jit: Callable = jax.jit) -> Callable[..., generate.Done]:
  """Returns the program of a scale, which takes what `generate.run_scale` takes."""
  return jit(_run_scale, static_argnames=("scale", "size", "is_kept"))


def _run_scale(net, scale, size, *arguments, is_kept: bool) -> generate.Done:
  """Runs a scale, without what only tests look at."""
  done = generate.run_scale(net, scale, size, *arguments, is_kept=is_kept)
  total = constrain(done.total, ("batch", None, None, None, None))
  return generate.Done(total, done.kept, [])


def _score_clips(net: InfinityStar, text, latents: Float[Array, "b t h w c"], layout: Layout):
  # The same repetitions for all clips, whatever their batch.
  drawn = draw(jax.random.key(0), layout.schedule, 1, 0.0)
  selected = [jnp.broadcast_to(x, (len(latents),)) for x in drawn.selected]
  found = loss.clip_losses(
    net,
    text,
    corrupt(latents, layout.schedule, drawn._replace(selected=selected)),
    selected,
    layout,
  )
  weights = layout.weights(_REWEIGHT)
  return {
    "loss": found.cross_entropy @ (weights / weights.sum()),
    "bit_accuracy": jnp.mean(found.accuracy, axis=1),
  }


def _decode_parts(
  autoencoder, parts: list[Float[Array, "b _t h w c"]]
) -> UInt8[Array, "b f H W 3"]:
  return decode(autoencoder.decoder, jnp.concatenate(parts, axis=1))


# Programs of all models: a second one of the same kind compiles nothing.
_prompts = jitted(generate.prompts_of, static_argnames="is_guided")
_read = jitted(generate.read_prompts)
_read_latents = jitted(generate.read_latents, static_argnames="num_passes")
_scale = scale_program(jitted)
_quantize = jitted(lambda latents, schedule: quantize(latents, schedule).bits, static_argnums=1)
_score = jitted(_score_clips, static_argnames="layout")
_to_pixels = Program(_decode_parts)


class Programs:
  """What a network and its tokenizer compute.

  Args:
    net: the network; with a mesh, its parameters must already be on it.
    tokenizer: codes frames.
    mesh: devices that share the work; None for one.
  """

  def __init__(self, net: InfinityStar, tokenizer: Tokenizer, mesh: Mesh | None):
    self.net, self.tokenizer, self.mesh = net, tokenizer, mesh

  def _run(self, function, *arguments, **settings):
    return call_on(self.mesh, function, *arguments, **settings)

  def prompts(self, text, negative, is_guided: bool) -> generate.Prompts:
    """Embeds prompts, see `generate.prompts_of`."""
    return self._run(_prompts, self.net, text, negative, is_guided=is_guided)

  def encode(self, video: UInt8[np.ndarray, "b f H W 3"]) -> Float[Array, "b t h w c"]:
    """Encodes frames."""
    batch = shard_padded(video, self.mesh)
    return self._run(to_latents, self.tokenizer.autoencoder, batch)

  def quantize(self, latents: Float[Array, "b t h w c"], schedule: Schedule) -> list:
    """Returns the bits of latents at all repetitions."""
    return self._run(_quantize, latents, schedule)

  def read_latents(
    self, latents: Float[Array, "b t h w c"], places: Float[np.ndarray, "n 4"], num_passes: int
  ) -> generate.Caches:
    """Returns the keys and values of latents, see `generate.read_latents`."""
    return self._run(_read_latents, self.net, latents, places, num_passes=num_passes)

  def pyramids(
    self,
    plan: generate.Plan,
    prompts: generate.Prompts,
    keys: UInt32[np.ndarray, "b _k"],
    given: Sequence = (),
    context: tuple = (),
  ) -> Iterator[Float[Array, "b t h w c"]]:
    """Yields the latents of each pyramid, see `generate.pyramids`."""
    return generate.pyramids(
      self.net,
      plan,
      prompts,
      keys,
      given,
      context,
      read=lambda *arguments: self._run(_read, *arguments),
      run=lambda *arguments, **fixed: self._run(_scale, *arguments, **fixed),
    )

  def decode(self, parts: list[Float[Array, "b _t h w c"]]) -> UInt8[Array, "b f H W 3"]:
    """Decodes latents that follow each other."""
    return self._run(_to_pixels, self.tokenizer.autoencoder, parts)

  def score(self, text, latents: Float[Array, "b t h w c"], layout: Layout) -> dict[str, Array]:
    """Returns the loss and the share of right bits of each clip, teacher-forced."""
    return self._run(_score, self.net, text, latents, layout=layout)
