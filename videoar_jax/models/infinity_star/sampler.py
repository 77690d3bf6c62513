"""A trained InfinityStar with its tokenizer and text encoder: from prompts to clips."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8, UInt32

from videoar_jax.models.base import ClipShape
from videoar_jax.models.infinity_star import generate
from videoar_jax.models.infinity_star.config import InfinityStarSampling
from videoar_jax.models.infinity_star.interactive import Story, conditions_of, layout_of_clip
from videoar_jax.models.infinity_star.layout import Layout
from videoar_jax.models.infinity_star.network import InfinityStar, with_merged_adapters
from videoar_jax.models.infinity_star.programs import Programs
from videoar_jax.models.infinity_star.prompter import Prompter
from videoar_jax.models.infinity_star.sequences import given_lengths, layout_of
from videoar_jax.models.request import ClipRequests, first_frames, sample_keys
from videoar_jax.nn.quantized import with_dtype
from videoar_jax.parallel.mesh import num_batch_shards
from videoar_jax.parallel.processes import fetch
from videoar_jax.tokenizers.base import Tokenizer
from videoar_jax.tokenizers.pixels import to_uint8


class Model:
  """Generates clips; see `models.base.Model`.

  Attributes:
    default_overlap_frames: that a longer clip continues from; half a clip would end within one.
    clip_frames: of the first clip in interactive mode, and of the last frames of one that is given.

  Args:
    generator: the network; with a mesh, its parameters must already be on it.
    tokenizer: codes frames.
    text_encoder: maps prompts to `text`.
    shape: of the clips that the model was trained on.
    sampling: defaults of requests.
    frame_rate: frames per second, for the durations in prompts.
    mesh: devices that share the work; None for one.
    dtype: of the generator's weights and cache.
    batch_size: clips that are made together; None for about 16.
  Raises:
    ValueError: the devices cannot share batches of that size.
  """

  default_overlap_frames = 1

  def __init__(
    self,
    generator: InfinityStar,
    tokenizer: Tokenizer,
    text_encoder,
    shape: ClipShape,
    sampling: InfinityStarSampling,
    *,
    frame_rate: float,
    mesh: Mesh | None = None,
    dtype=jnp.float32,
    batch_size: int | None = None,
  ):
    self.generator = with_dtype(with_merged_adapters(generator), dtype)
    self.tokenizer, self.frame_rate = tokenizer, frame_rate
    self.num_frames, self.resolution = shape
    self.text_encoder = Prompter(text_encoder, sampling, self._seconds(shape.num_frames))
    self.requests = ClipRequests(
      self.text_encoder,
      tokenizer.config,
      shape,
      defaults=dataclasses.asdict(sampling),
      num_shards=1 if mesh is None else num_batch_shards(mesh),
      batch_size=batch_size,
      overlaps=given_lengths(self._layout(shape.num_frames), tokenizer.config),
    )
    self.batch_size = self.requests.batch_size
    self.clip_frames = 1 + tokenizer.config.temporal_stride * generator.config.clip_length
    self._programs = Programs(self.generator, tokenizer, mesh)

  def num_steps(self, num_frames: int | None = None) -> int:
    """Returns how often the network runs for a clip: for the prompt, and each repetition.

    Args:
      num_frames: pixel frames of the clip; None for as many as trained.
    """
    schedule = self._layout(num_frames or self.num_frames).schedule
    return 1 + sum(scale.repetitions for scale in schedule)

  def sample(
    self,
    prompts: list[str],
    num_frames: int | None = None,
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    video: UInt8[np.ndarray, "*b u H W 3"] | None = None,
    overlap_frames: int | None = None,
    sample_ids: Sequence[int] | None = None,
    **settings: Any,
  ) -> UInt8[np.ndarray, "b f H W 3"]:
    """Generates a clip for each prompt.

    A clip depends on the seed, its number and its prompt, but not on its batch.

    Args:
      prompts: texts.
      num_frames: 1 + tau k pixel frames, given ones included, at most as many as in training
        without `overlap_frames`; None for as many.
      seed: random seed.
      image: the first frame, one for all prompts or one each. Given frames are returned as
        reconstructed by the tokenizer.
      video: instead, the first frames: the first one, and whole clips of the quantizer.
      overlap_frames: for longer clips, see `extend`.
      sample_ids: numbers of the clips under the seed; None counts from 0.
      **settings: fields of `InfinityStarSampling`; defaults are in the run's config.
    Raises:
      ValueError: a prompt is too long, a number is out of range, or frames do not fit.
    """
    num_frames = self.num_frames if num_frames is None else num_frames
    if overlap_frames is not None:
      self.requests.check_overlap_frames(overlap_frames)
    else:
      self.requests.check_is_trained_length(num_frames)
    given, keys = first_frames(image, video), self._keys(prompts, seed, sample_ids)
    if num_frames <= self.num_frames:
      return self._clips(prompts, num_frames, keys, given, settings)
    clips = self._clips(prompts, self.num_frames, keys, given, settings)
    settings["sample_ids"] = sample_ids
    return self.extend(clips, prompts, num_frames, seed, overlap_frames=overlap_frames, **settings)

  def extend(
    self,
    clips: UInt8[np.ndarray, "b u H W 3"],
    prompts: list[str],
    num_frames: int,
    seed: int = 0,
    *,
    overlap_frames: int = 1,
    sample_ids: Sequence[int] | None = None,
    **settings: Any,
  ) -> UInt8[np.ndarray, "b f H W 3"]:
    """Continues clips of any length: their last frames are encoded again, as the first of a window.

    Args:
      clips: clips to continue, one for each prompt; returned unchanged with new frames appended.
      prompts: texts.
      num_frames: length of the result, tau k frames more than the clips have.
      seed: random seed.
      overlap_frames: how many last frames each window starts from: one, or one and whole clips of
        the quantizer.
      sample_ids: see `sample`.
      **settings: see `sample`.
    Raises:
      ValueError: as `sample`.
    """
    clips = self.requests.check_extension(clips, len(prompts), num_frames, overlap_frames)
    while clips.shape[1] < num_frames:
      keys = self._keys(prompts, seed, sample_ids, clips.shape[1])
      head = clips[:, -overlap_frames:]
      new = self._clips(prompts, self.num_frames, keys, head, settings)
      clips = np.concatenate([clips, new[:, overlap_frames:]], axis=1)
    return clips[:, :num_frames]

  def stream(
    self,
    prompts: list[str],
    num_frames: float | None = None,
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    video: UInt8[np.ndarray, "*b u H W 3"] | None = None,
    sample_ids: Sequence[int] | None = None,
    **settings: Any,
  ) -> Iterator[UInt8[np.ndarray, "b f H W 3"]]:
    """Generates clips and yields their frames as soon as they are ready: one, then clip by clip.

    They are the frames of `sample`, up to rounding. Beyond the trained length, each window starts
    from the last frame of the one before. All prompts are one batch.

    Args:
      prompts, seed, image, video, sample_ids, **settings: see `sample`.
      num_frames: see `sample`; `math.inf` for an endless stream.
    Raises:
      ValueError: as `sample`; raised by the call, not by the first frame.
    """
    wanted = self.num_frames if num_frames is None else num_frames
    length = int(min(wanted, self.num_frames))
    self.requests.check_devices(len(prompts))
    keys = functools.partial(self._keys, prompts, seed, sample_ids)
    request = self._request(prompts, length, keys(), first_frames(image, video), settings)
    return self._stream(request, prompts, wanted, keys, settings)

  def interact(
    self,
    prompts: list[str],
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    video: UInt8[np.ndarray, "*b u H W 3"] | None = None,
    sample_ids: Sequence[int] | None = None,
    **settings: Any,
  ) -> Story:
    """Begins stories, whose clips are made one after the other: the interactive mode.

    For networks that were trained for it. The first clip has a latent frame and a clip of the
    quantizer, 81 frames in the public models; later ones go on from the clip before. All stories
    are one batch.

    Args:
      prompts: of the first clips; with `video`, one for each story, which is not read.
      image, seed, sample_ids, **settings: see `sample`.
      video: the first clips, at least as long; stories go on from their last frames.
    Returns:
      The stories: `frames` are those of the first clips, as reconstructed by the tokenizer if they
      are given; `extend(prompts)` returns those of the next.
    Raises:
      ValueError: as `sample`; or the network cannot make such clips.
    """
    num_frames = self.clip_frames
    self.requests.check_prompts(prompts)
    self.requests.check_devices(len(prompts))
    keys = functools.partial(self._keys, prompts, seed, sample_ids)
    layout = layout_of_clip(self.generator.config, self._layout(num_frames).grid)
    if video is None and num_frames > self.num_frames:
      raise ValueError(
        f"interactive mode begins with a clip of {num_frames} frames, but the model was trained "
        f"on {self.num_frames}; give that clip as video"
      )
    if video is None:
      request = self._request(prompts, num_frames, keys(), first_frames(image, None), settings)
      latents = jnp.concatenate(list(request(np.arange(len(prompts)))), axis=1)
    else:
      given = self.requests.check_conditioning(first_frames(image, video), len(prompts), "video")
      if given.shape[1] < num_frames:
        raise ValueError(f"video: {given.shape[1]} frames are less than a clip's {num_frames}")
      latents = self._programs.encode(given[:, -num_frames:])

    def next_latents(prompts, num_so_far: int, first, previous, settings):
      sampling = InfinityStarSampling(**self.requests.with_defaults(settings))
      text, negative = self._encode_prompts(prompts, sampling, self._seconds(num_frames))
      embedded = self._programs.prompts(text, negative, sampling.guidance != 1)
      context = tuple(
        self._programs.read_latents(*condition, len(embedded.rows))
        for condition in conditions_of(first, previous, layout)
      )
      plan = generate.Plan.of(layout, sampling)
      (latents,) = self._programs.pyramids(plan, embedded, keys(num_so_far), (), context)
      return latents

    def pixels(parts):
      return fetch(self._programs.decode(parts))

    return Story(pixels([latents]), latents, next_latents, pixels, num_frames - 1)

  def score(
    self, prompts: list[str], video: UInt8[np.ndarray, "b f H W 3"]
  ) -> dict[str, Float[np.ndarray, "b"]]:
    """Scores given clips, teacher-forced: each bit is predicted from the true ones before it.

    Args:
      prompts: texts.
      video: a clip for each, of 1 + tau k frames.
    Returns:
      Loss and share of right bits of each clip by name, of a repetition of each scale that is drawn
      once for all.
    Raises:
      ValueError: a prompt is too long, or clips do not fit.
    """
    video = self.requests.check_conditioning(np.asarray(video), len(prompts), "video")
    layout, seconds = self._layout(video.shape[1]), self._seconds(video.shape[1])
    texts = np.stack([self.text_encoder.encode(prompt, seconds=seconds) for prompt in prompts])
    parts = []
    for rows, num in self.requests.batches(len(prompts)):
      found = self._programs.score(texts[rows], self._programs.encode(video[rows]), layout)
      parts.append({name: fetch(values)[:num] for name, values in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

  def _layout(self, num_frames: int) -> Layout:
    shape = self.tokenizer.config.latent_shape(num_frames, self.resolution)
    return layout_of(self.generator.config, shape)

  def _seconds(self, num_frames: int) -> float:
    """Returns the duration that a prompt names; 0 for images."""
    return (num_frames - 1) / self.frame_rate

  def _num_given_scales(self, layout: Layout, num_frames: int) -> int:
    """Returns how many scales given frames have; raises ValueError unless they fill pyramids."""
    fits = given_lengths(layout, self.tokenizer.config)
    if num_frames not in fits:
      raise ValueError(
        f"video: {num_frames} frames end within a clip of the quantizer, which codes "
        f"{self.generator.config.clip_length} latent frames as one; give one of "
        f"{', '.join(map(str, fits))}"
      )
    ends = [s for s, scale in enumerate(layout.schedule) if scale.is_last]
    return 1 + ends[fits.index(num_frames)]

  def _keys(
    self, prompts: list[str], seed: int, sample_ids: Sequence[int] | None, window: int = 0
  ) -> UInt32[np.ndarray, "b _k"]:
    """Returns data of a key for each clip; another one for each window, named by its first frame.

    They are numbers, which every process has: keys are on a device of this one.
    """
    self.requests.check_prompts(prompts)
    sample_ids = jnp.asarray(self.requests.check_sample_ids(sample_ids, len(prompts)))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, window))(sample_keys(seed, sample_ids))
    return np.asarray(jax.random.key_data(keys))

  def _clips(self, prompts, num_frames: int, keys, given, settings: dict):
    """Generates clips of at most the trained length, one batch after the other."""
    request = self._request(prompts, num_frames, keys, given, settings)
    clips = []
    for rows, num in self.requests.batches(len(prompts)):
      clips.append(fetch(self._programs.decode(list(request(rows))))[:num])
    return np.concatenate(clips)

  def _request(
    self, prompts, num_frames: int, keys, given, settings: dict
  ) -> Callable[[np.ndarray], Iterator[Array]]:
    """Checks a request; returns a function from the rows of a batch to latents of its pyramids."""
    requests, num = self.requests, len(prompts)
    sampling = InfinityStarSampling(**requests.with_defaults(settings))
    num_latents = requests.check_frames(num_frames)
    layout, num_given = self._layout(num_frames), 0
    if given is not None:
      given = requests.check_conditioning(given, num, "video")
      requests.check_conditioning_length(given.shape[1], num_latents)
      num_given = self._num_given_scales(layout, given.shape[1])
    text, negative = self._encode_prompts(prompts, sampling, self._seconds(num_frames))
    plan = generate.Plan.of(layout, sampling)
    schedule = layout.schedule[:num_given]

    def generate_rows(rows: np.ndarray) -> Iterator[Array]:
      embedded = self._programs.prompts(
        text[rows], None if negative is None else negative[rows], sampling.guidance != 1
      )
      bits = ()
      if num_given:
        bits = self._programs.quantize(self._programs.encode(given[rows]), schedule)
      return self._programs.pyramids(plan, embedded, keys[rows], bits)

    return generate_rows

  def _encode_prompts(self, prompts: list[str], sampling: InfinityStarSampling, seconds: float):
    """Returns the text of prompts, and of what guidance leads away from, or None."""
    text = np.stack([self.text_encoder.encode(prompt, sampling, seconds) for prompt in prompts])
    if not sampling.negative_prompt:
      return text, None
    negative = self.text_encoder.text_encoder.encode(sampling.negative_prompt)
    return text, np.broadcast_to(negative, text.shape)

  def _stream(self, request, prompts, wanted: float, keys, settings: dict):
    state, done = None, 0
    for latents in request(np.arange(len(prompts))):
      frames, state = self.tokenizer.decode_chunk(latents, state)
      clips = fetch(to_uint8(frames))
      done += clips.shape[1]
      yield clips
    while done < wanted:
      new = self._clips(prompts, self.num_frames, keys(done), clips[:, -1:], settings)
      clips = new[:, 1 : 1 + int(min(wanted - done, self.num_frames - 1))]
      done += clips.shape[1]
      yield clips
