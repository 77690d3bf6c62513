"""Sampling requests, checked and completed with defaults."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from videoar_jax.models.base import ClipShape
from videoar_jax.models.request import ClipRequests, sample_keys
from videoar_jax.models.videoar.config import SamplingConfig
from videoar_jax.models.videoar.guidance import guidance_table
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.prefix import PrefixGuidance, PrefixGuidanceConfig
from videoar_jax.tokenizers.bsq.config import BSQConfig


@dataclasses.dataclass(frozen=True)
class Request:
  """What to generate, checked.

  Attributes:
    texts: tokens `[b, P]` of the prompts.
    seed: random seed.
    sample_ids: numbers of the clips under the seed.
    layout: the sequence; streams have the trained one.
    window: earlier frames that a frame sees; None for all.
    table: guidance, None for 1 everywhere; further frames repeat its last row.
    temperature, top_p: see `bits.sample_bits`.
    prefix_guidance: see `prefix`; None for none.
    conditioning: frames to continue, `[b, f, H, W, 3]`, if any.
    epoch: frames that precede this window of a longer clip; makes its random draws differ.
  """

  texts: np.ndarray
  seed: int
  sample_ids: np.ndarray
  layout: Layout
  window: int | None
  table: np.ndarray | None
  temperature: float
  top_p: float
  prefix_guidance: PrefixGuidance | None
  conditioning: np.ndarray | None
  epoch: int = 0

  def keys(self, rows: np.ndarray | slice = slice(None)) -> Array:
    """Returns the keys of some clips."""
    return request_keys(self.seed, jnp.asarray(self.sample_ids[rows]), self.epoch or None)


def request_keys(seed, sample_ids, epoch) -> Array:
  """Returns the keys of clips; see `Request`, in which an epoch of 0 is None here."""
  keys = sample_keys(seed, sample_ids)
  return keys if epoch is None else jax.vmap(lambda key: jax.random.fold_in(key, epoch))(keys)


class Requests(ClipRequests):
  """Checks and completes sampling requests.

  Args:
    text_encoder: maps prompts to tokens, with `encode`.
    config: of the tokenizer.
    layout: the sequence that the model was trained on.
    defaults: `guidance`, `temperature` and `top_p` of requests that do not set them.
    window: earlier latent frames that a frame sees; None for all.
    num_shards, batch_size: see `ClipRequests`.
    has_end: whether the model has no positions beyond the trained ones.
    guidance_shapes: further (latent frames, scales) that tables of guidance may be for.
  """

  def __init__(
    self,
    text_encoder,
    config: BSQConfig,
    layout: Layout,
    *,
    defaults: dict,
    window: int | None,
    num_shards: int,
    has_end: bool,
    batch_size: int | None = None,
    guidance_shapes: tuple[tuple[int, int], ...] = (),
  ):
    height, width = (n * config.spatial_stride for n in layout.grid)
    num_frames = 1 + (layout.num_frames - 1) * config.temporal_stride
    shape = ClipShape(num_frames, (height, width))
    super().__init__(
      *(text_encoder, config, shape),
      defaults=defaults,
      num_shards=num_shards,
      batch_size=batch_size,
    )
    self.layout, self.window, self.has_end = layout, window, has_end
    self.guidance_shapes = guidance_shapes

  def make(
    self,
    prompts: list[str],
    num_frames: int | None,
    seed: int,
    conditioning: np.ndarray | None,
    window: int | None,
    *,
    sample_ids: Sequence[int] | None = None,
    is_stream: bool = False,
    is_endless: bool = False,
    **settings: Any,
  ) -> Request:
    """Returns a checked request with defaults filled in."""
    self.check_prompts(prompts)
    settings = self.with_defaults(settings)
    settings["guidance"] = str(settings["guidance"])  # Callers may give a number.
    if isinstance(given := settings.get("prefix_guidance"), dict):
      settings["prefix_guidance"] = PrefixGuidanceConfig(**given)
    sampling = SamplingConfig(**settings, window=self.window if window is None else window)
    sample_ids = self.check_sample_ids(sample_ids, len(prompts))
    if is_stream:
      self.check_devices(len(prompts))
    layout = self.layout_of(num_frames, sampling.window)
    if conditioning is not None:
      conditioning = self.check_conditioning(conditioning, len(prompts), "image or video")
      self.check_conditioning_length(
        conditioning.shape[1], math.inf if is_endless else layout.num_frames
      )
    table = guidance_table(
      sampling.guidance,
      layout.num_frames,
      layout.num_scales,
      self.layout.num_frames,
      shapes=self.guidance_shapes,
    )
    return Request(
      np.stack([self.text_encoder.encode(prompt) for prompt in prompts]),
      seed,
      sample_ids,
      layout,
      sampling.window,
      None if (table == 1).all() else table,
      sampling.temperature,
      sampling.top_p,
      sampling.prefix_guidance.active(),
      conditioning,
    )

  def layout_of(self, num_frames: int | None, window: int | None) -> Layout:
    if num_frames is None:
      return self.layout
    frames = self.check_frames(num_frames)
    if frames > self.layout.num_frames:
      if self.has_end:
        raise ValueError(
          f"num_frames={num_frames}: learned positions end at the trained {self.num_frames} frames"
        )
      if window is None:
        raise ValueError(
          f"num_frames={num_frames} is more than the {self.num_frames} trained ones: set window= "
          f"to the latent frames that a frame sees ({self.layout.num_frames - 1} at most in "
          f"training, {frames} for all), or overlap_frames= to use windows of trained length"
        )
    return dataclasses.replace(self.layout, num_frames=frames)
