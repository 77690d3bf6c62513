"""The trained model, for use: prompts to clips."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from videoar_jax.tokenizer.tokenizer import Tokenizer, to_uint8
from videoar_jax.videoar.decode import decode, sample_keys
from videoar_jax.videoar.guidance import guidance_table
from videoar_jax.videoar.layout import Layout
from videoar_jax.videoar.model import Generator

log = logging.getLogger(__name__)

BATCH_SIZE = 16  # Prompts that are decoded together; more go through in turns.


class Model:
  """A generator with its tokenizer and prompt encoder.

  Args:
    generator: the trained transformer.
    tokenizer: the tokenizer it was trained on.
    text_encoder: maps prompts to tokens, with `encode`, `null` and `pad_id`.
    layout: the sequence it was trained on.
    defaults: `guidance`, `temperature` and `top_p` for calls that name none.
    window: earlier frames that a frame sees; None for all.
  """

  def __init__(
    self,
    generator: Generator,
    tokenizer: Tokenizer,
    text_encoder,
    layout: Layout,
    *,
    defaults: dict,
    window: int | None = None,
  ):
    self.generator, self.tokenizer, self.layout = generator, tokenizer, layout
    self.text_encoder, self.defaults, self.window = text_encoder, defaults, window
    self._sample = jax.jit(self._sample_batch, static_argnames="layout")

  @property
  def num_frames(self) -> int:
    """Frames of the clips that the model was trained on."""
    return 1 + (self.layout.num_frames - 1) * self.tokenizer.config.temporal_stride

  def sample(
    self,
    prompts: list[str],
    num_frames: int | None = None,
    seed: int = 0,
    *,
    guidance: str | float | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
  ) -> UInt8[np.ndarray, "b f H W 3"]:
    """Generates a clip for each prompt.

    Clip i is a function of the seed, i, and its prompt: batches do not change it.

    Args:
      prompts: texts.
      num_frames: 1 + tau k pixel frames; None for as many as trained.
      seed: of the draws.
      guidance: see `guidance.guidance_table`.
      temperature: of the bits; 0 takes the likelier value.
      top_p: see `decode.sample_bits`.
    Raises:
      ValueError: a prompt is too long, or a number is out of its range.
    """
    if isinstance(prompts, str):
      raise ValueError("prompts: needs a list of texts, got one text; put it into [...]")
    if not prompts:
      raise ValueError("prompts: the list is empty")
    layout = self._layout_of(num_frames)
    settings = dict(self.defaults)
    for name, value in (("guidance", guidance), ("temperature", temperature), ("top_p", top_p)):
      if value is not None:
        settings[name] = value
    if settings["temperature"] < 0:
      raise ValueError(f"temperature={settings['temperature']} must not be negative")
    if not 0 < settings["top_p"] <= 1:
      raise ValueError(f"top_p={settings['top_p']} must be in (0, 1]")
    table = guidance_table(settings["guidance"], layout.num_frames, layout.num_scales)
    texts = np.stack([self.text_encoder.encode(prompt) for prompt in prompts])
    clips = []
    size = min(BATCH_SIZE, len(prompts))
    for start in range(0, len(prompts), size):
      part = texts[start : start + size]
      padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
      batch = self._sample(
        self.generator,
        self.tokenizer.autoencoder,
        padded,
        sample_keys(seed, start, size),
        table,
        settings["temperature"],
        settings["top_p"],
        layout=layout,
      )
      clips.append(np.asarray(batch)[: len(part)])
    return np.concatenate(clips)

  def _layout_of(self, num_frames: int | None) -> Layout:
    if num_frames is None or num_frames == self.num_frames:
      return self.layout
    config = self.tokenizer.config
    resolution = tuple(n * config.spatial_stride for n in self.layout.grid)
    frames, _, _ = config.latent_shape(num_frames, resolution)
    if frames > self.layout.num_frames:
      if self.generator.config.positions != "rope":
        raise ValueError(
          f"num_frames={num_frames}: learned positions end at the trained {self.num_frames} frames"
        )
      log.warning("%d frames are more than the %d trained ones", num_frames, self.num_frames)
    return dataclasses.replace(self.layout, num_frames=frames)

  def _sample_batch(
    self, generator, autoencoder, texts, keys, table, temperature, top_p, *, layout
  ):
    decoded = decode(
      generator,
      layout,
      texts,
      jnp.asarray(self.text_encoder.null()),
      keys,
      table,
      temperature=temperature,
      top_p=top_p,
      pad_id=self.text_encoder.pad_id,
      window=self.window,
    )
    return to_uint8(autoencoder.decoder(decoded.latents))
