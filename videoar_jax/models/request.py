"""Checks of a sampling request that all families share: prompts, frames, sizes, devices, seeds."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, UInt

from videoar_jax.models.base import ClipShape
from videoar_jax.tokenizers.base import TokenizerConfig

BATCH_SIZE = 16  # Prompts that are sampled together by default; more take several batches.


class ClipRequests:
  """Checks requests for clips.

  Args:
    text_encoder: maps prompts to tokens, with `encode`.
    config: of the tokenizer.
    shape: of the clips that the model was trained on.
    defaults: values of the family's settings that a request does not set.
    num_shards: devices that share a batch.
    batch_size: clips that are made together; None for about `BATCH_SIZE`, which the devices share.
    overlaps: see `check_overlap`.
  Raises:
    ValueError: the devices cannot share batches of that size.
  """

  def __init__(
    self,
    text_encoder,
    config: TokenizerConfig,
    shape: ClipShape,
    *,
    defaults: dict[str, Any],
    num_shards: int = 1,
    batch_size: int | None = None,
    overlaps: Sequence[int] | None = None,
  ):
    self.text_encoder, self.config, self.overlaps = text_encoder, config, overlaps
    self.num_frames, self.resolution = shape
    self.defaults, self.num_shards = defaults, num_shards
    self.batch_size = self.padded(BATCH_SIZE) if batch_size is None else batch_size
    if self.batch_size < 1 or self.batch_size % num_shards:
      raise ValueError(
        f"batch_size={batch_size} does not divide over the {num_shards} shards of the mesh axes "
        f"slice, data and fsdp; take a multiple of {num_shards}"
      )

  def batches(self, num: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the rows of each batch of `num` clips, and how many of them count.

    The last batch is padded, so that all batches share one compiled program.
    """
    size = min(self.batch_size, self.padded(num))
    for start in range(0, num, size):
      yield np.minimum(np.arange(start, start + size), num - 1), min(size, num - start)

  def padded(self, num: int) -> int:
    """Returns the smallest size of a batch of at least `num` clips that the devices can share."""
    return -(-num // self.num_shards) * self.num_shards

  def check_prompts(self, prompts: list[str]) -> None:
    """Raises ValueError unless prompts are a list that is not empty."""
    if isinstance(prompts, str):
      raise ValueError("prompts: needs a list of texts, got one text; put it into [...]")
    if not prompts:
      raise ValueError("prompts: the list is empty")

  def with_defaults(self, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns all settings, with defaults in place of None.

    Raises:
      ValueError: there is no such setting; lists the known ones.
    """
    for name in settings:
      if name not in self.defaults:
        raise ValueError(f"{name}: no such setting; there are {', '.join(self.defaults)}")
    changes = {name: value for name, value in settings.items() if value is not None}
    return self.defaults | changes

  def check_sample_ids(self, sample_ids: Sequence[int] | None, num: int) -> np.ndarray:
    """Returns the clips' numbers under the seed; counts from 0 if there are none."""
    sample_ids = np.arange(num) if sample_ids is None else np.asarray(sample_ids)
    if sample_ids.shape != (num,):
      raise ValueError(f"sample_ids: needs one for each of {num} prompts")
    return sample_ids

  def check_devices(self, size: int) -> None:
    """Raises ValueError if the devices cannot share a batch of that size."""
    if size % self.num_shards:
      raise ValueError(
        f"prompts: batches of {size} do not divide over {self.num_shards} devices of the mesh axes "
        f"data and fsdp; give a multiple of {self.num_shards} prompts"
      )

  def check_frames(self, num_frames: int) -> int:
    """Returns the latent frames of a clip; raises ValueError if its length does not fit."""
    return self.config.latent_shape(num_frames, self.resolution)[0]

  def check_is_trained_length(self, num_frames: int) -> None:
    """Raises ValueError if a clip is longer than those of training."""
    if num_frames > self.num_frames:
      raise ValueError(
        f"num_frames={num_frames}: the model was trained on {self.num_frames} frames; longer clips "
        "need overlap_frames"
      )

  def check_overlap_frames(self, overlap_frames: int) -> None:
    """Raises ValueError if a window of the trained length cannot start from that many frames."""
    check_overlap(overlap_frames, self.num_frames, self.config.temporal_stride, self.overlaps)

  def check_extension(
    self, clips: np.ndarray, num: int, num_frames: int, overlap_frames: int
  ) -> np.ndarray:
    """Returns clips to continue; raises ValueError if they, or the frames asked for, do not fit."""
    self.check_overlap_frames(overlap_frames)
    tau = self.config.temporal_stride
    clips = self.check_conditioning(np.asarray(clips), num, "clips")
    if clips.shape[1] < overlap_frames:
      raise ValueError(
        f"clips: {clips.shape[1]} frames are less than overlap_frames={overlap_frames}"
      )
    more = num_frames - clips.shape[1]
    if more < tau or more % tau:
      below = clips.shape[1] + max(1, more // tau) * tau
      raise ValueError(
        f"num_frames={num_frames}: must be {tau} k more than the {clips.shape[1]} frames given; "
        f"take {below} or {below + tau}"
      )
    return clips

  def check_conditioning(self, conditioning: np.ndarray, num: int, name: str) -> np.ndarray:
    """Returns conditioning frames with a batch axis; raises ValueError if they do not fit."""
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

  def check_conditioning_length(self, num_conditioning: int, num_latents: float) -> None:
    """Raises ValueError if conditioning frames do not fit, or leave nothing to generate."""
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


def check_overlap(
  overlap_frames: int, num_frames: int, stride: int, overlaps: Sequence[int] | None = None
) -> None:
  """Checks how many last frames of a clip a window of longer clips starts from.

  Args:
    overlap_frames: the number.
    num_frames: of a window.
    stride: tau, pixel frames of a latent frame.
    overlaps: the numbers that there may be; None for all 1 + tau k.
  Raises:
    ValueError: a window cannot start from that many; names those that it can.
  """
  if num_frames == 1:
    raise ValueError(
      "overlap_frames: the model was trained on single frames and cannot continue a clip"
    )
  if overlaps is not None:
    if overlap_frames not in overlaps:
      raise ValueError(
        f"overlap_frames={overlap_frames} must be {' or '.join(map(str, overlaps))}: the first "
        "frame, or it and whole clips of the quantizer, since others end within one"
      )
  elif not 1 <= overlap_frames < num_frames or (overlap_frames - 1) % stride:
    raise ValueError(
      f"overlap_frames={overlap_frames} must be 1 + {stride} k, from 1 to {num_frames - stride} "
      f"frames: the rest of the trained {num_frames} is new"
    )


def first_frames(image, video) -> np.ndarray | None:
  """Returns the conditioning frames as a video; None without any."""
  if image is not None and video is not None:
    raise ValueError("image and video: give one of them; an image is a video of one frame")
  if image is None:
    return None if video is None else np.asarray(video)
  image = np.asarray(image)
  if image.ndim not in (3, 4):
    raise ValueError(f"image: needs shape [H, W, 3] or [b, H, W, 3], got {image.shape}")
  return image[..., None, :, :, :]


def sample_keys(seed: int | Int[Array, ""] | UInt[Array, ""], sample_ids: Int[Array, "b"]) -> Array:
  """Returns a key for each sample, which depends only on the seed and the sample's number."""
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(sample_ids)
