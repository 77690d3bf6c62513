"""Trains Infinity: the bits of every scale, given coarser scales with flipped bits.

Source: INFINITY sections 4, 5.2 and 5.6.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videoar_jax.models.bits import SCALE_WEIGHTINGS, cross_entropy, scale_weights
from videoar_jax.models.infinity.config import InfinityConfig, InfinitySampling
from videoar_jax.models.infinity.decode import Decoded, decode, negative_of, settings_of
from videoar_jax.models.infinity.layout import Layout
from videoar_jax.models.infinity.network import Infinity
from videoar_jax.models.prompts import Text
from videoar_jax.models.request import sample_keys
from videoar_jax.nn.patches import join_cells
from videoar_jax.tokenizers.bsq.self_correction import SelfCorrected, draw_flips, self_correct
from videoar_jax.tokenizers.decoding import decode as decode_pixels
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.train.state import Template


@dataclasses.dataclass(frozen=True)
class InfinityLossConfig:
  """What the generator is trained on; defaults are those of the public training script.

  Attributes:
    flip_strength: largest share of the bits of a scale that are flipped in the inputs of later
      ones; each step draws a share for each scale, in whole percents. 0 for none.
    text_dropout: share of prompts that are replaced by the learned "no prompt", for guidance.
    layer_dropout: share of samples for which the last layer's self-attention is skipped, and
      likewise its MLP; earlier layers proportionally less.
    scale_weighting: "none" weights every token equally; "sqrt" divides the weight of a scale by the
      square root of its number of tokens, so that coarse scales count for more.
  """

  flip_strength: float = 0.3
  text_dropout: float = 0.1
  layer_dropout: float = 0.1
  scale_weighting: str = "sqrt"

  def __post_init__(self):
    for name in ("flip_strength", "text_dropout", "layer_dropout"):
      value = getattr(self, name)
      if not 0 <= value < 1:
        raise ValueError(f"{name}={value} must be in [0, 1)")
    if self.scale_weighting not in SCALE_WEIGHTINGS:
      raise ValueError(
        f"scale_weighting={self.scale_weighting!r} must be {' or '.join(SCALE_WEIGHTINGS)}"
      )


def draw_ratios(key: Array, num_scales: int, strength: float) -> Float[Array, "s"]:
  """Draws the share of flipped bits of each scale, the same for a whole batch: 0, 1% and so on."""
  return jax.random.randint(key, (num_scales,), 0, int(100 * strength + 1)) * 0.01


def draw_branch_scales(
  key: Array, num_layers: int, batch_size: int, dropout: float
) -> Float[Array, "n_layers 2 b"]:
  """Draws the factors of each layer's branches: 0 where dropped, larger elsewhere, with mean 1."""
  keep = 1 - jnp.linspace(0.0, dropout, num_layers)[:, None, None]
  return jax.random.bernoulli(key, keep, (num_layers, 2, batch_size)) / keep


def tokens_of(batch: SelfCorrected, layout: Layout) -> tuple[Array, Array]:
  """Returns the inputs of all tokens but the first one, and the labels of all, of single frames.

  Args:
    batch: of cells.
    layout: the sequence.
  """
  b, p, d = len(batch.quantized), layout.patch_size, batch.quantized.shape[-1]
  labels = [
    join_cells(bits.reshape(b, -1, d), grid, p)
    for bits, grid in zip(batch.labels, layout.grids, strict=True)
  ]
  features = [
    join_cells(cells[:, 0], grid, p)
    for cells, grid in zip(batch.features, layout.grids[1:], strict=True)
  ]
  return jnp.concatenate(features, axis=1), jnp.concatenate(labels, axis=1)


def predict(
  module: Infinity,
  layout: Layout,
  text: Text,
  latents: Float[Array, "b 1 h w d"],
  *,
  flips: list | None = None,
  is_dropped: Bool[Array, "b"] | None = None,
  branch_scale: Float[Array, "n_layers 2 b"] | None = None,
) -> tuple[Float[Array, "b l i"], dict[str, Float[Array, "b"]]]:
  """Returns the cross-entropy of each bit, teacher-forced, and each sample's shares of right bits.

  Args:
    module: the network.
    layout: the sequence.
    text: tokens or features of the prompts.
    latents: unquantized.
    flips: bits to flip in the inputs, see `self_correct`.
    is_dropped: see `TextEncoder`.
    branch_scale: see `Block`.
  """
  features, labels = tokens_of(self_correct(latents, layout.cell_grids, flips), layout)
  logits = module(module.encode_text(text, is_dropped), features, layout, branch_scale)
  logits = logits[..., 1] - logits[..., 0]
  share = jnp.mean((logits > 0) == (labels > 0), axis=2)
  found = {"bit_accuracy": jnp.mean(share, axis=1)}
  for s in range(layout.num_scales):
    found[f"bit_accuracy/scale_{s}"] = jnp.mean(share[:, layout.slice_of(s)], axis=1)
  return cross_entropy(logits, labels), found


# Besides norms and biases, what the public code does not decay.
_NOT_DECAYED = (
  *("text.no_prompt", "start", "text.pool.query", "level_embedding.table"),
  *("blocks.modulation", "blocks.attention.log_scale"),
)


class InfinityTask:
  """The training task of Infinity, with a frozen tokenizer.

  Args:
    config: the network.
    layouts: sequences of all shapes of images, the one to show first.
    settings: what it is trained on.
    tokenizer: structure of the frozen autoencoder.
    tokenizer_params: its parameters.
    text_encoder: with `encode`.
    sampling: of the samples to show.
  """

  def __init__(
    self,
    config: InfinityConfig,
    layouts: tuple[Layout, ...],
    settings: InfinityLossConfig,
    tokenizer: Template | None,
    tokenizer_params: dict,
    text_encoder,
    sampling: InfinitySampling,
  ):
    self.config, self.settings = config, settings
    self.layout = layouts[0]
    self.layouts = {layout.cell_grids[-1]: layout for layout in reversed(layouts)}
    self.tokenizer, self.frozen, self.adversary = tokenizer, tokenizer_params, None
    self.text_encoder, self.sampling = text_encoder, sampling

  def is_trained(self, name: str) -> bool:
    """See `SelectiveTask`."""
    return True

  def is_decayed(self, name: str) -> bool:
    """See `SelectiveTask`. Source: INFINITY section 5.7."""
    return not name.endswith((".bias", ".scale")) and name not in _NOT_DECAYED

  def init(self, key) -> Infinity:
    """Makes the network."""
    return Infinity(nnx.Rngs(params=key), self.config)

  def loss(self, module: Infinity, frozen, batch, key, is_training: bool):
    """Returns the cross-entropy per bit, and the accuracy by scale.

    The batch needs `text`, `[b, P]` or `[b, P, c]`, and `video`, uint8 `[b, 1, H, W, 3]`, or its
    encoded `latents`, `[b, 1, h, w, d]`. Outside training nothing is flipped or dropped.
    """
    settings = self.settings
    if "latents" in batch:
      latents = batch["latents"].astype(jnp.float32)
    else:
      latents = encode(self.tokenizer.module(frozen).encoder, batch["video"])
      latents = jax.lax.stop_gradient(latents)
    b, _, h, w, d = latents.shape
    layout, changes, metrics = self.layouts[h, w], {}, {}
    if is_training:
      keys = jax.random.split(key, 4)
      ratios = draw_ratios(keys[0], layout.num_scales, settings.flip_strength)
      ratios = jnp.broadcast_to(ratios, (b, 1, layout.num_scales))
      is_dropped = jax.random.bernoulli(keys[2], settings.text_dropout, (b,))
      changes = {
        "flips": draw_flips(keys[1], ratios, layout.cell_grids, d),
        "is_dropped": is_dropped,
        "branch_scale": draw_branch_scales(
          keys[3], self.config.num_layers, b, settings.layer_dropout
        ),
      }
      metrics = {"dropped_share": jnp.mean(is_dropped)}
    losses, shares = predict(module, layout, batch["text"], latents, **changes)
    weights = scale_weights(layout.sizes, settings.scale_weighting)
    metrics |= {name: jnp.mean(share) for name, share in shares.items()}
    return jnp.mean(losses * weights[:, None]), metrics

  def rates(self, clips_per_s: float) -> dict[str, float]:
    """Returns tokens per second."""
    return {"tokens_per_s": clips_per_s * self.layout.length}

  def media(self, module: Infinity, frozen, batch) -> dict[str, Array]:
    """Returns samples for the batch's prompts."""
    # The cache has the type of the parameters. Products are in `config.dtype` in training, too.
    module = jax.tree.map(lambda x: x.astype(self.config.dtype), module)
    found = sample(module, self.layout, batch["text"], 0, self.text_encoder, self.sampling)
    decoder = self.tokenizer.module(frozen).decoder
    return {"samples": decode_pixels(decoder, found.quantized[:, None])}


def sample(
  module: Infinity, layout: Layout, text: Text, seed, text_encoder, sampling: InfinitySampling
) -> Decoded:
  """Samples an image for each prompt, with the numbers 0, 1 and so on under a seed."""
  keys = sample_keys(seed, jnp.arange(len(text)))
  settings = settings_of(sampling, layout.num_scales, text, negative_of(sampling, text_encoder))
  return decode(module, layout, text, keys, **settings)
