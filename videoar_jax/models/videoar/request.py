"""What a trained model is asked for: checked, and completed by its defaults."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from videoar_jax.models.videoar.decode import sample_keys
from videoar_jax.models.videoar.guidance import guidance_table
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.tokenizers.bsq.autoencoder import AutoencoderConfig

BATCH_SIZE = 16  # Prompts that are decoded together; more go through in turns.


@dataclasses.dataclass(frozen=True)
class Request:
  """What to generate, checked.

  Attributes:
    texts: tokens `[b, P]` of the prompts.
    seed: of the draws.
    sample_ids: of the clips under the seed.
    layout: the sequence; a stream's is the trained one.
    window: earlier frames that a frame sees; None for all.
    table: guidance, None for 1 everywhere; later frames take its last row.
    temperature, top_p: see `decode.sample_bits`.
    conditioning: frames to go on from `[b, f, H, W, 3]`, if any.
    epoch: frames before this clip's own, which make its draws others than theirs.
  """

  texts: np.ndarray
  seed: int
  sample_ids: np.ndarray
  layout: Layout
  window: int | None
  table: np.ndarray | None
  temperature: float
  top_p: float
  conditioning: np.ndarray | None
  epoch: int = 0

  def keys(self, rows: np.ndarray | slice = slice(None)) -> Array:
    """Returns the keys of some clips."""
    keys = sample_keys(self.seed, jnp.asarray(self.sample_ids[rows]))
    return jax.vmap(lambda key: jax.random.fold_in(key, self.epoch))(keys) if self.epoch else keys


class Requests:
  """Checks what is asked for.

  Args:
    text_encoder: maps prompts to tokens, with `encode`.
    config: of the tokenizer.
    layout: the sequence that the model was trained on.
    defaults: `guidance`, `temperature` and `top_p` for requests that name none.
    window: earlier latent frames that a frame sees; None for all.
    ways: devices that share a batch.
    has_end: whether the model knows no positions beyond the trained ones.
  """

  def __init__(
    self,
    text_encoder,
    config: AutoencoderConfig,
    layout: Layout,
    *,
    defaults: dict,
    window: int | None,
    ways: int,
    has_end: bool,
  ):
    self.text_encoder, self.config, self.layout = text_encoder, config, layout
    self.defaults, self.window, self.ways, self.has_end = defaults, window, ways, has_end

  @property
  def num_frames(self) -> int:
    """Frames of the clips that the model was trained on."""
    return 1 + (self.layout.num_frames - 1) * self.config.temporal_stride

  @property
  def resolution(self) -> tuple[int, int]:
    """(H, W) of the clips that the model makes."""
    height, width = (n * self.config.spatial_stride for n in self.layout.grid)
    return height, width

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
    """Checks what is asked for, and fills in the defaults."""
    if isinstance(prompts, str):
      raise ValueError("prompts: needs a list of texts, got one text; put it into [...]")
    if not prompts:
      raise ValueError("prompts: the list is empty")
    for name in settings:
      if name not in self.defaults:
        raise ValueError(f"{name}: no such setting; there are {', '.join(self.defaults)}")
    asked = {name: value for name, value in settings.items() if value is not None}
    settings = self.defaults | asked
    if not (math.isfinite(settings["temperature"]) and settings["temperature"] >= 0):
      raise ValueError(f"temperature={settings['temperature']} must not be negative")
    if not 0 < settings["top_p"] <= 1:
      raise ValueError(f"top_p={settings['top_p']} must be in (0, 1]")
    window = self.window if window is None else window
    if window is not None and window < 1:
      raise ValueError(f"window={window} must be at least 1 latent frame")
    sample_ids = np.arange(len(prompts)) if sample_ids is None else np.asarray(sample_ids)
    if sample_ids.shape != (len(prompts),):
      raise ValueError(f"sample_ids: needs one for each of {len(prompts)} prompts")
    self._check_devices(len(prompts) if is_stream else min(BATCH_SIZE, len(prompts)))
    layout = self.layout_of(num_frames, window)
    if conditioning is not None:
      conditioning = self.check_conditioning(conditioning, len(prompts), "image or video")
      self._check_conditioning_length(
        conditioning.shape[1], math.inf if is_endless else layout.num_frames
      )
    table = guidance_table(
      settings["guidance"], layout.num_frames, layout.num_scales, self.layout.num_frames
    )
    return Request(
      np.stack([self.text_encoder.encode(prompt) for prompt in prompts]),
      seed,
      sample_ids,
      layout,
      window,
      None if (table == 1).all() else table,
      settings["temperature"],
      settings["top_p"],
      conditioning,
    )

  def _check_devices(self, size: int) -> None:
    """Raises ValueError if the devices cannot share a batch of that size."""
    if size % self.ways:
      raise ValueError(
        f"prompts: batches of {size} do not divide over {self.ways} devices of the mesh axes data "
        f"and fsdp; give a multiple of {self.ways} prompts"
      )

  def check_frames(self, num_frames: int) -> int:
    """Returns the latent frames of a clip; raises ValueError if its length does not fit."""
    return self.config.latent_shape(num_frames, self.resolution)[0]

  def check_overlap_frames(self, overlap_frames: int) -> None:
    tau = self.config.temporal_stride
    if not 1 <= overlap_frames < self.num_frames or (overlap_frames - 1) % tau:
      raise ValueError(
        f"overlap_frames={overlap_frames} must be 1 + {tau} k, from 1 to {self.num_frames - tau} "
        f"frames: the rest of the trained {self.num_frames} is new"
        if self.num_frames > 1
        else "overlap_frames: the model was trained on single frames; it has no next ones"
      )

  def check_conditioning(self, conditioning: np.ndarray, num: int, name: str) -> np.ndarray:
    """Returns given frames with their batch axis; raises ValueError if they do not fit."""
    if conditioning.dtype != np.uint8:
      raise ValueError(f"{name}: needs uint8 pixels, got {conditioning.dtype}")
    if conditioning.ndim == 4:
      conditioning = np.broadcast_to(conditioning, (num, *conditioning.shape))
    if conditioning.ndim != 5 or conditioning.shape[-1] != 3 or conditioning.shape[0] != num:
      raise ValueError(
        f"{name}: needs frames [H, W, 3] for {num} prompts, got {conditioning.shape}"
      )
    if conditioning.shape[2:4] != self.resolution:
      got, wanted = (
        f"{height}x{width}" for height, width in (conditioning.shape[2:4], self.resolution)
      )
      raise ValueError(f"{name}: is {got} pixels, but the model makes {wanted}; resize it")
    return conditioning

  def _check_conditioning_length(self, num_conditioning: int, num_latents: float) -> None:
    tau = self.config.temporal_stride
    num_frames = 1 + tau * (num_latents - 1)
    if num_conditioning < 1 or (num_conditioning - 1) % tau:
      below = 1 + max(0, (num_conditioning - 1) // tau) * tau
      raise ValueError(f"video: {num_conditioning} frames are not 1 + {tau} k; give {below}")
    if num_conditioning >= num_frames:
      raise ValueError(
        f"video: {num_conditioning} frames leave nothing of num_frames={num_frames} to generate; "
        "give fewer, ask for more, or use extend"
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
          f"to the latent frames that a frame is to see ({self.layout.num_frames - 1} at most in "
          f"training, {frames} for all), or overlap_frames= to go on in clips of the trained length"
        )
    return dataclasses.replace(self.layout, num_frames=frames)


def first_frames(image, video) -> np.ndarray | None:
  """Returns what is given of a clip, as a video."""
  if image is not None and video is not None:
    raise ValueError("image and video: give one of them; an image is a video of one frame")
  if image is None:
    return None if video is None else np.asarray(video)
  image = np.asarray(image)
  if image.ndim not in (3, 4):
    raise ValueError(f"image: needs shape [H, W, 3] or [b, H, W, 3], got {image.shape}")
  return image[..., None, :, :, :]
