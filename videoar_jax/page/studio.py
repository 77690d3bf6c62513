"""Makes the clips of the page: who asked for what, one clip after the other, and when to stop."""

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from videoar_jax.data.conditioning import read_image
from videoar_jax.data.synthetic.captions import Scene, Sprite, to_caption
from videoar_jax.experiment.command_line import one_line
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.models.base import Sampler
from videoar_jax.models.preview import Preview, preview
from videoar_jax.page.settings import FieldError, Setting, lengths_of, parse_settings, settings_of
from videoar_jax.text.tokenizers import PromptTooLong

MAX_CLIPS = 8  # Side by side.
MAX_FRAMES = 2000  # Of a clip that is made longer and longer.
DEFAULT_CLIPS = 4


@dataclasses.dataclass(frozen=True)
class Wish:
  """What a visitor asks for, checked.

  Attributes:
    prompt: text.
    num_clips: clips of one seed, numbered from 0, as those of the command `sample`.
    num_frames: of the result.
    seed: random seed.
    settings: of sampling.
    image: the first frame, if any.
    clips: instead, the clips to continue.
  """

  prompt: str
  num_clips: int
  num_frames: int
  seed: int
  settings: dict[str, Any]
  image: UInt8[np.ndarray, "H W 3"] | None = None
  clips: UInt8[np.ndarray, "b f H W 3"] | None = None


@dataclasses.dataclass(frozen=True)
class Growth:
  """Clips as far as they have been made.

  Attributes:
    wish: what was asked for.
    frames: of each clip; later ones are still to come, the last ones may lack scales.
    newest: the last preview; None before the first.
    is_finished: whether this is the end.
  """

  wish: Wish
  frames: UInt8[np.ndarray, "b f H W 3"] | None
  newest: Preview | None = None
  is_finished: bool = False

  @property
  def share(self) -> float:
    """The part of the new frames' scales that is there, from 0 to 1."""
    if self.newest is None:
      return 0.0
    before = 0 if self.wish.clips is None else self.wish.clips.shape[1]
    part, num = self.newest, self.newest.frames.shape[1]
    done = part.start - before + num * part.num_done / part.num_scales
    return min(1.0, done / max(1, self.wish.num_frames - before))


class Visitor:
  """What the page keeps of a browser, which no other browser sees.

  Attributes:
    image: the first frame of the next clips, if one was given.
    growth: the last finished clips, which can be continued.
    newest: the clips that are being made, as far as they are; or the last ones.
    stopped: set to stop the clips that are being made or wait for their turn.
  """

  def __init__(self):
    self.image: np.ndarray | None = None
    self.growth: Growth | None = None
    self.newest: Growth | None = None
    self.stopped = threading.Event()

  def stop(self) -> None:
    """Stops the clips that are being made or wait for their turn."""
    self.stopped.set()


class Studio:
  """A model, what it can be asked for, and its visitors.

  Args:
    model: of any family.
    run: its config.
    stage: the stage that trained it.
  """

  def __init__(self, model: Sampler, run: RunConfig, stage: StageConfig):
    self.model, self.run, self.data = model, run, stage.data
    self.settings: list[Setting] = settings_of(run.sampling)
    self.lengths = lengths_of(model.num_frames, model.tokenizer.config.temporal_stride)
    self.classes = tuple(run.text.classes)
    self.is_sprites = run.data.source == "sprites"
    self.can_continue = hasattr(model, "extend") and model.num_frames > 1
    self._visitors: dict[str, Visitor] = {}
    self._lock = threading.Lock()
    self._line: list[threading.Event] = []

  def visitor(self, name: str) -> Visitor:
    """Returns what the page keeps of a browser."""
    with self._lock:
      return self._visitors.setdefault(name, Visitor())

  def enter(self, name: str, keeps_clips: bool) -> int:
    """Puts a browser in line, instead of where it was; returns how many are before it.

    Args:
      name: of the browser.
      keeps_clips: whether its finished clips are needed still, to continue them.
    """
    visitor = self.visitor(name)
    visitor.stop()
    visitor.growth = visitor.growth if keeps_clips else None
    visitor.newest = None
    with self._lock:
      self._line = [stopped for stopped in self._line if not stopped.is_set()]
      visitor.stopped = threading.Event()
      self._line.append(visitor.stopped)
      return len(self._line) - 1

  def leave(self, name: str) -> None:
    """Stops and forgets a browser that has left."""
    with self._lock:
      visitor = self._visitors.pop(name, None)
    if visitor is not None:
      visitor.stop()

  def read_image(self, path: str) -> UInt8[np.ndarray, "H W 3"]:
    """Reads a start image, resized and cropped to the model's size.

    Raises:
      FieldError: it is none.
    """
    try:
      return read_image(
        path, self.model.resolution, is_resized=True, background=self.data.background
      )
    except (ValueError, OSError) as error:
      name = pathlib.Path(path).name
      reason = one_line(error).replace(str(path), name)
      raise FieldError("image", f"{reason}; choose a picture, such as a PNG or JPEG.") from error

  def wish(
    self,
    prompt: str,
    num_clips: Any,
    num_frames: Any,
    seed: Any,
    values: list[Any],
    *,
    image: UInt8[np.ndarray, "H W 3"] | None = None,
    before: Growth | None = None,
  ) -> Wish:
    """Checks what a visitor asks for.

    Args:
      prompt: text.
      num_clips, num_frames, seed: numbers as they come from the page.
      values: of `settings`.
      image: the first frame, if any.
      before: clips to continue, which keep their number and seed.
    Raises:
      FieldError: names the field, "prompt", "num_clips", "num_frames", "seed" or a setting's.
    """
    settings = parse_settings(self.settings, values, type(self.run.sampling))
    self._check_prompt(prompt)
    if before is not None:
      clips = before.frames
      length = self._longer(clips.shape[1])
      if length > MAX_FRAMES:
        raise FieldError("", f"Clips have at most {MAX_FRAMES} frames here.")
      return Wish(prompt, len(clips), length, before.wish.seed, settings, image=None, clips=clips)
    count = _whole("num_clips", "the number of clips", num_clips, 1, MAX_CLIPS)
    number = _whole("seed", "the seed", seed, 0, 2**32 - 1)
    length = _whole("num_frames", "the length", num_frames, 1, self.lengths[-1])
    if length not in self.lengths:
      raise FieldError("num_frames", f"The length is one of {', '.join(map(str, self.lengths))}.")
    if image is not None and length == 1:
      raise FieldError("num_frames", "A start image leaves nothing of 1 frame; take more.")
    return Wish(prompt, count, length, number, settings, image)

  def make(self, wish: Wish, stopped: threading.Event) -> Iterator[Growth]:
    """Yields clips as they grow; ends early once `stopped` is set.

    Each step is computed when it is asked for, so that nothing runs after the iterator is left.

    Raises:
      FieldError: the model does not take the wish.
    """
    frames, part = wish.clips, None
    given: dict[str, Any] = {} if wish.image is None else {"image": wish.image}
    if wish.clips is not None:
      given = {"clips": wish.clips, "overlap_frames": self._overlap_frames()}
    settings = {name: value for name, value in wish.settings.items() if value is not None}
    try:
      yield Growth(wish, frames)
      if stopped.is_set():
        return
      prompts = [wish.prompt] * self._padded(wish.num_clips)
      if wish.clips is not None:
        rows = np.minimum(np.arange(len(prompts)), wish.num_clips - 1)
        given["clips"] = wish.clips[rows]
      parts = preview(self.model, prompts, wish.num_frames, wish.seed, **given, **settings)
      for part in parts:
        part = part._replace(frames=part.frames[: wish.num_clips])
        before = part.frames[:, :0] if frames is None else frames[:, : part.start]
        frames = np.concatenate([before, part.frames], axis=1)[:, : wish.num_frames]
        yield Growth(wish, frames, part)
        if stopped.is_set():
          return
    except ValueError as error:
      known = ("num_frames", *(setting.name for setting in self.settings))
      raise FieldError.of(error, known) from error
    finally:
      stopped.set()  # Not in line any more.
    yield Growth(wish, frames, part, is_finished=True)

  def warm_up(self) -> None:
    """Makes the usual clips once, and longer, so that what visitors ask for is compiled."""
    values = {setting.name: setting.default for setting in self.settings}
    num_clips = min(DEFAULT_CLIPS, self.model.batch_size)
    wish = Wish(self.example_prompt(), num_clips, self.lengths[-1], 0, values)
    # Where the page has no example, the empty prompt may not be one that the model knows.
    with contextlib.suppress(FieldError):
      *_, made = self.make(wish, threading.Event())
      if self.can_continue:
        longer = dataclasses.replace(
          wish, num_frames=self._longer(made.frames.shape[1]), clips=made.frames
        )
        for _ in self.make(longer, threading.Event()):
          pass

  def example_prompt(self) -> str:
    """Returns the prompt that the page begins with."""
    if self.is_sprites:
      return to_caption(first_scene(self.num_objects))
    return self.classes[0] if self.classes else ""

  @property
  def num_objects(self) -> int:
    """Objects of a clip of moving shapes."""
    num = self.run.data.num_objects
    return num if isinstance(num, int) else max(num)

  def _check_prompt(self, prompt: str) -> None:
    if not prompt.strip() and not self.classes:
      raise FieldError("prompt", "Say what the clip shows.")
    try:
      self.model.text_encoder.encode(prompt)
    except PromptTooLong as error:
      end = " ".join(error.cut.split()[-4:])
      message = f"Too long: the model reads the prompt as far as '{end}'; shorten it."
      raise FieldError("prompt", message) from error
    except ValueError as error:
      raise FieldError("prompt", FieldError.of(error, ()).message) from error

  def _longer(self, num_frames: int) -> int:
    """Returns the length of clips that are continued by a window of the trained length."""
    return num_frames + self.model.num_frames - self._overlap_frames()

  def _overlap_frames(self) -> int:
    """Returns how many last frames a longer clip continues from; by default about half."""
    tau = self.model.tokenizer.config.temporal_stride
    half = 1 + (self.model.num_frames - 1) // (2 * tau) * tau
    return getattr(self.model, "default_overlap_frames", half)

  def _padded(self, num: int) -> int:
    """Returns the size of a batch of at least `num` clips that the devices can share."""
    requests = getattr(self.model, "requests", None)
    return num if requests is None else requests.padded(num)


def first_scene(num_objects: int = 1) -> Scene:
  """Returns the scene that the menus begin with."""
  objects = (
    Sprite("large", "red", "circle", "left"),
    Sprite("small", "blue", "star", "bounce"),
  )
  return Scene(objects[:num_objects], "grey")


def _whole(field: str, label: str, value: Any, low: int, high: int) -> int:
  """Returns a whole number from the page; FieldError unless it is one from `low` to `high`."""
  try:
    number = float(value)
  except (TypeError, ValueError):
    raise FieldError(field, f"Set {label} to a whole number.") from None
  if number != round(number) or not low <= number <= high:
    raise FieldError(field, f"{label.capitalize()} is a whole number from {low} to {high}.")
  return int(number)
