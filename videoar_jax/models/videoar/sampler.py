"""The trained model: generates clips from prompts, images and clips."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from videoar_jax.models.preview import Preview
from videoar_jax.models.request import first_frames
from videoar_jax.models.videoar import decode, decode_steps
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.models.videoar.request import Request, Requests, request_keys
from videoar_jax.models.videoar.score import score
from videoar_jax.models.videoar.stepper import Stepper
from videoar_jax.nn.quantized import with_dtype
from videoar_jax.parallel.compiler import jitted
from videoar_jax.parallel.mesh import call_on, num_batch_shards, shard_padded
from videoar_jax.parallel.processes import fetch
from videoar_jax.parallel.programs import Program
from videoar_jax.parallel.rules import constrain
from videoar_jax.tokenizers.bsq.tokenizer import Tokenizer
from videoar_jax.tokenizers.programs import to_latents, to_pixels


def _sample_clips(
  generator,
  texts,
  null_text,
  seed,
  sample_ids,
  epoch,
  table,
  conditioning,
  temperature,
  top_p,
  prefix_guidance,
  *,
  layout,
  window,
  trained_frames,
) -> Float[Array, "b t h w d"]:
  """Returns the latents of clips; see `Request` and `decode.decode`."""
  decoded = decode.decode(
    generator,
    layout,
    texts,
    null_text,
    request_keys(seed, sample_ids, epoch),
    table,
    temperature=temperature,
    top_p=top_p,
    window=window,
    trained_frames=trained_frames,
    conditioning=conditioning,
    prefix_guidance=prefix_guidance,
  )
  return constrain(decoded.quantized, ("batch", None, None, None, None))


# Programs of all models: a second one of the same kind compiles nothing.
_sample = Program(
  _sample_clips, static_argnames=("layout", "window", "trained_frames"), is_decoding=True
)
_score = jitted(score, static_argnames=("layout", "window"))


class Model:
  """A generator with its tokenizer and prompt encoder.

  Args:
    generator: the trained transformer; with a mesh, its parameters must already be on it.
    tokenizer: the tokenizer it was trained on.
    text_encoder: maps prompts to tokens, with `encode` and `null`.
    layout: the sequence of the training clips.
    defaults: `guidance`, `temperature`, `top_p` and `prefix_guidance` of calls that do not set
      them.
    window: earlier latent frames that a frame sees in training; None for all.
    sampling_window: the same in samples; None for as many as in training.
    trained_frames: latent frames of the longest training clips; None for those of the layout.
    guidance_shapes: further (latent frames, scales) that tables of guidance may be for.
    mesh: devices that share the work: heads are split over `tensor`, clips over `data` and `fsdp`.
    dtype: of the generator's weights and cache.
    batch_size: clips that are made or scored together; None for about 16.
  Raises:
    ValueError: the devices cannot share batches of that size.
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
    sampling_window: int | None = None,
    trained_frames: int | None = None,
    guidance_shapes: tuple[tuple[int, int], ...] = (),
    mesh: Mesh | None = None,
    dtype=jnp.float32,
    batch_size: int | None = None,
  ):
    self.generator = with_dtype(generator, dtype)
    self.tokenizer, self.layout, self.mesh = tokenizer, layout, mesh
    self.text_encoder, self.window = text_encoder, window
    self.trained_frames = layout.num_frames if trained_frames is None else trained_frames
    self.requests = Requests(
      text_encoder,
      tokenizer.config,
      layout,
      defaults=defaults,
      window=window if sampling_window is None else sampling_window,
      num_shards=1 if mesh is None else num_batch_shards(mesh),
      has_end=generator.position_embedding is not None,
      batch_size=batch_size,
      guidance_shapes=guidance_shapes,
    )
    self.stepper = Stepper(self.generator, tokenizer, text_encoder, layout, mesh)

  @property
  def num_frames(self) -> int:
    """Frames of the clips that the model was trained on."""
    return self.requests.num_frames

  @property
  def resolution(self) -> tuple[int, int]:
    """(H, W) of the clips that the model makes."""
    return self.requests.resolution

  @property
  def batch_size(self) -> int:
    """Clips that are made or scored together."""
    return self.requests.batch_size

  def num_steps(self, num_frames: int | None = None) -> int:
    """Returns how often the transformer runs for a clip, including once for the prompt.

    Args:
      num_frames: pixel frames of the clip; None for as many as trained.
    """
    if num_frames is None:
      return 1 + self.layout.num_steps
    num_latents = self.requests.check_frames(num_frames)
    return 1 + dataclasses.replace(self.layout, num_frames=num_latents).num_steps

  def sample(
    self,
    prompts: list[str],
    num_frames: int | None = None,
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    video: UInt8[np.ndarray, "*b u H W 3"] | None = None,
    window: int | None = None,
    overlap_frames: int | None = None,
    sample_ids: Sequence[int] | None = None,
    **settings: Any,
  ) -> UInt8[np.ndarray, "b f H W 3"]:
    """Generates a clip for each prompt.

    A clip depends on the seed, its number and its prompt, but not on its batch.

    Args:
      prompts: texts.
      num_frames: 1 + tau k pixel frames, given ones included; None for as many as in training.
      seed: random seed.
      image: the first frame, one for all prompts or one each. Given frames are returned as
        reconstructed by the tokenizer, so that the transition to later frames is seamless.
      video: instead, the first 1 + tau k frames.
      window: earlier latent frames that a frame sees; None for the training setting.
      overlap_frames: for clips beyond the trained length, see `extend`; these need it or a window.
      sample_ids: numbers of the clips under the seed; None counts from 0.
      **settings: `guidance`, see `guidance.guidance_table`; `temperature` of the bits, 0 takes the
        likelier value; `top_p`, see `bits.sample_bits`; `prefix_guidance`, `{"weight": 0.5,
        "share": 0.25}`, see `prefix`. Defaults are in the run's config.
    Raises:
      ValueError: a prompt is too long, a number is out of range, or frames do not fit.
    """
    if overlap_frames is not None:
      self.requests.check_overlap_frames(overlap_frames)
    if overlap_frames is not None and num_frames is not None and num_frames > self.num_frames:
      self.requests.check_frames(num_frames)
      settings |= {"window": window, "sample_ids": sample_ids}
      clips = self.sample(prompts, None, seed, image=image, video=video, **settings)
      return self.extend(
        clips, prompts, num_frames, seed, overlap_frames=overlap_frames, **settings
      )
    conditioning = first_frames(image, video)
    settings["sample_ids"] = sample_ids
    return self._generate(
      self.requests.make(prompts, num_frames, seed, conditioning, window, **settings)
    )

  def extend(
    self,
    clips: UInt8[np.ndarray, "b u H W 3"],
    prompts: list[str],
    num_frames: int,
    seed: int = 0,
    *,
    overlap_frames: int = 1,
    window: int | None = None,
    sample_ids: Sequence[int] | None = None,
    **settings: Any,
  ) -> UInt8[np.ndarray, "b f H W 3"]:
    """Continues clips of any length: their last frames are encoded again, as the first of a window.

    The sequence never gets longer than in training. New prompts make the next shot.

    Args:
      clips: clips to continue, one for each prompt; returned unchanged with new frames appended.
      prompts: texts.
      num_frames: length of the result, tau k frames more than the clips have.
      seed: random seed.
      overlap_frames: how many last frames each window starts from, 1 + tau k.
      window: see `sample`.
      sample_ids: see `sample`.
      **settings: see `sample`.
    Raises:
      ValueError: as `sample`.
    """
    settings["sample_ids"] = sample_ids
    clips = self.requests.check_extension(clips, len(prompts), num_frames, overlap_frames)
    while clips.shape[1] < num_frames:
      head = clips[:, -overlap_frames:]
      request = self.requests.make(prompts, None, seed, head, window, **settings)
      new = self._generate(dataclasses.replace(request, epoch=clips.shape[1]))[:, overlap_frames:]
      clips = np.concatenate([clips, new], axis=1)
    return clips[:, :num_frames]

  def stream(
    self,
    prompts: list[str],
    num_frames: float | None = None,
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    video: UInt8[np.ndarray, "*b u H W 3"] | None = None,
    window: int | None = None,
    **settings: Any,
  ) -> Iterator[UInt8[np.ndarray, "b f H W 3"]]:
    """Generates clips and yields frames as soon as they are ready: first one, then tau at a time.

    They are the frames of `sample`, up to floating-point rounding. All prompts are one batch.

    Args:
      prompts: texts.
      num_frames: see `sample`; `math.inf` for an endless stream, which needs a window.
      seed: see `sample`.
      image: see `sample`.
      video: see `sample`; yielded first, in one piece.
      window: see `sample`. With one, memory and time per frame do not grow.
      **settings: see `sample`.
    Raises:
      ValueError: as `sample`; raised by the call, not by the first frame.
    """
    is_endless = num_frames == math.inf
    window = self.requests.window if window is None else window
    if is_endless and window is None:
      raise ValueError("num_frames=inf: without a window the cache has no end; set window=")
    if is_endless and self.generator.position_embedding is not None:
      raise ValueError("num_frames=inf: learned positions end at the trained length")
    conditioning = first_frames(image, video)
    wanted = None if is_endless else num_frames
    request = self.requests.make(
      prompts, wanted, seed, conditioning, window, is_stream=True, is_endless=is_endless, **settings
    )
    num_latents = math.inf if is_endless else request.layout.num_frames
    slots = window if is_endless else decode_steps.num_slots(num_latents, request.window)
    return self.stepper.stream(
      request,
      num_latents,
      slots=slots,
      trained_frames=self._trained_frames(num_latents),
      bits=None if conditioning is None else self._bits(request.conditioning),
    )

  def preview(
    self,
    prompts: list[str],
    num_frames: int | None = None,
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    clips: UInt8[np.ndarray, "b u H W 3"] | None = None,
    overlap_frames: int = 1,
    window: int | None = None,
    sample_ids: Sequence[int] | None = None,
    **settings: Any,
  ) -> Iterator[Preview]:
    """Generates or continues clips, and yields what they look like after each scale.

    Finished frames are those of `sample` or `extend`, up to floating-point rounding. All prompts
    are one batch.

    Args:
      prompts, num_frames, seed, image, window, sample_ids, **settings: see `sample`.
      clips: instead of an image, clips to continue, see `extend`; of them only new frames are
        yielded.
      overlap_frames: see `extend`.
    Raises:
      ValueError: as `sample` or `extend`; raised by the call, not by the first preview.
    """
    settings |= {"window": window, "sample_ids": sample_ids, "is_stream": True}
    if clips is None:
      given = first_frames(image, None)
      return self._preview(self.requests.make(prompts, num_frames, seed, given, **settings))
    if image is not None:
      raise ValueError("image and clips: clips that are continued have a first frame; give one")
    num_frames = self.num_frames if num_frames is None else num_frames
    clips = self.requests.check_extension(clips, len(prompts), num_frames, overlap_frames)
    request = self.requests.make(prompts, None, seed, clips[:, -overlap_frames:], **settings)
    return self._preview_longer(request, clips, num_frames, overlap_frames)

  def score(
    self, prompts: list[str], video: UInt8[np.ndarray, "b f H W 3"]
  ) -> dict[str, Float[np.ndarray, "b"]]:
    """Scores given clips, teacher-forced: each bit is predicted from the true ones before it.

    Longer clips than those of training are scored as one sequence, in which the prompt does not
    move along as it does in samples, see `decode`.

    Args:
      prompts: texts.
      video: a clip for each, of 1 + tau k frames.
    Returns:
      Loss and accuracies of each clip by name, see `score.score`.
    Raises:
      ValueError: a prompt is too long, or clips do not fit.
    """
    video = self.requests.check_conditioning(np.asarray(video), len(prompts), "video")
    layout = self.requests.layout_of(video.shape[1], self.window)
    texts = np.stack([self.text_encoder.encode(prompt) for prompt in prompts])
    parts = []
    for rows, num in self.requests.batches(len(prompts)):
      latents = self._latents(video[rows])
      found = self._run(_score, self.generator, layout, texts[rows], latents, window=self.window)
      parts.append({name: fetch(values)[:num] for name, values in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

  def _trained_frames(self, num_latents: float) -> int | None:
    """Returns after how many latent frames of a clip the prompt moves; None if it is no longer."""
    return None if num_latents <= self.trained_frames else self.trained_frames

  def _preview(self, request: Request, num_latents: int | None = None) -> Iterator[Preview]:
    """Previews a clip of a request's length, or its first latent frames."""
    length = request.layout.num_frames
    return self.stepper.preview(
      request,
      length if num_latents is None else num_latents,
      slots=decode_steps.num_slots(length, request.window),
      trained_frames=self._trained_frames(length),
      bits=None if request.conditioning is None else self._bits(request.conditioning),
    )

  def _preview_longer(
    self, request: Request, clips, num_frames: int, overlap_frames: int
  ) -> Iterator[Preview]:
    """Previews what follows clips, window by window, each of which is a request like the first."""
    done, head, tau = clips.shape[1], request.conditioning, self.tokenizer.config.temporal_stride
    while done < num_frames:
      request = dataclasses.replace(request, conditioning=head, epoch=done)
      wanted = 1 + (overlap_frames - 1 + num_frames - done) // tau
      frames = head
      for part in self._preview(request, min(wanted, request.layout.num_frames)):
        if part.start < overlap_frames:  # The given frames.
          continue
        yield part._replace(start=done + part.start - overlap_frames)
        if part.num_done == part.num_scales:
          frames = np.concatenate([frames, part.frames], axis=1)
      done += frames.shape[1] - overlap_frames
      head = frames[:, -overlap_frames:]

  def _generate(self, request: Request) -> UInt8[np.ndarray, "b f H W 3"]:
    """Generates clips, one batch after the other."""
    clips, guidance = [], request.prefix_guidance
    guidance = guidance and guidance._replace(
      weight=np.float32(guidance.weight), share=np.float32(guidance.share)
    )
    for rows, num in self.requests.batches(len(request.texts)):
      batch = self._run(
        _sample,
        self.generator,
        request.texts[rows],
        np.asarray(self.text_encoder.null()),
        # As numbers, which every process has: keys are on a device of this one.
        np.uint32(request.seed),
        np.asarray(request.sample_ids[rows], np.int32),
        np.int32(request.epoch) if request.epoch else None,
        request.table,
        None if request.conditioning is None else self._bits(request.conditioning[rows]),
        np.float32(request.temperature),
        np.float32(request.top_p),
        guidance,
        layout=request.layout,
        window=request.window,
        trained_frames=self._trained_frames(request.layout.num_frames),
      )
      pixels = self._run(to_pixels, self.tokenizer.autoencoder, batch)
      clips.append(fetch(pixels)[:num])
    return np.concatenate(clips)

  def _latents(self, video: UInt8[np.ndarray, "b f H W 3"]) -> Float[Array, "b t h w d"]:
    """Encodes clips, on the devices that share them."""
    batch = shard_padded(video, self.mesh)
    return self._run(to_latents, self.tokenizer.autoencoder, batch)

  def _run(self, function, *arguments, **settings):
    """Calls a jitted function, on the mesh if there is one."""
    return call_on(self.mesh, function, *arguments, **settings)

  def _bits(self, video: UInt8[np.ndarray, "b f H W 3"]) -> list[Array]:
    """Returns the bits of given frames."""
    return self.tokenizer.quantize(self._latents(video), self.layout.schedule).bits
