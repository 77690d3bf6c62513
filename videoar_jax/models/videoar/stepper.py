"""Decodes clips step by step, and shows their pixels in between: by frame, or by scale."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from videoar_jax.models.preview import Preview
from videoar_jax.models.videoar import decode, decode_steps
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.models.videoar.request import Request
from videoar_jax.parallel.compiler import jitted
from videoar_jax.parallel.mesh import call_on
from videoar_jax.parallel.processes import fetch
from videoar_jax.tokenizers.bsq.tokenizer import Tokenizer
from videoar_jax.tokenizers.pixels import to_uint8

# Programs of all models: a second one of the same kind compiles nothing.
_start = jitted(
  decode_steps.start,
  is_decoding=True,
  static_argnames=("layout", "slots", "is_guided", "is_prefix_guided"),
)
_write_frame = jitted(
  decode_steps.write_frame, is_decoding=True, static_argnums=1, donate_argnums=2
)
_decode_frame = jitted(decode.decode_frame, is_decoding=True, static_argnums=1, donate_argnums=2)
_begin_frame = jitted(
  decode_steps.begin_frame, is_decoding=True, static_argnums=1, donate_argnums=2
)
# Not donated: the state serves all scales of a frame, and a scale's arrays all grow.
_decode_scale = jitted(decode_steps.decode_scale, is_decoding=True, static_argnums=1)
_end_frame = jitted(decode_steps.end_frame, is_decoding=True, static_argnums=0, donate_argnums=1)


class Stepper:
  """Runs the programs of single steps.

  Args:
    generator: the transformer.
    tokenizer: the tokenizer it was trained on.
    text_encoder: has `null`, the empty prompt.
    layout: the sequence of the training clips.
    mesh: devices that share the work; None for one.
  """

  def __init__(
    self,
    generator: Generator,
    tokenizer: Tokenizer,
    text_encoder,
    layout: Layout,
    mesh: Mesh | None = None,
  ):
    self.generator, self.tokenizer, self.mesh = generator, tokenizer, mesh
    self.text_encoder, self.layout = text_encoder, layout

  def stream(
    self,
    request: Request,
    num_latents: float,
    *,
    slots: int,
    trained_frames: int | None,
    bits: list[Array] | None = None,
  ) -> Iterator[UInt8[np.ndarray, "b f H W 3"]]:
    """Yields given frames, and then those of each latent frame as it is decoded.

    Args:
      request: what to generate.
      num_latents: latent frames; may be infinite.
      slots: earlier frames that a frame sees, see `decode_steps.num_slots`.
      trained_frames: see `decode.decode_frame`.
      bits: of the request's given frames, if any.
    """
    state, pixels, given, t = self._begin(request, slots, trained_frames, bits)
    if given is not None:
      yield given
    while t < num_latents:
      state, out = self._run(
        *(_decode_frame, self.generator, self.layout, state, self._guidance(request, t)),
        **self._draws(request, trained_frames),
      )
      frames, pixels = self.tokenizer.decode_chunk(out.quantized[:, None], pixels)
      yield np.asarray(to_uint8(frames))
      t += 1

  def preview(
    self,
    request: Request,
    num_latents: int,
    *,
    slots: int,
    trained_frames: int | None,
    bits: list[Array] | None = None,
  ) -> Iterator[Preview]:
    """Yields the same frames, and before each what it looks like after each of its scales.

    What they look like is what the tokenizer makes of the sum of the scales so far.
    """
    layout, start = self.layout, 0
    state, pixels, given, first = self._begin(request, slots, trained_frames, bits)
    if given is not None:
      yield Preview(fetch(given), 0, layout.num_scales, layout.num_scales)
      start = given.shape[1]
    for t in range(first, num_latents):
      state = self._run(
        *(_begin_frame, self.generator, layout, state),
        trained_frames=trained_frames,
        prefix_guidance=request.prefix_guidance,
      )
      partial, row = decode_steps.PartialFrame.empty(state), self._guidance(request, t)
      for s in range(layout.num_scales):
        partial = self._run(
          *(_decode_scale, self.generator, layout, state, partial, row[s]),
          **self._draws(request, trained_frames),
        )
        frames, after = self.tokenizer.decode_chunk(partial.quantized[:, None], pixels)
        yield Preview(fetch(to_uint8(frames)), start, s + 1, layout.num_scales)
      state = self._run(_end_frame, layout, state, partial.own, partial.quantized)
      pixels, start = after, start + frames.shape[1]

  def _begin(self, request: Request, slots: int, trained_frames: int | None, bits):
    """Reads prompt and given frames.

    Returns:
      The states of the decoder and of the tokenizer, the given frames' pixels or None, and the
      number of the next latent frame.
    """
    state = self._run(
      _start,
      self.generator,
      self.layout,
      request.texts,
      self.text_encoder.null(),
      request.keys(),
      slots=slots,
      is_guided=request.table is not None,
      is_prefix_guided=request.prefix_guidance is not None,
    )
    if bits is None:
      return state, None, None, 0
    num, latents = bits[0].shape[1], []
    for i in range(num):
      frame_bits = [scale[:, i] for scale in bits]
      state, total = self._run(
        *(_write_frame, self.generator, self.layout, state, frame_bits),
        trained_frames=trained_frames,
        prefix_guidance=request.prefix_guidance,
      )
      latents.append(total)
    frames, pixels = self.tokenizer.decode_chunk(jnp.stack(latents, 1))
    return state, pixels, np.asarray(to_uint8(frames)), num

  def _guidance(self, request: Request, t: int) -> np.ndarray:
    """Returns the guidance of a latent frame's scales."""
    if request.table is None:
      return np.ones(self.layout.num_scales, np.float32)
    return request.table[min(t, len(request.table) - 1)]

  def _draws(self, request: Request, trained_frames: int | None) -> dict:
    return {
      "temperature": request.temperature,
      "top_p": request.top_p,
      "trained_frames": trained_frames,
      "prefix_guidance": request.prefix_guidance,
    }

  def _run(self, function, *arguments, **settings):
    """Calls a jitted function, on the mesh if there is one."""
    return call_on(self.mesh, function, *arguments, **settings)
