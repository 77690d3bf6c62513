"""The trained model, for use: prompts, images and clips to clips."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from videoar_jax.parallel.sharding import batch_ways
from videoar_jax.tokenizer.tokenizer import Tokenizer, to_float, to_uint8
from videoar_jax.videoar import decode as decoding
from videoar_jax.videoar.guidance import guidance_table
from videoar_jax.videoar.layout import Layout
from videoar_jax.videoar.model import Generator
from videoar_jax.videoar.prediction import foretell

BATCH_SIZE = 16  # Prompts that are decoded together; more go through in turns.
_PIXEL_BYTES = 2**28  # Of the largest array when pixels are made; more clips or frames take turns.


@dataclasses.dataclass(frozen=True)
class _Request:
  """What to generate, checked.

  Attributes:
    texts: tokens `[b, P]` of the prompts.
    seed: of the draws.
    numbers: of the clips under the seed.
    layout: the sequence; a stream's is the trained one.
    window: earlier frames that a frame sees; None for all.
    table: guidance, None for 1 everywhere; later frames take its last row.
    temperature, top_p: see `decode.sample_bits`.
    given: frames to go on from `[b, f, H, W, 3]`, if any.
    epoch: frames before this clip's own, which make its draws others than theirs.
  """

  texts: np.ndarray
  seed: int
  numbers: np.ndarray
  layout: Layout
  window: int | None
  table: np.ndarray | None
  temperature: float
  top_p: float
  given: np.ndarray | None
  epoch: int = 0

  def keys(self, rows: np.ndarray | slice = slice(None)) -> Array:
    """Returns the keys of some clips."""
    keys = decoding.sample_keys(self.seed, jnp.asarray(self.numbers[rows]))
    return jax.vmap(lambda key: jax.random.fold_in(key, self.epoch))(keys) if self.epoch else keys


class Model:
  """A generator with its tokenizer and prompt encoder.

  Args:
    generator: the trained transformer; over a mesh, with its parameters there already.
    tokenizer: the tokenizer it was trained on.
    text_encoder: maps prompts to tokens, with `encode` and `null`.
    layout: the sequence it was trained on.
    defaults: `guidance`, `temperature` and `top_p` for calls that name none.
    window: earlier latent frames that a frame sees; None for all.
    mesh: devices that share the work: heads are split over `tensor`, clips over `data` and `fsdp`.
    dtype: of the generator's weights and cache.
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
    mesh: Mesh | None = None,
    dtype=jnp.float32,
  ):
    self.generator = jax.tree.map(lambda x: x.astype(dtype), generator)
    self.tokenizer, self.layout, self.mesh = tokenizer, layout, mesh
    self.text_encoder, self.defaults, self.window = text_encoder, defaults, window
    self._sample = jax.jit(self._sample_batch, static_argnames=("layout", "window"))
    self._foretell = jax.jit(foretell, static_argnames=("layout", "window"))
    self._start = jax.jit(decoding.start, static_argnames=("layout", "slots", "is_guided"))
    self._write_frame = jax.jit(decoding.write_frame, static_argnums=1, donate_argnums=2)
    self._decode_frame = jax.jit(decoding.decode_frame, static_argnums=1, donate_argnums=2)

  @property
  def num_frames(self) -> int:
    """Frames of the clips that the model was trained on."""
    return 1 + (self.layout.num_frames - 1) * self.tokenizer.config.temporal_stride

  @property
  def resolution(self) -> tuple[int, int]:
    """(H, W) of the clips that the model was trained on."""
    height, width = (n * self.tokenizer.config.spatial_stride for n in self.layout.grid)
    return height, width

  @property
  def num_steps(self) -> int:
    """Runs of the transformer for a clip of the trained length, beside that for the prompt."""
    num_frames = self.layout.num_frames
    num_finals = num_frames - 1 if self.layout.final_size else 0
    return num_frames * self.layout.num_scales + num_finals

  def sample(
    self,
    prompts: list[str],
    num_frames: int | None = None,
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    video: UInt8[np.ndarray, "*b f H W 3"] | None = None,
    window: int | None = None,
    reencode: int | None = None,
    numbers: Sequence[int] | None = None,
    **settings: Any,
  ) -> UInt8[np.ndarray, "b f H W 3"]:
    """Generates a clip for each prompt.

    A clip is a function of the seed, its number, and its prompt: batches do not change it.

    Args:
      prompts: texts.
      num_frames: 1 + tau k pixel frames, given ones included; None for as many as trained.
      seed: of the draws.
      image: the first frame, one for all prompts or one each. Given frames come back as the
        tokenizer codes them, so that they join on to what follows.
      video: instead, the first 1 + tau k frames.
      window: earlier latent frames that a frame sees; None for as in training.
      reencode: beyond the trained length, see `extend`; None decodes on in one sequence.
      numbers: of the clips under the seed; None counts them from 0.
      **settings: `guidance`, see `guidance.guidance_table`; `temperature` of the bits, 0 takes the
        likelier value; `top_p`, see `decode.sample_bits`. As in the run's config, if not named.
    Raises:
      ValueError: a prompt is too long, a number is out of its range, or frames do not fit.
    """
    if reencode is not None:
      self._check_reencode(reencode)
    if reencode is not None and num_frames is not None and num_frames > self.num_frames:
      self._check_frames(num_frames)
      settings |= {"window": window, "numbers": numbers}
      clips = self.sample(prompts, None, seed, image=image, video=video, **settings)
      return self.extend(clips, prompts, num_frames, seed, reencode=reencode, **settings)
    given = _first_frames(image, video)
    settings["numbers"] = numbers
    return self._generate(self._request(prompts, num_frames, seed, given, window, **settings))

  def extend(
    self,
    clips: UInt8[np.ndarray, "b f H W 3"],
    prompts: list[str],
    num_frames: int,
    seed: int = 0,
    *,
    reencode: int = 1,
    window: int | None = None,
    numbers: Sequence[int] | None = None,
    **settings: Any,
  ) -> UInt8[np.ndarray, "b f H W 3"]:
    """Goes on from clips of any length: their last frames are encoded anew, as a clip's first.

    The sequence never gets longer than in training. Other prompts than before make the next shot.

    Args:
      clips: what to go on from, one for each prompt; comes back as it is, with more frames behind.
      prompts: texts.
      num_frames: tau k more frames than the clips have.
      seed: of the draws.
      reencode: how many last frames each window starts from, 1 + tau k.
      window: see `sample`.
      numbers: see `sample`.
      **settings: see `sample`.
    Raises:
      ValueError: as `sample`.
    """
    settings["numbers"] = numbers
    self._check_reencode(reencode)
    tau = self.tokenizer.config.temporal_stride
    given = self._check_given(np.asarray(clips), len(prompts), "clips")
    if given.shape[1] < reencode:
      raise ValueError(f"clips: {given.shape[1]} frames are less than reencode={reencode}")
    more = num_frames - given.shape[1]
    if more < tau or more % tau:
      below = given.shape[1] + max(1, more // tau) * tau
      raise ValueError(
        f"num_frames={num_frames}: must be {tau} k more than the {given.shape[1]} frames given; "
        f"take {below} or {below + tau}"
      )
    clips = given
    while clips.shape[1] < num_frames:
      head = clips[:, -reencode:]
      request = self._request(prompts, None, seed, head, window, **settings)
      new = self._generate(dataclasses.replace(request, epoch=clips.shape[1]))[:, reencode:]
      clips = np.concatenate([clips, new], axis=1)
    return clips[:, :num_frames]

  def stream(
    self,
    prompts: list[str],
    num_frames: float | None = None,
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    video: UInt8[np.ndarray, "*b f H W 3"] | None = None,
    window: int | None = None,
    **settings: Any,
  ) -> Iterator[UInt8[np.ndarray, "b f H W 3"]]:
    """Generates clips and hands out their frames as they are ready: one first, then tau each time.

    They are the frames of `sample`, but for the rounding of float sums. All prompts go together.

    Args:
      prompts: texts.
      num_frames: see `sample`; `math.inf` for no end, which needs a window.
      seed: see `sample`.
      image: see `sample`.
      video: see `sample`; comes first, in one piece.
      window: see `sample`. With one, memory and time a frame do not grow.
      **settings: see `sample`.
    Raises:
      ValueError: as `sample`, before the first frame is asked for.
    """
    is_endless = num_frames == math.inf
    window = self.window if window is None else window
    if is_endless and window is None:
      raise ValueError("num_frames=inf: without a window the cache has no end; set window=")
    if is_endless and self.generator.position_embedding is not None:
      raise ValueError("num_frames=inf: learned positions end at the trained length")
    given = _first_frames(image, video)
    wanted = None if is_endless else num_frames
    request = self._request(
      prompts, wanted, seed, given, window, is_stream=True, is_endless=is_endless, **settings
    )
    num_latents = math.inf if is_endless else request.layout.num_frames
    slots = window if is_endless else decoding.num_slots(num_latents, request.window)
    return self._stream(request, num_latents, slots)

  def predict(
    self, prompts: list[str], video: UInt8[np.ndarray, "b f H W 3"]
  ) -> dict[str, Float[np.ndarray, "b"]]:
    """Measures how well given clips are foretold, each bit from the true ones before it.

    Args:
      prompts: texts.
      video: a clip for each, of 1 + tau k frames.
    Returns:
      Loss and accuracies of each clip by name, see `prediction.foretell`.
    Raises:
      ValueError: a prompt is too long, or clips do not fit.
    """
    video = self._check_given(np.asarray(video), len(prompts), "video")
    layout = self._layout_of(video.shape[1], self.window)
    found = self._run(
      self._foretell,
      self.generator,
      layout,
      np.stack([self.text_encoder.encode(prompt) for prompt in prompts]),
      self.tokenizer.latents(to_float(video)),
      window=self.window,
    )
    return {name: np.asarray(values) for name, values in found.items()}

  def _stream(self, request: _Request, num_latents: float, slots: int):
    table, layout = request.table, self.layout
    state = self._run(
      self._start,
      self.generator,
      layout,
      request.texts,
      self.text_encoder.null(),
      request.keys(),
      slots=slots,
      is_guided=table is not None,
    )
    t, pixels = 0, None
    if request.given is not None:
      bits = self._bits(request.given)
      t, latents = bits[0].shape[1], []
      for i in range(t):
        frame_bits = [scale[:, i] for scale in bits]
        state, total = self._run(self._write_frame, self.generator, layout, state, frame_bits)
        latents.append(total)
      frames, pixels = self.tokenizer.decode_chunk(jnp.stack(latents, 1))
      yield np.asarray(to_uint8(frames))
    while t < num_latents:
      row = (
        np.ones(layout.num_scales, np.float32) if table is None else table[min(t, len(table) - 1)]
      )
      draws = {"temperature": request.temperature, "top_p": request.top_p}
      state, out = self._run(self._decode_frame, self.generator, layout, state, row, **draws)
      frames, pixels = self.tokenizer.decode_chunk(out.latents[:, None], pixels)
      yield np.asarray(to_uint8(frames))
      t += 1

  def _generate(self, request: _Request) -> UInt8[np.ndarray, "b f H W 3"]:
    """Generates clips, a batch after the other."""
    num, clips = len(request.texts), []
    size = min(BATCH_SIZE, num)
    for start in range(0, num, size):
      # The last batch is filled up, so that one program serves all.
      rows = np.minimum(np.arange(start, start + size), num - 1)
      batch = self._run(
        self._sample,
        self.generator,
        request.texts[rows],
        request.keys(rows),
        request.table,
        None if request.given is None else self._bits(request.given[rows]),
        request.temperature,
        request.top_p,
        layout=request.layout,
        window=request.window,
      )
      clips.append(self._pixels(batch)[: num - start])
    return np.concatenate(clips)

  def _pixels(self, latents: Float[Array, "b t h w d"]) -> UInt8[np.ndarray, "b f H W 3"]:
    """Decodes clips, in memory that does not grow with their number or length."""
    b, t, *_ = latents.shape
    config, (height, width) = self.tokenizer.config, self.resolution
    channels = config.base_channels * config.multipliers[0]
    frame_bytes = 4 * config.temporal_stride * height * width * channels // config.patch_size**2
    num = max(1, _PIXEL_BYTES // frame_bytes)  # Latent frames, of one clip or of several.
    # All alike, so that one program serves them.
    rows = (
      b if self.mesh is not None else max(n for n in range(1, b + 1) if b % n == 0 and n <= num)
    )
    chunk = min(t, max(1, num // rows))
    clips = []
    for first in range(0, b, rows):
      part, state, frames = latents[first : first + rows], None, []
      for start in range(0, t, chunk):
        decoded = self._run(self.tokenizer.decode_chunk, part[:, start : start + chunk], state)
        frames.append(np.asarray(to_uint8(decoded[0])))
        state = decoded[1]
      clips.append(np.concatenate(frames, axis=1))
    return np.concatenate(clips)

  def _sample_batch(
    self, generator, texts, keys, table, given, temperature, top_p, *, layout, window
  ) -> Float[Array, "b t h w d"]:
    decoded = decoding.decode(
      generator,
      layout,
      texts,
      jnp.asarray(self.text_encoder.null()),
      keys,
      table,
      temperature=temperature,
      top_p=top_p,
      window=window,
      given=given,
    )
    return decoded.latents

  def _run(self, function, *arguments, **settings):
    """Calls a jitted function, on the mesh if there is one."""
    with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
      return function(*arguments, **settings)

  def _bits(self, video: UInt8[np.ndarray, "b f H W 3"]) -> list[Array]:
    """Returns the bits of given frames."""
    return self.tokenizer.quantize(
      self.tokenizer.latents(to_float(video)), self.layout.schedule
    ).bits

  def _request(
    self,
    prompts: list[str],
    num_frames: int | None,
    seed: int,
    given: np.ndarray | None,
    window: int | None,
    *,
    numbers: Sequence[int] | None = None,
    is_stream: bool = False,
    is_endless: bool = False,
    **settings: Any,
  ) -> _Request:
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
    numbers = np.arange(len(prompts)) if numbers is None else np.asarray(numbers)
    if numbers.shape != (len(prompts),):
      raise ValueError(f"numbers: needs one for each of {len(prompts)} prompts")
    self._check_devices(len(prompts) if is_stream else min(BATCH_SIZE, len(prompts)))
    layout = self._layout_of(num_frames, window)
    if given is not None:
      given = self._check_given(given, len(prompts), "image or video")
      self._check_given_length(given.shape[1], math.inf if is_endless else layout.num_frames)
    table = guidance_table(
      settings["guidance"], layout.num_frames, layout.num_scales, self.layout.num_frames
    )
    return _Request(
      np.stack([self.text_encoder.encode(prompt) for prompt in prompts]),
      seed,
      numbers,
      layout,
      window,
      None if (table == 1).all() else table,
      settings["temperature"],
      settings["top_p"],
      given,
    )

  def _check_devices(self, size: int) -> None:
    """Raises ValueError if the devices cannot share a batch of that size."""
    if self.mesh is None:
      return
    ways = batch_ways(self.mesh)
    if size % ways:
      raise ValueError(
        f"prompts: batches of {size} do not divide over {ways} devices of the mesh axes data and "
        f"fsdp; give a multiple of {ways} prompts"
      )

  def _check_frames(self, num_frames: int) -> int:
    """Returns the latent frames of a clip; raises ValueError if its length does not fit."""
    return self.tokenizer.config.latent_shape(num_frames, self.resolution)[0]

  def _check_reencode(self, reencode: int) -> None:
    tau = self.tokenizer.config.temporal_stride
    if not 1 <= reencode < self.num_frames or (reencode - 1) % tau:
      raise ValueError(
        f"reencode={reencode} must be 1 + {tau} k, from 1 to {self.num_frames - tau} frames: the "
        f"rest of the trained {self.num_frames} is new"
        if self.num_frames > 1
        else "reencode: the model was trained on single frames; it has no next ones"
      )

  def _check_given(self, given: np.ndarray, num: int, name: str) -> np.ndarray:
    """Returns given frames with their batch axis; raises ValueError if they do not fit."""
    if given.dtype != np.uint8:
      raise ValueError(f"{name}: needs uint8 pixels, got {given.dtype}")
    if given.ndim == 4:
      given = np.broadcast_to(given, (num, *given.shape))
    if given.ndim != 5 or given.shape[-1] != 3 or given.shape[0] != num:
      raise ValueError(f"{name}: needs frames [H, W, 3] for {num} prompts, got {given.shape}")
    if given.shape[2:4] != self.resolution:
      got, wanted = (f"{height}x{width}" for height, width in (given.shape[2:4], self.resolution))
      raise ValueError(f"{name}: is {got} pixels, but the model makes {wanted}; resize it")
    return given

  def _check_given_length(self, num_given: int, num_latents: float) -> None:
    tau = self.tokenizer.config.temporal_stride
    num_frames = 1 + tau * (num_latents - 1)
    if num_given < 1 or (num_given - 1) % tau:
      below = 1 + max(0, (num_given - 1) // tau) * tau
      raise ValueError(f"video: {num_given} frames are not 1 + {tau} k; give {below}")
    if num_given >= num_frames:
      raise ValueError(
        f"video: {num_given} frames leave nothing of num_frames={num_frames} to generate; give "
        "fewer, ask for more, or use extend"
      )

  def _layout_of(self, num_frames: int | None, window: int | None) -> Layout:
    if num_frames is None:
      return self.layout
    frames = self._check_frames(num_frames)
    if frames > self.layout.num_frames:
      if self.generator.position_embedding is not None:
        raise ValueError(
          f"num_frames={num_frames}: learned positions end at the trained {self.num_frames} frames"
        )
      if window is None:
        raise ValueError(
          f"num_frames={num_frames} is more than the {self.num_frames} trained ones: set window= "
          f"to the latent frames that a frame is to see ({self.layout.num_frames - 1} at most in "
          f"training, {frames} for all), or reencode= to go on in clips of the trained length"
        )
    return dataclasses.replace(self.layout, num_frames=frames)


def _first_frames(image, video) -> np.ndarray | None:
  """Returns what is given of a clip, as a video."""
  if image is not None and video is not None:
    raise ValueError("image and video: give one of them; an image is a video of one frame")
  if image is None:
    return None if video is None else np.asarray(video)
  image = np.asarray(image)
  if image.ndim not in (3, 4):
    raise ValueError(f"image: needs shape [H, W, 3] or [b, H, W, 3], got {image.shape}")
  return image[..., None, :, :, :]
