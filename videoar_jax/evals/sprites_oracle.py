"""Reads the attributes of a sprites clip from its pixels, to check it against its prompt.

Nothing is learned: colours are compared with the palette, silhouettes with the four shapes, and the
path of the centre of mass with the kinds of motion. Robust to blur and noise of generated video.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from videoar_jax.data.synthetic import captions, shapes
from videoar_jax.data.synthetic.captions import Scene, Sprite
from videoar_jax.data.synthetic.sprites import BACKGROUND_PALETTE, FRAME_RATE, PALETTE, RADIUS

ATTRIBUTES = ("size", "colour", "shape", "motion")

# Colours are in 8-bit steps of RGB distance.
_BACKGROUND_TOLERANCE = 60.0  # Half the distance between the two nearest backgrounds.
_FOREGROUND = 36.0  # 4.5 sigma for noise of 8 steps.
_EDGE = 0.25  # Lower coverage counts as noise.

# Lengths and areas are in units of the short side.
_MIN_AREA = 0.4 * math.pi  # Of the square of the smallest radius.
_MIN_TRAVEL = 0.05
_JITTER = 0.01  # Deviations from a path that are ignored.
_BOUNCE_PENALTY = 4.0
_MAX_TIME = 16  # In frames at `FRAME_RATE`; later, straight paths leave the frame.
_SHAPE_FRAMES = 4  # Number of silhouettes to compare.
# Blur in generated clips rounds corners and removes faint edges from the measured area, so
# silhouettes are compared with several templates: (passes of blur, growth of the radius).
_TEMPLATE_BLUR = ((0, 1.0), (2, 1.0), (2, 1.05), (8, 1.0), (8, 1.07), (8, 1.14))
_MARGIN = 4


@dataclasses.dataclass(frozen=True)
class _Track:
  """One object through the clip, in pixels.

  Attributes:
    coverage: share of each pixel that the object covers.
    area: sum of the coverage.
    centres: (x, y) of the centre of mass; frames without the object have area 0.
    is_whole: whether the frame's border does not cut it off.
  """

  coverage: Float32[np.ndarray, "f H W"]
  area: Float32[np.ndarray, "f"]
  centres: Float64[np.ndarray, "f 2"]
  is_whole: np.ndarray


def describe(
  clip: UInt8[np.ndarray, "f H W 3"], frame_rate: float = FRAME_RATE, version: int = 1
) -> Scene:
  """Returns the scene in the first two seconds of a clip.

  Args:
    clip: of sprites.
    frame_rate: of the clip, in frames per second.
    version: of the sprites, which sets what is small and what is large.
  Returns:
    Up to two objects, the larger one first, and the background. Attributes that cannot be
    determined are None; a clip without objects has one whose attributes are all None.
  """
  clip = clip[: int(_MAX_TIME * frame_rate / FRAME_RATE) + 1]
  side, radii = min(clip.shape[1:3]), RADIUS[version]
  colour = np.median(clip[:, ::2, ::2].reshape(-1, 3), axis=0).astype(np.float32)
  objects = [
    Sprite(_size(track, side, radii), name, _shape(track), _motion(track, side))
    for name, track in _find_objects(clip, colour, side, radii)
  ]
  return Scene(tuple(objects) or (Sprite(),), _nearest_background(colour))


def matches(
  clip: UInt8[np.ndarray, "f H W 3"],
  caption: str,
  frame_rate: float = FRAME_RATE,
  version: int = 1,
) -> dict[str, bool]:
  """Returns whether each attribute of a clip agrees with the prompt.

  Args:
    clip: the generated clip.
    caption: the prompt. Attributes that it omits count as correct.
    frame_rate: of the clip, in frames per second.
    version: of the sprites.
  Returns:
    {size, colour, shape, motion, background: is correct}. With two objects in the prompt, an
    attribute is correct if it is for both.
  Raises:
    ValueError: the prompt is not a caption of sprites.
  """
  return compare(captions.parse_caption(caption), describe(clip, frame_rate, version))


def compare(asked: Scene, seen: Scene) -> dict[str, bool]:
  """Returns whether each requested attribute agrees with the seen one."""
  pairs = _pair_up(asked.objects, seen.objects)
  result = {
    name: all(getattr(a, name) in (None, getattr(s, name)) for a, s in pairs) for name in ATTRIBUTES
  }
  return result | {"background": asked.background in (None, seen.background)}


def reading(asked: Scene, seen: Scene) -> list[tuple[str, bool]]:
  """Returns what is seen as words of a caption, each with whether it agrees with the request."""
  words = []
  for i, (a, s) in enumerate(_pair_up(asked.objects, seen.objects)):
    words += [("and", True)] if i else []
    if s == Sprite():
      words.append(("nothing", a == Sprite()))
      continue
    for name in ATTRIBUTES:
      value = getattr(s, name)
      text = captions.MOTION_PHRASES.get(value, value) if value is not None else f"no {name}"
      words.append((text, getattr(a, name) in (None, value)))
  background = seen.background or "no background"
  return [*words, (f"on {background}", asked.background in (None, seen.background))]


def _pair_up(asked, seen) -> list[tuple[Sprite, Sprite]]:
  """Pairs objects of the same colour, and the rest in order; surplus objects are ignored."""
  left = list(seen)
  partners = [next((s for s in left if s.colour == a.colour), None) for a in asked]
  left = [s for s in left if s not in partners]
  return [
    (a, partner or (left.pop(0) if left else Sprite()))
    for a, partner in zip(asked, partners, strict=True)
  ]


def _nearest_background(colour) -> str | None:
  distances = {n: np.linalg.norm(colour - c) for n, c in BACKGROUND_PALETTE.items()}
  name = min(distances, key=distances.get)
  return name if distances[name] < _BACKGROUND_TOLERANCE else None


def _find_objects(clip, background, side, radii) -> list[tuple[str, _Track]]:
  """Assigns each pixel to the colour that, mixed with the background, explains it best."""
  offsets = clip.astype(np.float32) - background
  where = np.nonzero(np.einsum("fhwc,fhwc->fhw", offsets, offsets) > _FOREGROUND**2)
  offsets = offsets[where]
  directions = np.array(list(PALETTE.values()), np.float32) - background
  coverage = offsets @ (directions / np.sum(directions**2, axis=1, keepdims=True)).T
  coverage = np.clip(coverage, 0, 1)
  misses = np.stack(
    [np.sum((offsets - coverage[:, k, None] * d) ** 2, axis=1) for k, d in enumerate(directions)]
  )
  labels = np.argmin(misses, axis=0)
  found = []
  for k, name in enumerate(PALETTE):
    chosen = (labels == k) & (coverage[:, k] > _EDGE)
    picture = np.zeros(clip.shape[:3], np.float32)
    picture[tuple(axis[chosen] for axis in where)] = coverage[chosen, k]
    area = picture.sum() / (len(clip) * side**2)
    if area > _MIN_AREA * radii["small"][0] ** 2:
      found.append((area, name, picture))
  found.sort(key=lambda item: -item[0])
  return [(name, _track(picture)) for _, name, picture in found[:2]]


def _track(coverage) -> _Track:
  area = coverage.sum(axis=(1, 2))
  weight = coverage / np.maximum(area, 1e-6)[:, None, None]
  height, width = coverage.shape[1:]
  x = weight.sum(axis=1) @ (np.arange(width) + 0.5)
  y = weight.sum(axis=2) @ (np.arange(height) + 0.5)
  border = np.maximum(coverage[:, [0, -1], :].max((1, 2)), coverage[:, :, [0, -1]].max((1, 2)))
  is_seen = area > 0.3 * np.median(area[area > 0])
  return _Track(
    coverage, np.where(is_seen, area, 0), np.stack((x, y), axis=1), is_seen & (border < 0.5)
  )


def _best_frames(track: _Track) -> np.ndarray:
  """Returns the frames that show the whole object; without any, those that show most of it."""
  (whole,) = np.nonzero(track.is_whole)
  return whole if len(whole) else np.argsort(-track.area)[:3]


def _size(track: _Track, side: int, radii: dict[str, tuple[float, float]]) -> str:
  area = np.median(track.area[_best_frames(track)])
  border = (radii["small"][1] + radii["large"][0]) / 2
  return "small" if math.sqrt(area / math.pi) / side < border else "large"


def _shape(track: _Track) -> str:
  """Returns the shape whose silhouette, at the same place and area, overlaps most."""
  frames = _best_frames(track)
  frames = frames[np.linspace(0, len(frames) - 1, min(len(frames), _SHAPE_FRAMES)).astype(int)]
  radius = math.sqrt(np.median(track.area[frames]) / math.pi)
  best = dict.fromkeys(captions.SHAPES, 0.0)
  for shape in captions.SHAPES:
    for passes, growth in _TEMPLATE_BLUR:
      templates, corners = _templates(shape, growth * radius, track.centres[frames])
      overlap = _overlap(track, frames, _blur(templates, passes), corners)
      best[shape] = max(best[shape], overlap)
  return max(best, key=best.get)


def _templates(shape, radius, centres) -> tuple[Float32[np.ndarray, "f bh bw"], np.ndarray]:
  """Returns silhouettes with a margin for blur, and the first pixels of their boxes."""
  templates, corners = shapes.coverage(shape, radius, centres)
  margin = (_MARGIN, _MARGIN)
  return np.pad(templates, ((0, 0), margin, margin)), corners - _MARGIN


def _blur(pictures, passes: int):
  """Blurs by sigma = sqrt(passes / 2) pixels."""
  height, width = pictures.shape[1:]
  return _blur_matrix(height, passes) @ pictures @ _blur_matrix(width, passes)


@functools.lru_cache(maxsize=256)
def _blur_matrix(size: int, passes: int) -> Float32[np.ndarray, "n n"]:
  once = 0.5 * np.eye(size) + 0.25 * (np.eye(size, k=1) + np.eye(size, k=-1))
  return np.linalg.matrix_power(once, passes).astype(np.float32)


def _overlap(track: _Track, frames, templates, corners) -> float:
  """Returns the mean over frames of the soft masks' intersection over union."""
  box_height, box_width = templates.shape[1:]
  total = 0.0
  for frame, template, (x, y) in zip(frames, templates, corners, strict=True):
    top, left = max(y, 0), max(x, 0)
    part = track.coverage[frame, top : y + box_height, left : x + box_width]
    inner = template[top - y :, left - x :][: part.shape[0], : part.shape[1]]
    inner = np.where(inner > _EDGE, inner, 0)  # As in `_find_objects`.
    common = np.minimum(part, inner).sum()
    total += common / max(track.area[frame] + inner.sum() - common, 1e-9)
  return float(total) / len(frames)


def _motion(track: _Track, side: int) -> str | None:
  """Returns the kind of motion whose best path is closest to the centres of mass.

  Each kind moves an axis along a function of time: rest, straight, or reflected at some time; both
  axes have the same speed. So a path has one unknown speed, and an unknown start for each axis.
  """
  (frames,) = np.nonzero(track.area)
  if len(frames) < 4:
    return None
  path = track.centres[frames] / side
  path -= path.mean(axis=0)
  bends = np.arange(frames[0] + 2, frames[-1] - 1.5, 0.5)
  courses = np.vstack((0 * frames, frames, np.abs(frames - bends[:, None])))
  errors, speeds = _fit_paths(courses - courses.mean(axis=1, keepdims=True), path)
  bounces = errors.copy()
  bounces[:2, :2] = np.inf
  # Free times of reflection let a bounce fit noise better than other motions.
  advantage = np.exp(-_BOUNCE_PENALTY / len(frames))
  choices = {
    "x": (errors[1, 0], speeds[1, 0]),
    "y": (errors[0, 1], speeds[0, 1]),
    "diagonal": (errors[1, 1], speeds[1, 1]),
    "bounce": (bounces.min() / advantage, speeds.flat[bounces.argmin()]),
  }
  kind = min(choices, key=lambda name: choices[name][0])
  if choices[kind][1] * (frames[-1] - frames[0]) < _MIN_TRAVEL:
    return None
  forwards = frames @ path > 0
  names = {"x": ("left", "right")[int(forwards[0])], "y": ("up", "down")[int(forwards[1])]}
  return names.get(kind, kind)


def _fit_paths(courses, path) -> tuple[Float64[np.ndarray, "k k"], Float64[np.ndarray, "k k"]]:
  """Fits each pair of courses, one for x and one for y, to a path, both centred.

  Args:
    courses: [k, f], functions of time.
    path: [f, 2].
  Returns:
    The squared error of each pair, and its speed, with either sign for each axis.
  """
  products = np.abs(courses @ path)
  squares = np.sum(courses**2, axis=1)
  squares = np.maximum(np.add.outer(squares, squares), 1e-9)
  speeds = np.add.outer(products[:, 0], products[:, 1]) / squares
  return np.sum(path**2) - speeds**2 * squares + len(path) * _JITTER**2, speeds
