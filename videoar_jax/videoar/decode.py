"""Cached decoding over frames and scales: one program, static shapes.

Each step samples the bits of one scale in parallel. Guidance runs both halves in one batch. With
`past="final"` one more step writes a frame's complete latent to the cache.

Source: VIDEOAR section 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from videoar_jax.nn.resize import area_resize, linear_resize
from videoar_jax.tokenizer.quantizer import bits_to_codes
from videoar_jax.videoar.layout import Layout
from videoar_jax.videoar.model import Generator, attention_mask


class Decoded(NamedTuple):
  """What decoding gives.

  Attributes:
    bits: a scale each, uint8 `[b, t, h_s, w_s, d]`.
    latents: the accumulated codes `[b, t, h, w, d]`.
    logits: guided logits of each token `[b, t, n, d]`.
  """

  bits: list[UInt8[Array, "b t y x d"]]
  latents: Float[Array, "b t h w d"]
  logits: Float[Array, "b t n d"]


def sample_keys(seed: int, first: int, num: int) -> Array:
  """Returns a key for each sample, a function of the seed and the sample's number alone."""
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(first + jnp.arange(num))


def sample_bits(
  keys: Array,
  logits: Float[Array, "b n d"],
  *,
  temperature: float | Array,
  top_p: float | Array,
) -> UInt8[Array, "b n d"]:
  """Draws bits.

  Args:
    keys: a key for each sample.
    logits: of p(bit = 1).
    temperature: divides the logits; 0 takes the likelier value.
    top_p: a value of probability <= 1 - top_p is dropped; 1 keeps both.
  """
  safe = jnp.where(temperature > 0, temperature, 1.0)
  p = jax.nn.sigmoid(logits / safe)
  likelier = p > 0.5
  uniform = jax.vmap(lambda key: jax.random.uniform(key, logits.shape[1:]))(keys)
  is_dropped = (jnp.minimum(p, 1 - p) <= 1 - top_p) | (temperature <= 0)
  return jnp.where(is_dropped, likelier, uniform < p).astype(jnp.uint8)


def decode(
  model: Generator,
  layout: Layout,
  text: Int[Array, "b P"],
  null_text: Int[Array, "P"],
  keys: Array,
  guidance: Float[Array, "t s"],
  *,
  temperature: float | Array = 1.0,
  top_p: float | Array = 1.0,
  pad_id: int = 0,
  window: int | None = None,
  forced_bits: list[UInt8[Array, "b t y x d"]] | None = None,
  num_forced: int | Array = 0,
) -> Decoded:
  """Generates the bits of a clip.

  Args:
    model: the transformer.
    layout: the sequence to generate.
    text: tokens of each prompt.
    null_text: tokens of the empty prompt, for guidance.
    keys: a key for each sample.
    guidance: `g * conditional + (1 - g) * unconditional`, on logits.
    temperature: see `sample_bits`.
    top_p: see `sample_bits`.
    pad_id: padding among the text tokens.
    window: number of earlier frames a frame sees; None for all.
    forced_bits: bits to take instead of sampled ones, for the first `num_forced` frames.
    num_forced: how many frames are given.
  Raises:
    ValueError: the layout is longer than the model's learned positions.
  """
  if model.position_embedding is not None:
    trained = model.position_embedding.table.shape[0]
    if layout.length > trained:
      raise ValueError(f"layout: {layout.length} tokens are more than {trained} learned positions")
  b = text.shape[0]
  texts = jnp.concatenate([text, jnp.broadcast_to(null_text, text.shape)])
  text_mask = texts != pad_id
  keep = None
  if window is not None:
    frames = jnp.arange(layout.num_frames)
    keep = (frames[:, None] - frames[None, :] <= window)[None].repeat(2 * b, 0)
  mask = attention_mask(layout, text_mask, keep)
  angles = model.angles(layout.positions)
  positions = model.position_embedding

  def embed_positions(x, offset):
    if positions is None:
      return x
    return x + positions(offset + jnp.arange(x.shape[1])).astype(x.dtype)

  def run(x, cache, offset):
    rows = jax.lax.dynamic_slice_in_dim(mask, offset, x.shape[1], axis=1)
    turns = None
    if angles is not None:
      turns = jax.lax.dynamic_slice_in_dim(angles, offset, x.shape[1], axis=0)
    return model.run(embed_positions(x, offset), turns, rows, cache=cache, offset=offset)

  dtype = model.feature_in.kernel.dtype
  num_bits = model.config.num_bits
  cache = model.init_cache(2 * b, layout, dtype)
  _, cache = run(model.embed_text(texts, dtype), cache, 0)

  def write_final(cache, total, start):
    features = jnp.tile(model.final_features(total.reshape(b, -1, num_bits)), (2, 1, 1))
    tokens = slice(layout.frame_size, layout.frame_stride)
    x = model.embed_features(features, layout, jnp.asarray(False), tokens)
    return run(x, cache, start + tokens.start)[1]

  def keep_cache(cache, total, start):
    return cache

  def decode_frame(carry, frame):
    cache, before = carry
    t, frame_guidance, forced = frame
    total = jnp.zeros_like(before)
    start = layout.text_length + t * layout.frame_stride
    frame_bits, frame_logits = [], []
    for s, grid in enumerate(layout.schedule):
      tokens = layout.scale_slice(s)
      inputs = area_resize(before, grid) if s == 0 else linear_resize(total, grid)
      if layout.previous == "all":
        inputs = jnp.concatenate([inputs, area_resize(before, grid)], axis=-1)
      features = jnp.tile(inputs.reshape(b, grid[0] * grid[1], -1), (2, 1, 1))
      x = model.embed_features(features, layout, t == 0, tokens)
      y, cache = run(x, cache, start + tokens.start)
      conditional, unconditional = jnp.split(model.logits(y), 2)
      g = frame_guidance[s]
      logits = g * conditional + (1 - g) * unconditional
      step_keys = jax.vmap(lambda key, s=s: jax.random.fold_in(jax.random.fold_in(key, t), s))(keys)
      bits = sample_bits(step_keys, logits, temperature=temperature, top_p=top_p)
      bits = bits.reshape(b, *grid, num_bits)
      if forced is not None:
        bits = jnp.where(t < num_forced, forced[s], bits)
      total = total + linear_resize(bits_to_codes(bits, dtype), layout.grid)
      frame_bits.append(bits)
      frame_logits.append(logits)
    if layout.final_size:
      cache = jax.lax.cond(t + 1 < layout.num_frames, write_final, keep_cache, cache, total, start)
    return (cache, total), (frame_bits, total, jnp.concatenate(frame_logits, 1))

  forced = None
  if forced_bits is not None:
    forced = [jnp.moveaxis(bits, 1, 0) for bits in forced_bits]
  before = jnp.zeros((b, *layout.grid, num_bits), dtype)
  frames = (jnp.arange(layout.num_frames), jnp.asarray(guidance), forced)
  _, out = jax.lax.scan(decode_frame, (cache, before), frames)
  bits, latents, logits = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), out)
  return Decoded(bits, latents, logits)
