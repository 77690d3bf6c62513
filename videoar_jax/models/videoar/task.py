"""Trains the transformer on corrupted inputs to predict bits. Source: VIDEOAR 3.5 to 3.7."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videoar_jax.models.bits import SCALE_WEIGHTINGS, cross_entropy, scale_weights
from videoar_jax.models.request import sample_keys
from videoar_jax.models.videoar import corruption as corrupting
from videoar_jax.models.videoar.config import GeneratorConfig
from videoar_jax.models.videoar.decode import decode
from videoar_jax.models.videoar.flops import training_flops
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.models.videoar.score import accuracies
from videoar_jax.models.videoar.sequences import widest
from videoar_jax.parallel.hardware import peak_flops
from videoar_jax.tokenizers.bsq.self_correction import draw_flips
from videoar_jax.tokenizers.decoding import decode as decode_pixels
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.train.state import Template


@dataclasses.dataclass(frozen=True)
class GeneratorLossConfig:
  """What the generator is trained on.

  Attributes:
    corruption: bits that are flipped in the inputs, the paper's cross-frame error correction.
    p_frame_mask: probability that a frame does not see a given earlier frame.
    window: earlier latent frames that a frame attends to; None for all.
    text_dropout: share of prompts that are replaced by the empty one, for classifier-free guidance.
    scale_weighting: "none" weights every token equally; "sqrt" divides the weight of a scale by the
      square root of its number of cells, so that coarse scales count for more.
    bit_weighting: "none" weights every bit equally; "residual" by how far the latent is from the
      border between both values, relative to the mean of its scale and clip. Not in the paper.
  """

  corruption: corrupting.CorruptionConfig = dataclasses.field(
    default_factory=corrupting.CorruptionConfig
  )
  p_frame_mask: float = 0.0
  window: int | None = None
  text_dropout: float = 0.1
  scale_weighting: str = "none"
  bit_weighting: str = "none"

  def __post_init__(self):
    for name in ("p_frame_mask", "text_dropout"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1]")
    if self.window is not None and self.window < 1:
      raise ValueError(f"window={self.window} must be at least 1, or None for all frames")
    if self.scale_weighting not in SCALE_WEIGHTINGS:
      raise ValueError(f"scale_weighting={self.scale_weighting!r} must be 'none' or 'sqrt'")
    if self.bit_weighting not in ("none", "residual"):
      raise ValueError(f"bit_weighting={self.bit_weighting!r} must be 'none' or 'residual'")


def cell_weights(layout: Layout, scale_weighting: str) -> np.ndarray:
  """Returns the weight of each cell of a frame in the loss, `[q]`, with mean 1."""
  return scale_weights(layout.cell_sizes, scale_weighting)


def bit_weights(residuals: list[Float[Array, "b t _y _x d"]]) -> Float[Array, "b t q d"]:
  """Returns the weight of each bit in the loss: its residual's size, with mean 1 in each scale."""
  weights = []
  for residual in residuals:
    size = jnp.abs(residual)
    mean = jnp.mean(size, axis=(1, 2, 3, 4), keepdims=True)
    size = size / jnp.maximum(mean, 1e-6)
    weights.append(size.reshape(*size.shape[:2], -1, size.shape[-1]))
  return jnp.concatenate(weights, axis=2)


class GeneratorTask:
  """The training task of the transformer, with a frozen tokenizer.

  Args:
    config: its network.
    layout: the sequence.
    loss: what it is trained on.
    tokenizer: structure of the frozen autoencoder.
    tokenizer_params: its parameters.
    text_encoder: with `null`.
    sampling: `guidance` (a table `[t, s]`), `temperature`, `top_p`, `window` and `prefix_guidance`
      (as `decode` takes it) of the samples to show.
    others: layouts of batches of other shapes, if any.
  """

  def __init__(
    self,
    config: GeneratorConfig,
    layout: Layout,
    loss: GeneratorLossConfig,
    tokenizer: Template | None,
    tokenizer_params: dict,
    text_encoder,
    sampling: dict,
    others: tuple[Layout, ...] = (),
  ):
    self.config, self.layout, self.settings = config, layout, loss
    self.layouts = {(each.num_frames, *each.grid): each for each in (*others, layout)}
    self.tokenizer, self.frozen = tokenizer, tokenizer_params
    self.adversary = None
    self.text_encoder, self.sampling = text_encoder, sampling

  def init(self, key) -> Generator:
    """Makes the transformer."""
    return Generator(nnx.Rngs(params=key), self.config, widest(self.layouts.values()))

  def loss(self, module: Generator, frozen, batch, key, is_training: bool):
    """Returns the binary cross-entropy per bit, and the accuracy by scale and by frame.

    The batch needs `text`, `[b, P]` or `[b, P, c]`, and `video`, uint8 `[b, f, H, W, 3]`, or its
    encoded `latents`, `[b, t, h, w, d]`. Outside training nothing is corrupted, hidden or dropped.
    """
    settings = self.settings
    if "latents" in batch:
      latents = batch["latents"].astype(jnp.float32)
    else:
      latents = encode(self.tokenizer.module(frozen).encoder, batch["video"])
      latents = jax.lax.stop_gradient(latents)
    b, t, h, w, d = latents.shape
    layout = self.layouts[t, h, w]
    keys = jax.random.split(key, 4)
    text, flips, keep, metrics = batch["text"], None, None, {}
    if is_training:
      if settings.corruption.p_max > 0:
        ratios = corrupting.draw_ratios(keys[0], b, t, layout.num_scales, settings.corruption)
        flips = draw_flips(keys[1], ratios, layout.schedule, d)
        flipped = sum(jnp.sum(scale) for scale in flips)
        metrics["corrupted_share"] = flipped / (b * t * layout.num_cells * d)
      each = (b,) + (1,) * (text.ndim - 1)
      is_dropped = jax.random.bernoulli(keys[2], settings.text_dropout, each)
      text = jnp.where(is_dropped, jnp.asarray(self.text_encoder.null()), text)
      metrics["dropped_share"] = jnp.mean(is_dropped)
    if is_training and settings.p_frame_mask > 0:
      keep = corrupting.draw_frame_keep(keys[3], b, t, p_mask=settings.p_frame_mask)
    inputs = corrupting.corrupt(latents, layout.schedule, flips, layout.prev_frame_input)
    logits = module(
      text,
      inputs.features,
      layout,
      quantized=inputs.quantized,
      frame_keep=keep,
      window=settings.window,
    )
    labels = jnp.concatenate([scale.reshape(b, t, -1, d) for scale in inputs.labels], axis=2)
    losses = cross_entropy(logits, labels)
    if settings.bit_weighting == "residual":
      losses = losses * bit_weights(inputs.residuals)
    weights = cell_weights(layout, settings.scale_weighting)
    right = accuracies((logits > 0) == (labels > 0), layout)
    metrics |= {name: jnp.mean(share) for name, share in right.items()}
    return jnp.mean(losses * weights[:, None]), metrics

  def rates(self, clips_per_s: float) -> dict[str, float]:
    """Returns tokens per second, and the share of the devices' peak FLOP/s if that is known.

    The frozen tokenizer's FLOPs are not counted.
    """
    rates = {"tokens_per_s": clips_per_s * self.layout.length}
    peak = peak_flops()
    if peak is not None:
      flops = training_flops(self.config, self.layout, self.settings.window)
      rates["flops_utilisation"] = clips_per_s * flops / peak
    return rates

  def media(self, module: Generator, frozen, batch):
    """Returns samples for the batch's prompts."""
    # The cache has the type of the parameters. Products are in `config.dtype` in training, too.
    decoded = decode(
      jax.tree.map(lambda x: x.astype(self.config.dtype), module),
      self.layout,
      batch["text"],
      jnp.asarray(self.text_encoder.null()),
      sample_keys(0, jnp.arange(batch["text"].shape[0])),
      self.sampling["guidance"],
      temperature=self.sampling["temperature"],
      top_p=self.sampling["top_p"],
      window=self.sampling["window"],
      prefix_guidance=self.sampling["prefix_guidance"],
    )
    decoder = self.tokenizer.module(frozen).decoder
    return {"samples": decode_pixels(decoder, decoded.quantized)}
