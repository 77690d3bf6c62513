"""Trains InfinityStar on corrupted inputs to predict bits. Source: INFINITY sections S5 to S7."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from videoar_jax.models.infinity_star import generate
from videoar_jax.models.infinity_star.config import (
  DURATION,
  InfinityStarConfig,
  InfinityStarSampling,
  with_duration,
)
from videoar_jax.models.infinity_star.layout import Layout
from videoar_jax.models.infinity_star.loss import clip_losses, weighted_mean
from videoar_jax.models.infinity_star.network import InfinityStar
from videoar_jax.models.infinity_star.sequences import layout_of, released_parts
from videoar_jax.models.request import sample_keys
from videoar_jax.tokenizers.base import TokenizerFamily
from videoar_jax.tokenizers.decoding import decode
from videoar_jax.tokenizers.star.quantizer import corrupt, draw
from videoar_jax.train.state import Template


@dataclasses.dataclass(frozen=True)
class InfinityStarLossConfig:
  """What the generator is trained on.

  Attributes:
    flip_strength: largest share of the bits of a repetition that are flipped in inputs; the share
      of each is drawn.
    reweight: the larger, the less a token of a small scale counts; with 0 all count the same.
    text_dropout: share of prompts that are replaced by the learned "no prompt", which guidance
      needs.
    parts: scales of a video that a step trains on: "all", or "released", one of a few parts at
      random, as for the released models: small scales and at most one large one. All parts are in
      one program, of which a step runs one.
    caption_prefix: what captions of videos begin with, as `sampling.prompt_prefix` does in prompts;
      `{seconds}` stands for the duration.
  """

  flip_strength: float = 0.3
  reweight: float = 4.0
  text_dropout: float = 0.1
  parts: str = "all"
  caption_prefix: str = DURATION

  def __post_init__(self):
    for name in ("flip_strength", "text_dropout"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1]")
    if not self.reweight >= 0:
      raise ValueError(f"reweight={self.reweight} must be a number, 0 or more")
    if self.parts not in ("all", "released"):
      raise ValueError(f"parts={self.parts!r} must be 'all' or 'released'")

  def complete_caption(self, text: str, seconds: float) -> str:
    """Returns a caption as the network gets it; see `models.base.CaptionLoss`."""
    return with_duration(self.caption_prefix, text, seconds)


class InfinityStarTask:
  """The training task of InfinityStar, with a frozen tokenizer.

  Args:
    config: the network.
    layout: the sequence of the clips to show.
    settings: what it is trained on.
    family: of the tokenizer.
    tokenizer: structure of the frozen autoencoder.
    tokenizer_params: its parameters.
    sampling: of the samples to show.
  """

  def __init__(
    self,
    config: InfinityStarConfig,
    layout: Layout,
    settings: InfinityStarLossConfig,
    family: TokenizerFamily,
    tokenizer: Template | None,
    tokenizer_params: dict,
    sampling: InfinityStarSampling,
  ):
    self.config, self.layout, self.settings = config, layout, settings
    self.family, self.tokenizer, self.frozen = family, tokenizer, tokenizer_params
    self.sampling, self.adversary = sampling, None

  def init(self, key) -> InfinityStar:
    """Makes the network."""
    return InfinityStar(nnx.Rngs(params=key), self.config)

  def loss(self, module: InfinityStar, frozen, batch, key, is_training: bool):
    """Returns the weighted cross-entropy per bit, and the share of right bits.

    The batch needs `text`, `[b, P]` or `[b, P, e]`, and `video`, uint8 `[b, f, H, W, 3]`, or its
    encoded `latents`, `[b, t, h, w, c]`. Outside training all scales are predicted, nothing is
    corrupted or dropped.
    """
    if "latents" in batch:
      latents = batch["latents"].astype(jnp.float32)
    else:
      latents = self.family.encode(self.tokenizer.module(frozen), batch["video"])
      latents = jax.lax.stop_gradient(latents)
    layout, settings = layout_of(self.config, latents.shape[1:4]), self.settings
    keys = jax.random.split(key, 3)
    strength = settings.flip_strength if is_training else 0.0
    draws = draw(keys[0], layout.schedule, len(latents), strength)
    selected = corrupt(latents, layout.schedule, draws)
    is_dropped, metrics = None, {}
    if is_training:
      is_dropped = jax.random.bernoulli(keys[1], settings.text_dropout, (len(latents),))
      metrics["dropped_share"] = jnp.mean(is_dropped)

    def part_loss(layout: Layout, module: InfinityStar):
      losses = clip_losses(
        module, batch["text"], selected, draws.selected, layout, is_dropped=is_dropped
      )
      weights = layout.weights(settings.reweight)
      return weighted_mean(losses.cross_entropy, weights), jnp.mean(losses.accuracy)

    if is_training and settings.parts == "released" and layout.schedule[-1].pyramid:
      loss, accuracy = _one_part(part_loss, layout, module, keys[2])
    else:
      loss, accuracy = part_loss(layout, module)
    return loss, metrics | {"bit_accuracy": accuracy}

  def is_trained(self, name: str) -> bool:
    """See `SelectiveTask`: adapters alone, if there are any."""
    return not self.config.lora_rank or ".lora_" in name

  def is_decayed(self, name: str) -> bool:
    """See `SelectiveTask`: all matrices."""
    return not name.endswith((".bias", ".scale"))

  def rates(self, clips_per_s: float) -> dict[str, float]:
    """Returns tokens per second, of sequences with all scales."""
    return {"tokens_per_s": clips_per_s * self.layout.length}

  def media(self, module: InfinityStar, frozen, batch) -> dict[str, Array]:
    """Returns samples for the batch's prompts."""
    # The cache has the type of the parameters. Products are in `config.dtype` in training, too.
    module = jax.tree.map(lambda x: x.astype(self.config.dtype), module)
    plan = generate.Plan.of(self.layout, self.sampling)
    keys = sample_keys(0, jnp.arange(len(batch["text"])))
    is_guided = self.sampling.guidance != 1
    prompts = generate.prompts_of(module, batch["text"], None, is_guided)
    latents = generate.generate(module, plan, prompts, jax.random.key_data(keys))
    return {"samples": decode(self.tokenizer.module(frozen).decoder, latents)}


def _one_part(part_loss, layout: Layout, module, key: Array):
  """Returns the loss of one of the released parts of a sequence.

  The backward pass computes the part again: what it needs would be kept of all parts otherwise.
  """
  parts = released_parts(layout.schedule)
  branches = [
    jax.checkpoint(functools.partial(part_loss, dataclasses.replace(layout, kept=part.kept)))
    for part in parts
  ]
  shares = np.array([part.share for part in parts], np.float32)
  index = jax.random.choice(key, len(parts), p=jnp.asarray(shares))
  return jax.lax.switch(index, branches, module)
