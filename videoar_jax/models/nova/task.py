"""Trains NOVA: diffusion of a frame's unknown tokens, given the known ones and earlier frames."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from videoar_jax.models.nova import generate, loss
from videoar_jax.models.nova.config import NovaConfig, NovaSampling
from videoar_jax.models.nova.flops import Sizes, mean_flops, training_flops
from videoar_jax.models.nova.network import Nova
from videoar_jax.models.nova.orders import UnknownShare
from videoar_jax.parallel.hardware import peak_flops
from videoar_jax.tokenizers.base import TokenizerConfig, TokenizerFamily
from videoar_jax.tokenizers.decoding import decode
from videoar_jax.train.state import Template


@dataclasses.dataclass(frozen=True)
class NovaLossConfig:
  """What the generator is trained on.

  Attributes:
    repeats: how often each token is noised in a step, with other noise.
    min_unknown: least share of a frame's tokens that is unknown in a step. Sampling ends with few
      unknown ones, which few tokens a frame do not teach by themselves: take less for these.
    unknown_deviation: of the share's normal distribution, which is cut off at 1, its mean, and
      below; large for a uniform one.
    num_known_ranges: into how many ranges the numbers of known tokens are divided, each with its
      own branch of the program: steps compute less padding, and take longer to compile.
    text_dropout: share of prompts that are replaced by "no condition", which guidance needs.
    sample_posterior: draw latents from the tokenizer's distribution at every step, as the public
      code does; otherwise its means. Outside training, latents are always the means.
    frozen: parts of the network that keep their initial values, by dotted name, such as
      "temporal.motion"; see configs/nova_t2i.py for what the public code freezes.
  """

  repeats: int = 4
  min_unknown: float = 0.7
  unknown_deviation: float = 0.25
  num_known_ranges: int = 1
  text_dropout: float = 0.1
  sample_posterior: bool = True
  frozen: tuple[str, ...] = ()

  def __post_init__(self):
    object.__setattr__(self, "frozen", tuple(self.frozen))
    if self.repeats < 1:
      raise ValueError(f"repeats={self.repeats} must be at least 1")
    if not 0 <= self.min_unknown <= 1:
      raise ValueError(f"min_unknown={self.min_unknown} must be in [0, 1]")
    if not 0 < self.unknown_deviation < math.inf:
      raise ValueError(f"unknown_deviation={self.unknown_deviation} must be positive")
    if self.num_known_ranges < 1:
      raise ValueError(f"num_known_ranges={self.num_known_ranges} must be at least 1")
    if not 0 <= self.text_dropout < 1:
      raise ValueError(f"text_dropout={self.text_dropout} must be in [0, 1)")

  @property
  def unknown(self) -> UnknownShare:
    """How many tokens are unknown in a step."""
    return UnknownShare(self.min_unknown, self.unknown_deviation, self.num_known_ranges)


# Stands for what prompts lack, and is random for good.
PADDING = "temporal.text.padding"


def is_part(name: str, part: str) -> bool:
  """Returns whether a parameter belongs to a part of the network, by their dotted names."""
  return f"{name}.".startswith(f"{part}.")


def null_of(text_encoder) -> np.ndarray:
  """Returns the text that stands for "no condition"; of features, all of it is padding."""
  null = text_encoder.null()
  return np.zeros_like(null) if text_encoder.text_dim else null


def guidance_of(sampling: NovaSampling) -> generate.Guidance:
  """Returns how predictions are mixed."""
  return generate.Guidance(
    sampling.guidance,
    sampling.min_guidance,
    sampling.guidance_trunc,
    sampling.guidance_renorm,
    sampling.image_guidance,
  )


def plan_of(
  config: NovaConfig, sampling: NovaSampling, latent_shape: tuple[int, int, int]
) -> generate.Plan:
  """Returns how clips of a shape are sampled.

  Args:
    config: the network.
    sampling: settings.
    latent_shape: (t, h, w) of a clip.
  """
  return generate.Plan(
    latent_shape[0],
    tuple(latent_shape[1:]),
    sampling.num_ar_steps,
    sampling.num_diffusion_steps,
    config.process(sampling.flow_shift),
    guidance_of(sampling),
  )


class NovaTask:
  """The training task of NOVA, with a frozen tokenizer.

  Args:
    config: the network.
    latent_shape: (t, h, w) of the clips to show.
    settings: what it is trained on.
    family: of the tokenizer.
    tokenizer: structure of the frozen autoencoder.
    tokenizer_params: its parameters.
    text_encoder: with `null`.
    sampling: of the samples to show.
    tokenizer_config: draws latents from what the tokenizer makes of a clip.
  """

  def __init__(
    self,
    config: NovaConfig,
    latent_shape: tuple[int, int, int],
    settings: NovaLossConfig,
    family: TokenizerFamily,
    tokenizer: Template | None,
    tokenizer_params: dict,
    text_encoder,
    sampling: NovaSampling,
    tokenizer_config: TokenizerConfig,
  ):
    self.tokenizer_config = tokenizer_config
    self.config, self.settings, self.family = config, settings, family
    self.tokenizer, self.frozen = tokenizer, tokenizer_params
    self.text_encoder, self.adversary = text_encoder, None
    self.plan = plan_of(config, sampling, latent_shape)
    self.sizes = Sizes.of(config, latent_shape, settings.unknown)

  def init(self, key) -> Nova:
    """Makes the network."""
    return Nova(nnx.Rngs(params=key), self.config)

  def is_trained(self, name: str) -> bool:
    """See `SelectiveTask`."""
    return not any(is_part(name, part) for part in (PADDING, *self.settings.frozen))

  def is_decayed(self, name: str) -> bool:
    """See `SelectiveTask`: all but norms, as in the public code. Source: NOVA section 15."""
    *parents, _ = name.split(".")
    return not any(part.endswith("norm") for part in parents)

  def loss(self, module: Nova, frozen, batch, key, is_training: bool):
    """Returns the loss, and those of first and of later frames.

    The batch needs `text`, `[b, P]` or `[b, P, e]`, and `video`, uint8 `[b, f, H, W, 3]`, or
    `latents`, what a token cache stores of it, `[b, t, h, w, e]`. It may have `flow`, `[b]`: how
    much moves, in pixels a frame, or NaN for the default. Outside training no prompt is dropped,
    and latents are means.
    """
    dtype = jnp.dtype(self.config.dtype)
    latents = self._latents(frozen, batch, key if is_training else None)
    b, t, h, w, _ = latents.shape
    keys = jax.random.split(key)
    text = batch["text"]
    if is_training:
      each = (b,) + (1,) * (text.ndim - 1)
      is_dropped = jax.random.bernoulli(keys[0], self.settings.text_dropout, each)
      text = jnp.where(is_dropped, jnp.asarray(null_of(self.text_encoder)), text)
    num_tokens = (h // self.config.patch_size) * (w // self.config.patch_size)
    process = self.config.process()
    unknown, width = self.settings.unknown, self.config.token_width
    draws = loss.draw(keys[1], b * t, num_tokens, width, self.settings.repeats, process, unknown)
    prefix = module.temporal.prefix(text, batch.get("flow"), dtype)
    total, (first, later) = loss.training_loss(module, latents, prefix, draws, process, unknown)
    return total, {"loss_first": first, "loss_later": later} if t > 1 else {}

  def _latents(self, frozen, batch, key: jax.Array | None) -> Array:
    """Returns the latents of a batch; in training, with a key, as `sample_posterior` says."""
    if "latents" in batch:
      encoded = batch["latents"].astype(jnp.float32)
    else:
      encoded = self.family.encode_posterior(self.tokenizer.module(frozen), batch["video"])
      encoded = jax.lax.stop_gradient(encoded)
    if key is None or not self.settings.sample_posterior:
      return self.tokenizer_config.latents_of(encoded)
    return self.tokenizer_config.latents_of(encoded, jax.random.fold_in(key, 2))

  def rates(self, clips_per_s: float) -> dict[str, float]:
    """Returns tokens per second, and the share of the devices' peak FLOP/s if that is known.

    The frozen tokenizer's FLOPs are not counted.
    """
    rates = {"tokens_per_s": clips_per_s * self.sizes.total}
    peak = peak_flops()
    if peak is not None:
      settings = self.settings
      flops = mean_flops(
        training_flops, self.config, self.sizes, settings.unknown, settings.repeats
      )
      rates["flops_utilisation"] = clips_per_s * flops / peak
    return rates

  def media(self, module: Nova, frozen, batch) -> dict[str, Array]:
    """Returns samples for the batch's prompts."""
    latents = generate.generate(
      jax.tree.map(lambda x: x.astype(self.config.dtype), module),
      self.plan,
      batch["text"],
      jnp.asarray(null_of(self.text_encoder)),
      None,
      generate.key_draws(0, jnp.arange(len(batch["text"])), self.plan, self.config),
    )
    decoder = self.tokenizer.module(frozen).decoder
    return {"samples": decode(decoder, latents.astype(jnp.float32))}
