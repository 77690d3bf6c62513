"""A trained NOVA with its tokenizer and text encoder: from prompts to clips."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from videoar_jax.models.base import ClipShape
from videoar_jax.models.nova import generate, loss, orders
from videoar_jax.models.nova.config import NovaSampling
from videoar_jax.models.nova.network import Nova
from videoar_jax.models.nova.task import null_of, plan_of
from videoar_jax.models.request import ClipRequests, first_frames
from videoar_jax.nn.quantized import with_dtype
from videoar_jax.parallel.compiler import jitted
from videoar_jax.parallel.mesh import call_on, num_batch_shards, shard_padded
from videoar_jax.parallel.processes import fetch
from videoar_jax.parallel.programs import Program
from videoar_jax.parallel.rules import constrain, num_shards
from videoar_jax.tokenizers.base import Tokenizer
from videoar_jax.tokenizers.pixels import to_float
from videoar_jax.tokenizers.programs import to_pixels

_REPEATS = 4  # How often a clip's tokens are noised to score it.


def _sample_clips(
  generator: Nova,
  texts,
  null,
  seed,
  sample_ids,
  window,
  conditioning,
  *,
  sampling: NovaSampling,
  latent_shape: tuple[int, int, int],
) -> Float[Array, "b t h w c"]:
  plan = plan_of(generator.config, sampling, latent_shape)
  flow = None if sampling.motion is None else jnp.full(len(texts), sampling.motion)
  latents = generate.generate(
    generator,
    plan,
    texts,
    jnp.asarray(null),
    flow,
    generate.key_draws(seed, sample_ids, plan, generator.config, window),
    conditioning,
  )
  return constrain(latents.astype(jnp.float32), ("batch", None, None, None, None))


def _score_clips(generator: Nova, texts, latents: Float[Array, "b t h w c"]) -> dict[str, Array]:
  """Scores one clip of each device at a time."""
  config, (b, t, h, w, _) = generator.config, latents.shape
  process, num_tokens = config.process(), h * w // config.patch_size**2
  own = loss.draw(jax.random.key(0), t, num_tokens, config.token_width, _REPEATS, process)
  num = num_shards("batch")

  def for_each(x):
    """Repeats the draws of a clip's frames for each clip of a group."""
    frames = x.reshape(-1, 1, t, *x.shape[1:])
    return jnp.broadcast_to(frames, (len(frames), num, *frames.shape[2:])).reshape(-1, *x.shape[1:])

  draws = loss.Draws(for_each(own.order), own.num_known, for_each(own.noise), for_each(own.level))

  def group(pair):
    text, clips = pair
    prefix = generator.temporal.prefix(text, None, jnp.dtype(config.dtype))
    return loss.parts_of(loss.errors(generator, clips, prefix, draws, process).by_clip())

  def split(x):  # Every group has a clip of each device.
    return jnp.swapaxes(jnp.reshape(x, (num, b // num, *x.shape[1:])), 0, 1)

  parts = jax.lax.map(group, (split(jnp.asarray(texts)), split(latents)))
  first, later = (jnp.swapaxes(part, 0, 1).reshape(b) for part in parts)
  return {"loss": first + later, "loss_first": first, "loss_later": later}


# Programs of all models: a second one of the same kind compiles nothing.
_sample = Program(_sample_clips, static_argnames=("sampling", "latent_shape"))
_score = jitted(_score_clips)


class Model:
  """Generates clips; see `models.base.Model`.

  Args:
    generator: the network; with a mesh, its parameters must already be on it.
    tokenizer: codes frames.
    text_encoder: maps prompts to `text`.
    shape: of the clips that the model was trained on.
    sampling: defaults of requests.
    mesh: devices that share the work; None for one.
    dtype: of the generator's weights and cache.
    batch_size: clips that are made together; None for about 16.
  Raises:
    ValueError: the devices cannot share batches of that size.
  """

  def __init__(
    self,
    generator: Nova,
    tokenizer: Tokenizer,
    text_encoder,
    shape: ClipShape,
    sampling: NovaSampling,
    *,
    mesh: Mesh | None = None,
    dtype=jnp.float32,
    batch_size: int | None = None,
  ):
    self.generator = with_dtype(generator, dtype)
    self.tokenizer, self.text_encoder, self.mesh = tokenizer, text_encoder, mesh
    self.requests = ClipRequests(
      text_encoder,
      tokenizer.config,
      shape,
      defaults=dataclasses.asdict(sampling),
      num_shards=1 if mesh is None else num_batch_shards(mesh),
      batch_size=batch_size,
    )
    self.num_frames, self.resolution = shape
    self.batch_size = self.requests.batch_size

  def num_steps(self, num_frames: int | None = None) -> int:
    """Returns how often the transformers run for a clip: once for each frame and for each set.

    Args:
      num_frames: pixel frames of the clip; None for as many as trained.
    """
    num_latents = self.requests.check_frames(num_frames or self.num_frames)
    _, h, w = self.tokenizer.config.latent_shape(1, self.resolution)
    size = self.generator.config.patch_size
    num_sets = len(orders.set_sizes(self.requests.defaults["num_ar_steps"], h * w // size**2))
    return num_latents * (1 + num_sets)

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
      num_frames: 1 + tau k pixel frames, conditioning ones included, at most as many as in training
        without `overlap_frames`; None for as many.
      seed: random seed.
      image: the first frame, one for all prompts or one each. Conditioning frames are returned
        as reconstructed by the tokenizer.
      video: instead, the first 1 + tau k frames.
      overlap_frames: for longer clips, see `extend`.
      sample_ids: numbers of the clips under the seed; None counts from 0.
      **settings: fields of `NovaSampling`; defaults are in the run's config.
    Raises:
      ValueError: a prompt is too long, a number is out of range, or frames do not fit.
    """
    num_frames = self.num_frames if num_frames is None else num_frames
    if overlap_frames is not None:
      self.requests.check_overlap_frames(overlap_frames)
    else:
      self.requests.check_is_trained_length(num_frames)
    if num_frames > self.num_frames:
      settings["sample_ids"] = sample_ids
      clips = self.sample(prompts, None, seed, image=image, video=video, **settings)
      return self.extend(
        clips, prompts, num_frames, seed, overlap_frames=overlap_frames, **settings
      )
    return self._clips(prompts, num_frames, seed, first_frames(image, video), sample_ids, settings)

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
      overlap_frames: how many last frames each window starts from, 1 + tau k.
      sample_ids: see `sample`.
      **settings: see `sample`.
    Raises:
      ValueError: as `sample`.
    """
    clips = self.requests.check_extension(clips, len(prompts), num_frames, overlap_frames)
    while clips.shape[1] < num_frames:
      head, before = clips[:, -overlap_frames:], clips.shape[1]
      new = self._clips(prompts, self.num_frames, seed, head, sample_ids, settings, before)
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
    """Generates clips of any length, and yields them a window of the trained length at a time.

    Each window starts from the last frame of the one before.

    Args:
      prompts, seed, image, video, sample_ids, **settings: see `sample`.
      num_frames: see `sample`; `math.inf` for an endless stream.
    Raises:
      ValueError: as `sample`.
    """
    num_frames = self.num_frames if num_frames is None else num_frames
    settings["sample_ids"] = sample_ids
    clips = self.sample(
      prompts, int(min(num_frames, self.num_frames)), seed, image=image, video=video, **settings
    )
    done = clips.shape[1]
    yield clips
    while done < num_frames:
      more = int(min(num_frames - done, self.num_frames - 1))
      head = self.requests.check_extension(clips[:, -1:], len(prompts), 1 + more, 1)
      values = dict(settings)
      ids = values.pop("sample_ids")
      clips = self._clips(prompts, self.num_frames, seed, head, ids, values, done)[:, : 1 + more]
      done += more
      yield clips[:, 1:]

  def score(
    self, prompts: list[str], video: UInt8[np.ndarray, "b f H W 3"]
  ) -> dict[str, Float[np.ndarray, "b"]]:
    """Returns the training loss of given clips, with the same noise for each.

    Args:
      prompts: texts.
      video: a clip for each, of 1 + tau k frames.
    Raises:
      ValueError: a prompt is too long, or clips do not fit.
    """
    video = self.requests.check_conditioning(np.asarray(video), len(prompts), "video")
    texts = np.stack([self.text_encoder.encode(prompt) for prompt in prompts])
    parts = []
    for rows, num in self.requests.batches(len(prompts)):
      latents = self._latents(video[rows])
      found = self._run(_score, self.generator, texts[rows], latents)
      parts.append({name: fetch(values)[:num] for name, values in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

  def _clips(
    self,
    prompts,
    num_frames: int,
    seed: int,
    conditioning,
    sample_ids,
    settings: dict,
    window: int = 0,
  ):
    """Generates clips of at most the trained length, one batch after the other.

    Args:
      prompts, num_frames, seed, sample_ids, settings: see `sample`.
      conditioning: their first frames; None for none.
      window: frames before them, which have other random numbers.
    """
    requests, num = self.requests, len(prompts)
    requests.check_prompts(prompts)
    sampling = NovaSampling(**requests.with_defaults(settings))
    if sampling.motion is not None and not self.generator.config.has_motion:
      raise ValueError(
        f"motion={sampling.motion}: the model was trained without motion tokens; leave it out"
      )
    num_latents = requests.check_frames(num_frames)
    sample_ids = requests.check_sample_ids(sample_ids, num)
    if conditioning is not None:
      conditioning = requests.check_conditioning(conditioning, num, "video")
      requests.check_conditioning_length(conditioning.shape[1], num_latents)
    texts = np.stack([self.text_encoder.encode(prompt) for prompt in prompts])
    latent_shape = self.tokenizer.config.latent_shape(num_frames, self.resolution)
    clips = []
    for rows, count in requests.batches(num):
      latents = self._run(
        _sample,
        self.generator,
        texts[rows],
        null_of(self.text_encoder),
        np.uint64(seed),
        sample_ids[rows],
        np.uint32(window),
        None if conditioning is None else self._latents(conditioning[rows]),
        sampling=sampling,
        latent_shape=latent_shape,
      )
      pixels = self._run(to_pixels, self.tokenizer.autoencoder, latents)
      clips.append(fetch(pixels)[:count])
    return np.concatenate(clips)

  def _latents(self, video: UInt8[np.ndarray, "b f H W 3"]) -> Float[Array, "b t h w c"]:
    batch = shard_padded(video, self.mesh)
    return self._run(self.tokenizer.encode, to_float(batch))

  def _run(self, function, *arguments, **settings):
    """Calls a function, on the mesh if there is one."""
    return call_on(self.mesh, function, *arguments, **settings)
