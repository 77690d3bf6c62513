"""A trained Infinity with its tokenizer and text encoder: from prompts to images."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from videoar_jax.models.base import ClipShape
from videoar_jax.models.infinity.config import InfinitySampling, as_text
from videoar_jax.models.infinity.decode import decode, negative_of, settings_of
from videoar_jax.models.infinity.layout import Layout, layout_of
from videoar_jax.models.infinity.network import Infinity
from videoar_jax.models.infinity.task import predict
from videoar_jax.models.request import ClipRequests, sample_keys
from videoar_jax.nn.quantized import with_dtype
from videoar_jax.parallel.compiler import jitted
from videoar_jax.parallel.mesh import call_on, num_batch_shards, shard_padded
from videoar_jax.parallel.processes import fetch
from videoar_jax.parallel.programs import Program
from videoar_jax.parallel.rules import constrain
from videoar_jax.tokenizers.base import Tokenizer
from videoar_jax.tokenizers.programs import to_latents, to_pixels

_ROWS = 64  # Lengths of prompts are multiples of it.


def _sample_images(
  generator: Infinity,
  texts,
  negative,
  seed,
  sample_ids,
  *,
  sampling: InfinitySampling,
  layout: Layout,
) -> Float[Array, "b 1 h w d"]:
  settings = settings_of(sampling, layout.num_scales, texts, negative)
  found = decode(generator, layout, texts, sample_keys(seed, sample_ids), **settings)
  latents = found.quantized[:, None].astype(jnp.float32)
  return constrain(latents, ("batch", None, None, None, None))


def _score_images(generator: Infinity, texts, latents, *, layout: Layout) -> dict[str, Array]:
  losses, shares = predict(generator, layout, texts, latents)
  return {"loss": jnp.mean(losses, axis=(1, 2))} | shares


# Programs of all models: a second one of the same kind compiles nothing.
_sample = Program(_sample_images, static_argnames=("sampling", "layout"))
_score = jitted(_score_images, static_argnames="layout")


class Model:
  """Generates images, which are clips of one frame; see `models.base.Model`.

  Args:
    generator: the network; with a mesh, its parameters must already be on it.
    tokenizer: codes images.
    text_encoder: maps prompts to `text`.
    resolution: (H, W) of the images; a public network makes those of
      `schedules.nearest_resolution`.
    sampling: defaults of requests.
    mesh: devices that share the work; None for one.
    dtype: of the generator's weights and cache.
    batch_size: images that are made together; None for about 16.
  Raises:
    ValueError: the tokenizer cannot code such images, or the devices cannot share such batches.
  """

  def __init__(
    self,
    generator: Infinity,
    tokenizer: Tokenizer,
    text_encoder,
    resolution: tuple[int, int],
    sampling: InfinitySampling,
    *,
    mesh: Mesh | None = None,
    dtype=jnp.float32,
    batch_size: int | None = None,
  ):
    self.generator = with_dtype(generator, dtype)
    self.tokenizer, self.text_encoder, self.mesh = tokenizer, text_encoder, mesh
    config = generator.config
    self.layout = layout_of(tokenizer.config, resolution, config.patch_size, config.rope_grid)
    self.requests = ClipRequests(
      text_encoder,
      tokenizer.config,
      ClipShape(1, tuple(resolution)),
      defaults=dataclasses.asdict(sampling),
      num_shards=1 if mesh is None else num_batch_shards(mesh),
      batch_size=batch_size,
    )
    self.num_frames, self.resolution = 1, tuple(resolution)
    self.batch_size = self.requests.batch_size

  def num_steps(self, num_frames: int | None = None) -> int:
    """Returns how often the transformer runs for an image: once for each scale."""
    self._check_frames(num_frames)
    return self.layout.num_scales

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
  ) -> UInt8[np.ndarray, "b 1 H W 3"]:
    """Generates an image for each prompt.

    An image depends on the seed, its number and its prompt, but not on its batch.

    Args:
      prompts: texts.
      num_frames: 1, or None.
      seed: random seed.
      image, video, overlap_frames: not supported; None.
      sample_ids: numbers of the images under the seed; None counts from 0.
      **settings: fields of `InfinitySampling`; guidance and temperature may also be a number, or
        one for each scale. Defaults are in the run's config.
    Raises:
      ValueError: a prompt is too long, a number is out of range, or frames are asked for.
    """
    self._check_frames(num_frames)
    for name, value in (("image", image), ("video", video), ("overlap_frames", overlap_frames)):
      if value is not None:
        raise ValueError(f"{name}: the model makes images from prompts alone; leave it out")
    requests, num = self.requests, len(prompts)
    requests.check_prompts(prompts)
    values = requests.with_defaults(settings)
    for name in ("guidance", "temperature"):
      values[name] = as_text(values[name])
    sampling = InfinitySampling(**values)
    sample_ids = requests.check_sample_ids(sample_ids, num)
    texts = self._texts(prompts, sampling.negative_prompt)
    negative = negative_of(sampling, self.text_encoder)
    images = []
    for rows, count in requests.batches(num):
      latents = self._run(
        _sample,
        *(self.generator, texts[rows], negative, np.uint64(seed), sample_ids[rows]),
        sampling=sampling,
        layout=self.layout,
      )
      pixels = self._run(to_pixels, self.tokenizer.autoencoder, latents)
      images.append(fetch(pixels)[:count])
    return np.concatenate(images)

  def extend(
    self,
    clips: UInt8[np.ndarray, "b f H W 3"],
    prompts: list[str],
    num_frames: int,
    seed: int = 0,
    *,
    overlap_frames: int = 1,
    **settings: Any,
  ) -> UInt8[np.ndarray, "b g H W 3"]:
    """Raises ValueError: an image has no frames that follow."""
    raise ValueError("the model makes images, which it cannot continue; use a video model")

  def stream(
    self,
    prompts: list[str],
    num_frames: float | None = None,
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    video: UInt8[np.ndarray, "*b f H W 3"] | None = None,
    **settings: Any,
  ) -> Iterator[UInt8[np.ndarray, "b f H W 3"]]:
    """Generates images and yields them; see `sample`."""
    yield self.sample(prompts, num_frames, seed, image=image, video=video, **settings)

  def score(
    self, prompts: list[str], video: UInt8[np.ndarray, "b f H W 3"]
  ) -> dict[str, Float[np.ndarray, "b"]]:
    """Scores given images, teacher-forced: nothing is flipped, dropped or sampled.

    Args:
      prompts: texts.
      video: an image for each, of one frame.
    Returns:
      For each image `loss`, in nats per bit with all bits weighted equally, and the shares of
      right bits, over all scales and of each.
    Raises:
      ValueError: a prompt is too long, or images do not fit.
    """
    video = self.requests.check_conditioning(np.asarray(video), len(prompts), "video")
    self._check_frames(video.shape[1])
    texts, parts = self._texts(prompts), []
    for rows, count in self.requests.batches(len(prompts)):
      batch = shard_padded(video[rows], self.mesh)
      latents = self._run(to_latents, self.tokenizer.autoencoder, batch)
      found = self._run(_score, self.generator, texts[rows], latents, layout=self.layout)
      parts.append({name: fetch(values)[:count] for name, values in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

  def _check_frames(self, num_frames: float | None) -> None:
    if num_frames not in (None, 1):
      raise ValueError(f"num_frames={num_frames}: the model makes images, of 1 frame")

  def _texts(self, prompts: list[str], negative: str | None = None):
    """Returns encoded prompts, without rows at the end that are padding in all of them.

    Most prompts are far shorter than the longest that the network takes, and padding costs as much
    as text. Lengths are whole multiples of `_ROWS`, so that few programs are compiled.
    """
    others = [] if negative is None else [negative]
    texts = np.stack([self.text_encoder.encode(prompt) for prompt in [*prompts, *others]])
    is_used = (texts != 0).any(axis=(0, *range(2, texts.ndim)))
    num = max(np.flatnonzero(is_used), default=0) + 1
    return texts[: len(prompts), : -(-num // _ROWS) * _ROWS]

  def _run(self, function, *arguments, **settings):
    """Calls a function, on the mesh if there is one."""
    return call_on(self.mesh, function, *arguments, **settings)
