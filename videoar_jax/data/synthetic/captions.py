"""The contents of a sprites clip, and the captions that describe them.

For example "a small blue star moves up on a grey background", or "a large cyan square bounces off
the walls and a small red circle moves diagonally on a white background".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SIZES = ("small", "large")
MOTIONS = ("left", "right", "up", "down", "diagonal", "bounce")
BACKGROUNDS = ("grey", "black", "white", "brown")
# What a caption says of a motion.
MOTION_PHRASES = {
  "left": "moves left",
  "right": "moves right",
  "up": "moves up",
  "down": "moves down",
  "diagonal": "moves diagonally",
  "bounce": "bounces off the walls",
}
NUM_CLASSES = len(SHAPES) * len(COLOURS) * len(MOTIONS)


@dataclasses.dataclass(frozen=True)
class Sprite:
  """One object; an attribute is None if it is not stated or cannot be seen."""

  size: str | None = None
  colour: str | None = None
  shape: str | None = None
  motion: str | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
  """The objects of a clip, in the order of its caption, and the background."""

  objects: tuple[Sprite, ...] = ()
  background: str | None = None


def class_id(sprite: Sprite) -> int:
  """Returns the index of (shape, colour, motion), in [0, NUM_CLASSES)."""
  shape, colour = SHAPES.index(sprite.shape), COLOURS.index(sprite.colour)
  return (shape * len(COLOURS) + colour) * len(MOTIONS) + MOTIONS.index(sprite.motion)


def is_held_out(shape: str, colour: str, motion: str) -> bool:
  """Returns whether this combination is kept out of the training split.

  18 of 144 combinations are held out, 3 of each colour and motion. Every shape, colour and motion,
  and every pair of them, still occurs in training.
  """
  code = 2 * SHAPES.index(shape) + COLOURS.index(colour) + 3 * MOTIONS.index(motion)
  return code % 8 == 0


def to_caption(scene: Scene) -> str:
  """Returns the sentence for a scene; the inverse of `parse_caption`."""
  sentence = " and ".join(_object_phrase(sprite) for sprite in scene.objects)
  return f"{sentence} on a {scene.background} background" if scene.background else sentence


def _object_phrase(sprite: Sprite) -> str:
  motion = MOTION_PHRASES.get(sprite.motion)
  words = ("a", sprite.size, sprite.colour, sprite.shape, motion)
  return " ".join(word for word in words if word)


def parse_caption(caption: str) -> Scene:
  """Returns the scene that a caption describes, with None for each attribute that it leaves out.

  Raises:
    ValueError: the caption does not parse; the message names the first wrong word, and the words
      expected in its place.
  """
  words = _Words(caption)
  objects = [_parse_object(words)]
  while words.take(("and",)):
    objects.append(_parse_object(words))
  background = None
  if words.take(("on",)):
    words.take(("a", "an", "the"))
    background = words.need(BACKGROUNDS)
    words.need(("background",))
  if words.rest:
    raise words.error(("and", "on", "the end"))
  return Scene(tuple(objects), background)


def _parse_object(words: _Words) -> Sprite:
  words.take(("a", "an", "the"))
  size, colour = words.take(SIZES), words.take(COLOURS)
  # The wrong word may be a misspelt adjective, so the error lists the adjectives, too.
  shape = words.need(SHAPES, also=() if colour else COLOURS + (() if size else SIZES))
  return Sprite(size, colour, shape, _parse_motion(words))


def _parse_motion(words: _Words) -> str | None:
  verb = words.take(("moves", "bounces"))
  if verb is None:
    return None
  if verb == "bounces":
    if words.take(("off",)):
      words.need(("the",))
      words.need(("walls",))
    return "bounce"
  directions = {
    phrase.split()[1]: name for name, phrase in MOTION_PHRASES.items() if name != "bounce"
  }
  return directions[words.need(directions)]


class _Words:
  """A cursor over a caption's words."""

  def __init__(self, caption: str):
    self.caption = caption
    self.rest = caption.lower().replace(",", " ").rstrip(" .\n").split()

  def take(self, options: Iterable[str]) -> str | None:
    """Consumes and returns the next word if it is one of the options."""
    return self.rest.pop(0) if self.rest and self.rest[0] in options else None

  def need(self, options: Iterable[str], also: tuple[str, ...] = ()) -> str:
    word = self.take(options)
    if word is None:
      raise self.error((*also, *options))
    return word

  def error(self, expected: Iterable[str]) -> ValueError:
    found = f"the word {self.rest[0]!r}" if self.rest else "the end of the caption"
    return ValueError(
      f"Cannot understand {found} in {self.caption!r}; expected one of: {', '.join(expected)}."
    )
