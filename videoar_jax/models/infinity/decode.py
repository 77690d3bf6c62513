"""Sampling: scale after scale, with a cache of keys and values. Source: INFINITY section 5.8."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from videoar_jax.models.bits import sample_bits
from videoar_jax.models.infinity.config import InfinitySampling, by_scale
from videoar_jax.models.infinity.layout import Layout
from videoar_jax.models.infinity.network import Infinity
from videoar_jax.models.infinity.text import Prompt
from videoar_jax.models.prompts import Text
from videoar_jax.nn.cache import join
from videoar_jax.nn.patches import join_cells, split_tokens
from videoar_jax.nn.resize import linear_resize
from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes


class Decoded(NamedTuple):
  """Sampled images.

  Attributes:
    bits: one array per scale, uint8 `[b, h_s, w_s, d]`, of latent cells.
    quantized: the accumulated codes `[b, h, w, d]`.
    raw_logits: of both values of the bits of each scale's tokens, `[rows, n, i, 2]`; with guidance
      there are `2 b` rows, those without a prompt last, else `b`.
    logits: the guided ones, of p(bit = 1), `[b, n, i]`, before the temperature.
  """

  bits: list[UInt8[Array, "b _y _x d"]]
  quantized: Float[Array, "b h w d"]
  raw_logits: list[Float[Array, "_rows _n i 2"]]
  logits: list[Float[Array, "b _n i"]]


def decode(
  model: Infinity,
  layout: Layout,
  text: Text,
  keys: Array,
  *,
  guidance: Float[Array | np.ndarray, "s"] | None,
  temperature: Float[Array | np.ndarray, "s"],
  top_k: int = 2,
  top_p: float | Array = 1.0,
  guidance_layers: tuple[int, ...] = (0,),
  negative: Text | None = None,
) -> Decoded:
  """Samples images.

  Args:
    model: the network.
    layout: the sequence.
    text: tokens or features of the prompts, see `TextEncoder`.
    keys: a random key for each sample.
    guidance: scale by scale: `g * conditional + (1 - g) * unconditional`; None for 1 everywhere, at
      half the cost.
    temperature: scale by scale, see `sample_bits`.
    top_k: 1 takes the likelier value of each bit.
    top_p: see `sample_bits`.
    guidance_layers: where both predictions are mixed: 0 for the logits, -1 for the output of the
      last layer and so on.
    negative: prompts in place of the learned "no prompt".
  Raises:
    ValueError: there is no such layer.
  """
  b, d, p = len(text), model.config.num_bits, layout.patch_size
  temperature = jnp.asarray(temperature)
  guidance = None if guidance is None else jnp.asarray(guidance)
  prompt = encode_prompts(model, text, negative, is_guided=guidance is not None)
  prompt_keys = model.prompt_keys(prompt)
  total, seen = jnp.zeros((b, *layout.cell_grids[-1], d)), None
  x = model.first_token(prompt)
  result = Decoded([], total, [], [])
  for s, (grid, cells) in enumerate(zip(layout.grids, layout.cell_grids, strict=True)):
    mix = None if guidance is None else _mixer(guidance[s], guidance_layers, model)
    y, new = model.step(x, prompt, prompt_keys, layout, s, seen, mix)
    raw = model.logits(y, prompt)
    logits = raw[..., 1] - raw[..., 0]
    if guidance is not None:
      logits, without = jnp.split(logits, 2)
      if 0 in guidance_layers:
        logits = guidance[s] * logits + (1 - guidance[s]) * without
    scale_keys = jax.vmap(lambda key, s=s: jax.random.fold_in(key, s))(keys)
    divisor = 0.0 if top_k == 1 else temperature[s]
    bits = sample_bits(scale_keys, logits, temperature=divisor, top_p=top_p)
    bits = split_tokens(bits, grid, p).reshape(b, *cells, d)
    total = total + linear_resize(bits_to_codes(bits), layout.cell_grids[-1])
    for kept, value in ((result.bits, bits), (result.raw_logits, raw), (result.logits, logits)):
      kept.append(value)
    if s + 1 < layout.num_scales:
      seen = new if seen is None else join(seen, new)
      features = linear_resize(total, layout.cell_grids[s + 1]).reshape(b, -1, d)
      features = join_cells(features, layout.grids[s + 1], p)
      x = model.bits_in(features.astype(model.dtype))
      x = jnp.tile(x, (prompt.mask.shape[0] // b, 1, 1))
  return result._replace(quantized=total)


def encode_prompts(
  model: Infinity, text: Text, negative: Text | None, *, is_guided: bool
) -> Prompt:
  """Returns the encoded prompts; with guidance, then those of the unconditional predictions."""
  if not is_guided:
    return model.encode_text(text)
  b = len(text)
  others = text if negative is None else negative
  is_dropped = np.arange(2 * b) >= b if negative is None else None
  return model.encode_text(jnp.concatenate([text, others]), is_dropped)


def _mixer(guidance, guidance_layers: tuple[int, ...], model: Infinity):
  """Returns a function that mixes the outputs of some layers; None if there are none of these."""
  num = model.config.num_layers
  wrong = [layer for layer in guidance_layers if not -num <= layer <= 0]
  if wrong:
    raise ValueError(f"guidance_layer={wrong[0]}: the network's layers are -1 to -{num}")
  chosen = [num + layer for layer in guidance_layers if layer < 0]
  if not chosen:
    return None
  is_chosen = jnp.isin(jnp.arange(num), jnp.array(chosen))

  def mix(number, x):
    conditional, unconditional = jnp.split(x, 2)
    mixed = guidance * conditional + (1 - guidance) * unconditional
    mixed = jnp.concatenate([mixed, mixed]).astype(x.dtype)
    return jnp.where(is_chosen[number] & (guidance != 1), mixed, x)

  return mix


def negative_of(sampling: InfinitySampling, text_encoder) -> Shaped[np.ndarray, "n ..."] | None:
  """Returns the text of a request's negative prompt, tokens or features; None without one."""
  if sampling.negative_prompt is None:
    return None
  return text_encoder.encode(sampling.negative_prompt)


def settings_of(
  sampling: InfinitySampling,
  num_scales: int,
  text: Text,
  negative: Shaped[Array | np.ndarray, "n ..."] | None,
) -> dict[str, Any]:
  """Returns the keyword arguments of `decode` for the settings of a request.

  Args:
    sampling: settings.
    num_scales: scales of an image.
    text: of the prompts, with as many rows as the negative prompt needs.
    negative: see `negative_of`.
  """
  guidance = by_scale("guidance", sampling.guidance, num_scales)
  if negative is not None:
    negative = jnp.broadcast_to(negative[: text.shape[1]], text.shape)
  return {
    "guidance": None if (guidance == 1).all() else guidance,
    "temperature": by_scale("temperature", sampling.temperature, num_scales),
    "top_k": sampling.top_k,
    "top_p": sampling.top_p,
    "guidance_layers": (sampling.guidance_layer,),
    "negative": negative,
  }
