"""An endless data set of moving shapes that is computed, not stored.

Sample i of a split is a function of (seed, split, i) alone. Its scene does not depend on the number
of frames or, at one aspect ratio, on the resolution: a longer clip begins with the shorter one, and
a larger clip shows the same scene.

Lengths are in units of the frame's short side, times in frames at `FRAME_RATE`.
"""

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import Float, UInt8

from videoar_jax.data.synthetic import captions, shapes
from videoar_jax.data.synthetic.captions import Scene, Sprite

SPLITS = ("train", "test")
FRAME_RATE = 8.0  # Frames per second; at a lower rate, objects move further between frames.
# By version of the data; those of version 1 are too small to show their shape at 64x64 pixels.
RADIUS = {
  1: {"small": (0.10, 0.115), "large": (0.165, 0.18)},
  2: {"small": (0.14, 0.155), "large": (0.20, 0.215)},
}
SPEED = (0.025, 0.03)
PALETTE = {
  "red": (226, 44, 48),
  "green": (44, 178, 66),
  "blue": (44, 84, 236),
  "yellow": (252, 214, 40),
  "purple": (158, 52, 206),
  "cyan": (60, 214, 232),
}
BACKGROUND_PALETTE = {
  "grey": (132, 134, 138),
  "black": (16, 16, 20),
  "white": (244, 244, 242),
  "brown": (104, 68, 42),
}

_INSIDE = 16  # A straight path stays inside until this frame, counted from 0.
_FIRST_BOUNCE = (3.0, 5.0)
_CANDIDATES = 24  # Attempts per draw of sizes to place two objects so that they do not meet.
_SIZE_DRAWS = 6  # Draws of sizes.
_ALL = tuple(itertools.product(captions.SHAPES, captions.COLOURS, captions.MOTIONS))
_COMBINATIONS = {
  "train": tuple(c for c in _ALL if not captions.is_held_out(*c)),
  "test": _ALL,
}
_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclasses.dataclass(frozen=True)
class Path:
  """Path of an object's centre of mass. Axes are x, then y; "..." is an optional candidate axis.

  Attributes:
    radius: radius of the circle of equal area.
    start: position at frame 0.
    velocity: displacement per frame.
    low, high: bounds at which the centre bounces or wraps around.
    is_bouncing: bounces at the bounds; else it leaves at one and comes back at the other.
  """

  radius: float | Float[np.ndarray, "..."]
  start: Float[np.ndarray, "... 2"]
  velocity: Float[np.ndarray, "... 2"]
  low: Float[np.ndarray, "... 2"]
  high: Float[np.ndarray, "... 2"]
  is_bouncing: bool

  def at(self, frames: np.ndarray) -> Float[np.ndarray, "... f 2"]:
    low, span = self.low[..., None, :], (self.high - self.low)[..., None, :]
    travelled = self.start[..., None, :] + frames[:, None] * self.velocity[..., None, :] - low
    if self.is_bouncing:
      return low + span - np.abs(travelled % (2 * span) - span)
    return low + travelled % span

  def take(self, candidate: int) -> Self:
    arrays = {k: v[candidate] for k, v in vars(self).items() if k != "is_bouncing"}
    return Path(**arrays, is_bouncing=self.is_bouncing)


class SpritesSource:
  """Random access to the clips of one split.

  Args:
    split: "train", or "test", which also has the combinations of `is_held_out`.
    num_frames: frames per clip.
    resolution: (H, W) in pixels.
    frame_rate: frames per second.
    num_objects: 1, 2, or (1, 2) to draw either.
    version: of the data, which sets how large small and large objects are, see `RADIUS`.
    seed: each seed gives another data set.
  """

  def __init__(
    self,
    split: str,
    *,
    num_frames: int,
    resolution: tuple[int, int],
    frame_rate: float = FRAME_RATE,
    num_objects: int | tuple[int, ...] = 1,
    version: int = 1,
    seed: int = 0,
  ):
    if split not in SPLITS:
      raise ValueError(f"split is {split!r}; the splits are {', '.join(SPLITS)}.")
    if version not in RADIUS:
      raise ValueError(f"version is {version}; the versions are {', '.join(map(str, RADIUS))}.")
    self.split = split
    self.num_frames = num_frames
    self.resolution = tuple(resolution)
    self.frame_rate = frame_rate
    self.num_objects = (num_objects,) if isinstance(num_objects, int) else tuple(num_objects)
    self.version = version
    self.seed = seed

  @property
  def times(self) -> Float[np.ndarray, "f"]:
    """Times of a clip's frames, in frames at `FRAME_RATE`."""
    return np.arange(self.num_frames) * (FRAME_RATE / self.frame_rate)

  def reshaped(self, num_frames: int, resolution: tuple[int, int]) -> Self:
    """Returns clips of another shape."""
    other = copy.copy(self)
    other.num_frames, other.resolution = num_frames, tuple(resolution)
    return other

  def __len__(self) -> int:
    # In effect endless, but small enough for Grain to shuffle.
    return 2**31

  def known_captions(self) -> list[str]:
    """Returns a longest caption, which stands for all of them: there is no end of clips."""
    longest = [max(words, key=len) for words in (captions.SIZES, captions.COLOURS, captions.SHAPES)]
    objects = (Sprite(*longest, motion="bounce"),) * max(self.num_objects)
    return [captions.to_caption(Scene(objects, max(captions.BACKGROUNDS, key=len)))]

  def scene(self, index: int) -> tuple[Scene, list[Path]]:
    """Returns the scene of sample `index`, and its objects' paths."""
    entropy = (self.seed, SPLITS.index(self.split), index)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    count = self.num_objects[rng.integers(len(self.num_objects))]
    sprites = _draw_sprites(rng, _COMBINATIONS[self.split], count)
    background = captions.BACKGROUNDS[rng.integers(len(captions.BACKGROUNDS))]
    sprites, paths = _draw_paths(rng, sprites, self.resolution, RADIUS[self.version])
    return Scene(tuple(sprites), background), paths

  def __getitem__(self, index: int) -> dict:
    """Returns sample `index`.

    Returns:
      video: uint8 [f, H, W, 3]; caption; class_id of the first object; flow: mean speed of the
      objects, in pixels a frame; attributes: `Scene`; id.
    """
    scene, paths = self.scene(index)
    speed = np.mean([np.linalg.norm(path.velocity) for path in paths])
    scale = min(self.resolution) * FRAME_RATE / self.frame_rate
    return {
      "video": render(scene, paths, self.times, self.resolution),
      "caption": captions.to_caption(scene),
      "class_id": captions.class_id(scene.objects[0]),
      "flow": np.float32(speed * scale),
      "attributes": scene,
      "id": index,
    }


def render(
  scene: Scene, paths: list[Path], times: Float[np.ndarray, "f"], resolution: tuple[int, int]
) -> UInt8[np.ndarray, "f H W 3"]:
  """Renders the objects at the given times, later objects on top, with anti-aliased edges."""
  height, width = resolution
  side = min(resolution)
  video = np.empty((len(times), height, width, 3), np.uint8)
  video[:] = BACKGROUND_PALETTE[scene.background]
  for sprite, path in zip(scene.objects, paths, strict=True):
    centres = path.at(times) * side
    alphas, corners = shapes.coverage(sprite.shape, float(path.radius) * side, centres)
    _blend(video, alphas, corners, PALETTE[sprite.colour])
  return video


def _blend(video, alphas, corners, colour):
  """Blends a colour into the part of each box that is inside the frame."""
  height, width = video.shape[1:3]
  box_height, box_width = alphas.shape[1:]
  colour = np.array(colour, np.float32)
  for frame, alpha, (x, y) in zip(video, alphas, corners.tolist(), strict=True):
    top, bottom = max(y, 0), min(y + box_height, height)
    left, right = max(x, 0), min(x + box_width, width)
    if top < bottom and left < right:
      patch = frame[top:bottom, left:right]
      mix = (colour - patch) * alpha[top - y : bottom - y, left - x : right - x, None]
      mix += patch
      mix += np.float32(0.5)  # The conversion below rounds down.
      patch[:] = mix.astype(np.uint8)


def _draw_sprites(rng, combinations, count: int) -> list[Sprite]:
  """Draws objects of different colours; their sizes are drawn later."""
  sprites = []
  while len(sprites) < count:
    shape, colour, motion = combinations[rng.integers(len(combinations))]
    if all(colour != other.colour for other in sprites):
      sprites.append(Sprite(colour=colour, shape=shape, motion=motion))
  return sprites


def _draw_paths(rng, sprites, resolution, radii) -> tuple[list[Sprite], list[Path]]:
  """Draws sizes and paths; returns the first where no objects meet, or else the best."""
  best, best_gap = None, -np.inf
  for _ in range(_SIZE_DRAWS if len(sprites) > 1 else 1):
    sizes = [captions.SIZES[i] for i in rng.integers(len(captions.SIZES), size=len(sprites))]
    sized = [dataclasses.replace(s, size=size) for s, size in zip(sprites, sizes, strict=True)]
    candidates = _CANDIDATES if len(sprites) > 1 else 1
    paths = [_draw_path(rng, sprite, resolution, radii, candidates) for sprite in sized]
    gaps = smallest_gap(sized, paths)
    # Not the one with the largest gap, which would put objects near the walls.
    choice = int(np.argmax(np.where(gaps > 0, np.inf, gaps)))
    if gaps[choice] > best_gap:
      best, best_gap = (sized, [path.take(choice) for path in paths]), gaps[choice]
    if best_gap > 0:
      break
  return best


def smallest_gap(
  sprites: Sequence[Sprite], paths: Sequence[Path]
) -> float | Float[np.ndarray, "..."]:
  """Returns the least distance between two objects' boxes in frames 0 to 16; negative if they meet.

  For a single object it is infinite.
  """
  boxes = []
  for sprite, path in zip(sprites, paths, strict=True):
    first, last = _reach(sprite.shape, path.radius)
    centres = path.at(np.arange(_INSIDE + 1))
    boxes.append((centres - first[..., None, :], centres + last[..., None, :]))
  gap = np.full(paths[0].radius.shape, np.inf)
  for (low, high), (other_low, other_high) in itertools.combinations(boxes, 2):
    apart = np.maximum(other_low - high, low - other_high)
    gap = np.minimum(gap, apart.max(axis=-1).min(axis=-1))
  return gap


def _reach(shape: str, radius) -> tuple[np.ndarray, np.ndarray]:
  """Returns how far an object reaches beyond its centre, to (left, up) and to (right, down)."""
  left, right, up, down = shapes.EXTENTS[shape]
  radius = radius[..., None]
  return radius * (left, up), radius * (right, down)


def _draw_path(rng, sprite: Sprite, resolution, radii, candidates: int) -> Path:
  """Draws paths for an object of given size and motion."""
  radius = rng.uniform(*radii[sprite.size], candidates)
  speed = rng.uniform(*SPEED, (candidates, 1))
  height, width = (length / min(resolution) for length in resolution)
  first, last = _reach(sprite.shape, radius)
  picture = np.array((width, height))
  inner_low, inner_high = first, picture - last
  if sprite.motion in _DIRECTIONS:
    velocity = speed * _DIRECTIONS[sprite.motion]
  else:
    velocity = speed * np.sqrt(0.5) * (2 * rng.integers(2, size=(candidates, 2)) - 1)
  if sprite.motion == "bounce":
    start = _start_of_bounce(rng, velocity, inner_low, inner_high)
    return Path(radius, start, velocity, inner_low, inner_high, is_bouncing=True)
  start = _start_inside(rng, velocity * _INSIDE, inner_low, inner_high)
  return Path(radius, start, velocity, -last, picture + first, is_bouncing=False)


def _start_inside(rng, travel, low, high):
  """Draws a start such that start and start + travel are inside; if there is none, the middle."""
  low, high = low - np.minimum(travel, 0), high - np.maximum(travel, 0)
  middle = (low + high) / 2
  return rng.uniform(np.minimum(low, middle), np.maximum(high, middle))


def _start_of_bounce(rng, velocity, low, high):
  """Draws a start such that one axis hits its wall in `_FIRST_BOUNCE` and the other one later."""
  start = _start_inside(rng, velocity * _FIRST_BOUNCE[1], low, high)
  hit = rng.uniform(*_FIRST_BOUNCE, (len(start), 1))
  axis = rng.integers(2, size=(len(start), 1)) == (0, 1)
  return np.where(axis, np.where(velocity > 0, high, low) - velocity * hit, start)
