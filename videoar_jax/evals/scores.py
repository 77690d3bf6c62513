"""Shared by all evaluations: drawing and coding clips, the oracle's accuracy, table rows."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.data.synthetic import captions as sprite_captions
from videoar_jax.data.synthetic.captions import Scene, parse_caption
from videoar_jax.data.synthetic.sprites import FRAME_RATE
from videoar_jax.evals import sprites_oracle
from videoar_jax.parallel.mesh import num_batch_shards, shard_padded
from videoar_jax.parallel.processes import fetch
from videoar_jax.tokenizers.base import Tokenizer
from videoar_jax.tokenizers.batch_parts import part_of
from videoar_jax.tokenizers.pixels import to_float, to_uint8

BATCH_SIZE = 16  # By default.

# Accuracy of a random guess at one object.
CHANCE = {
  "size": 1 / len(sprite_captions.SIZES),
  "colour": 1 / len(sprite_captions.COLOURS),
  "shape": 1 / len(sprite_captions.SHAPES),
  "motion": 1 / len(sprite_captions.MOTIONS),
  "background": 1 / len(sprite_captions.BACKGROUNDS),
}


ATTRIBUTES = (*CHANCE, "all")  # Read by the oracle.


def prompt_rows(prompts: dict) -> list[tuple[str, dict[str, float]]]:
  """Returns the rows of the oracle's table: a label, and accuracy by attribute."""
  count, rows = prompts["count"], []
  if "generated" in prompts:
    rows.append(("generated", prompts["generated"]["all"]))
    for part, label in (("seen", "combinations in training"), ("held_out", "held-out ones")):
      if count[part]:
        rows.append((f"... {label} ({count[part]})", prompts["generated"][part]))
  if "reconstructed" in prompts:
    rows.append(("reconstructed test clips", prompts["reconstructed"]["all"]))
  rows.append(("real test clips", prompts["real"]["all"]))
  if "chance" in prompts:
    rows.append(("chance", prompts["chance"]))
  return rows


def draw(source, num: int) -> list[int]:
  """Draws distinct indices of a source with a fixed seed; fewer are a prefix of more."""
  generator = np.random.default_rng(0)
  drawn: dict[int, None] = {}
  while len(drawn) < min(num, len(source)):
    drawn.setdefault(int(generator.integers(len(source))))
  return list(drawn)


def batches(
  source, indices: list[int], what: str, size: int | None = None
) -> Iterator[tuple[np.ndarray, list[str]]]:
  """Yields (clips, captions) of a source, at most `size` at a time; `what` names the bar."""
  size = BATCH_SIZE if size is None else size
  # No bar in log files, where each update is a line.
  with tqdm(total=len(indices), desc=what, unit="clip", disable=None) as bar:
    for first in range(0, len(indices), size):
      items = [source[i] for i in indices[first : first + size]]
      yield np.stack([item["video"] for item in items]), [item["caption"] for item in items]
      bar.update(len(items))


Coded = tuple[
  Float[Array | np.ndarray, "b t h w d"],
  list[UInt8[Array | np.ndarray, "b t _y _x d"]] | None,
  UInt8[np.ndarray, "b f H W 3"],
]


def code_batch(
  tokenizer: Tokenizer,
  clips: UInt8[np.ndarray, "b f H W 3"],
  size: int | None = None,
  mesh: Mesh | None = None,
) -> Coded:
  """Encodes and decodes clips; returns latents, bits (if any), and pixels.

  Large clips are coded a few at a time, and a few frames at a time.

  Args:
    tokenizer: on the mesh, if there is one.
    clips: at most `size`.
    size: of a batch; None for `BATCH_SIZE`. All batches share one compiled program.
    mesh: devices that share a batch, whose number divides `size`.
  """
  size = BATCH_SIZE if size is None else size
  num, shards = len(clips), 1 if mesh is None else num_batch_shards(mesh)
  clips = np.concatenate([clips, np.repeat(clips[-1:], size - num, axis=0)])
  shape = (size // shards, *clips.shape[1:4])
  rows, frames = part_of(tokenizer.config.temporal_stride, shape)
  chunk = None if frames == clips.shape[1] else 1
  parts = []
  for first in range(0, size, rows * shards):
    parts.append(_code(tokenizer, clips[first : first + rows * shards], chunk, mesh))
  latents, bits, decoded = zip(*parts, strict=True)
  if bits[0] is not None:
    bits = [np.concatenate(scale)[:num] for scale in zip(*bits, strict=True)]
  else:
    bits = None
  return np.concatenate(latents)[:num], bits, np.concatenate(decoded)[:num]


def _code(tokenizer: Tokenizer, clips, chunk: int | None, mesh: Mesh | None) -> tuple:
  """Codes clips, so many latent frames at a time; returns latents, bits and pixels."""

  def split(x):
    return x if mesh is None else shard_padded(fetch(x), mesh)

  latents = tokenizer.encode(to_float(split(clips)), **_chunked(chunk))
  coded, bits = latents, None
  if hasattr(tokenizer, "quantize"):
    codes = tokenizer.quantize(split(latents))
    coded, bits = codes.quantized, [fetch(scale) for scale in codes.bits]
  decoded = to_uint8(tokenizer.decode(split(coded), **_chunked(chunk)))
  return fetch(latents), bits, fetch(decoded)


def _chunked(chunk: int | None) -> dict[str, int]:
  return {} if chunk is None else {"chunk": chunk}


def reconstruct(
  tokenizer: Tokenizer, clips: UInt8[np.ndarray, "b f H W 3"], size: int | None = None
) -> UInt8[np.ndarray, "b f H W 3"]:
  """Returns the reconstructions of clips, `size` at a time; None for `BATCH_SIZE`."""
  size = BATCH_SIZE if size is None else size
  starts = range(0, len(clips), size)
  return np.concatenate([code_batch(tokenizer, clips[i : i + size], size)[2] for i in starts])


@dataclasses.dataclass(frozen=True)
class Oracle:
  """Reads sprites clips.

  Attributes:
    frame_rate: of the clips, in frames per second.
    version: of the sprites.
  """

  frame_rate: float = FRAME_RATE
  version: int = 1

  def matches(
    self, clips: UInt8[np.ndarray, "b f H W 3"], captions: list[str]
  ) -> list[dict[str, bool]]:
    """Returns, for each clip, whether it shows each attribute that its caption names."""
    result = []
    for clip, caption in zip(clips, captions, strict=True):
      asked = _asked(parse_caption(caption))
      right = sprites_oracle.matches(clip, caption, self.frame_rate, self.version)
      result.append({name: bool(right[name]) for name in right if name in asked})
    return result

  def reading(self, clip: UInt8[np.ndarray, "f H W 3"], caption: str) -> list[tuple[str, bool]]:
    """Returns what a clip shows, in words, each with whether it agrees with the caption."""
    seen = sprites_oracle.describe(clip, self.frame_rate, self.version)
    return sprites_oracle.reading(parse_caption(caption), seen)


def oracle_of(data: DataConfig) -> Oracle | None:
  """Returns the oracle of some data; None if they are not sprites."""
  return Oracle(data.frame_rate, data.version) if data.source == "sprites" else None


def _asked(scene: Scene) -> set[str]:
  """Returns the attributes that a scene states."""
  names = {
    name
    for name in sprites_oracle.ATTRIBUTES
    if any(getattr(sprite, name) is not None for sprite in scene.objects)
  }
  return names | ({"background"} if scene.background is not None else set())


def accuracy(matches: list[dict[str, bool]]) -> dict[str, float]:
  """Returns the share of correct clips, by attribute, and for "all" attributes at once.

  Attributes that a caption does not name are not counted.
  """
  right: dict[str, list[bool]] = {}
  for match in matches:
    for name, is_right in (match | {"all": all(match.values())}).items():
      right.setdefault(name, []).append(is_right)
  return {name: float(np.mean(values)) for name, values in right.items()}


def is_held_out(caption: str) -> bool:
  """Returns whether a caption names an object that the sprites' training split never shows.

  Held out are combinations of shape, colour and motion; a caption that omits one of these names no
  combination.
  """
  return any(
    None not in (sprite.shape, sprite.colour, sprite.motion)
    and sprite_captions.is_held_out(sprite.shape, sprite.colour, sprite.motion)
    for sprite in parse_caption(caption).objects
  )


def split_by_novelty(captions: list[str]) -> dict[str, list[bool]]:
  """Returns which captions belong to each part: `all`, `seen` in training, `held_out`."""
  held_out = [is_held_out(caption) for caption in captions]
  seen = [not is_new for is_new in held_out]
  return {"all": [True] * len(captions), "seen": seen, "held_out": held_out}


def accuracy_by_novelty(
  captions: list[str], matches: dict[str, list[dict[str, bool]]]
) -> dict[str, dict]:
  """Returns the captions per part as `count`, and the accuracy of each kind of clip by part."""
  parts = split_by_novelty(captions)
  result = {"count": {part: sum(chosen) for part, chosen in parts.items()}}
  for kind, clip_matches in matches.items():
    result[kind] = {
      part: accuracy([match for match, is_in in zip(clip_matches, chosen, strict=True) if is_in])
      for part, chosen in parts.items()
    }
  return result


def head_lines(result: dict) -> list[str]:
  """Returns the first lines of a suite's table, which describe the clips."""
  data = result["data"]
  height, width = data["resolution"]
  size = f"{data['num_frames']} frames of {height}x{width} at {data['frame_rate']:g} a second"
  place = data["path"] or data["source"]
  lines = [f"{data['num_clips']} clips of {place}: {size}; measured in {result['seconds']:.0f} s"]
  if not data["has_test_split"]:
    lines.append(
      "note: the folder is too small for a test split, or none of its test clips can be used; "
      "these clips may be trained on"
    )
  return lines


def fvd_line(label: str, result: dict | None, missing: str | None, num_clips: int) -> str:
  """Returns a table's line with an FVD and that between real clips, or why it is missing."""
  if result is None:
    return f"{label}  not measured: {missing}"
  real = result["real_against_other_real_clips"]
  real_text = f"not measured, needs {2 * num_clips} clips" if real is None else f"{real:.1f}"
  return f"{label}{result['value']:8.1f}  (real clips against other real ones: {real_text})"
