"""Reads reference numbers of NOVA's public code."""

import dataclasses
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from videoar_jax.models.nova import convert
from videoar_jax.models.nova.network import Nova, network_of
from videoar_jax.models.nova.tokens import patchify

NUM_HEADS = 4  # Of all reference networks without rotary positions.
_SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared"
FOLDER = pathlib.Path(os.environ.get("VIDEOAR_GOLDEN", _SHARED / "golden")) / "nova"


def cases(pattern: str) -> list[str]:
  """Returns the names of reference files; none in a clone without them."""
  return sorted(path.name for path in FOLDER.glob(pattern))


def model_of(case: str) -> str:
  """Returns the network of a case that does not name it: of those there are, the longest name that
  the case's begins with, after its kind."""
  names = [path.name.removesuffix(".config.json") for path in FOLDER.glob("*.config.json")]
  return max((x for x in names if case.removeprefix("train_").startswith(f"{x}_")), key=len)


def config_of(model: str):
  """Returns the settings and tensors of a reference network."""
  tensors = load_file(FOLDER / f"{model}.safetensors")
  values = json.loads((FOLDER / f"{model}.config.json").read_text())
  width = tensors["mask_embed.bos_token"].shape[-1]
  # Rotary positions take heads of at least 32.
  heads = width // 32 if values.get("rotary_pos_embed") else NUM_HEADS
  return convert.config_of(values, tensors, min(NUM_HEADS, heads)), tensors


def load(model: str) -> Nova:
  """Returns a reference network."""
  config, tensors = config_of(model)
  return network_of(config, convert.import_params(tensors, config))


def prompts(arrays, config, is_dropped=()) -> np.ndarray:
  """Returns features `[b, P, e]`, with zeros for padding and for dropped prompts."""
  lengths = arrays["prompt_lens"]
  text = np.zeros((len(lengths), config.text_length, config.text_dim), np.float32)
  for i, length in enumerate(lengths):
    if not (len(is_dropped) and is_dropped[i]):
      text[i, :length] = arrays[f"prompt_{i}"]
  return text


def flow(arrays, config):
  """Returns the clips' motion; None for a network without it."""
  return jnp.asarray(arrays["motion_flow"], jnp.float32) if config.has_motion else None


def latents(array) -> jnp.ndarray:
  """Returns latents `[..., h, w, c]` of public ones, `[..., c, h, w]`."""
  return jnp.asarray(np.moveaxis(array, -3, -1))


def clips(array) -> jnp.ndarray:
  """Returns clips `[b, t, h, w, c]` of public ones, `[b, c, t, h, w]` or `[b, c, h, w]`."""
  array = np.moveaxis(array, 1, -1)
  return jnp.asarray(array if array.ndim == 5 else array[:, None])


def error(ours, theirs) -> float:
  """Returns the largest error over the largest value."""
  ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)


@dataclasses.dataclass
class Replay:
  """The random numbers of a reference generation, in the order of its calls."""

  ids: jnp.ndarray
  starts: jnp.ndarray
  news: jnp.ndarray
  num_sets: int
  num_fresh: int
  first_frame: int

  @classmethod
  def of(cls, arrays, patch_size: int, num_sets: int, num_fresh: int) -> "Replay":
    starts = patchify(latents(arrays["ar_noise"]), patch_size)
    news = jnp.zeros_like(starts[:1])
    if "diff_noise" in arrays:
      news = patchify(latents(arrays["diff_noise"]), patch_size)
    ids = jnp.asarray(arrays["order_ids"][..., 0])
    return cls(ids, starts, news, num_sets, num_fresh, int("first_latent" in arrays))

  def _call(self, frame, step):
    return (frame - self.first_frame) * self.num_sets + step

  def order(self):
    return self.ids

  def start(self, frame, step):
    return self.starts[self._call(frame, step)]

  def fresh(self, frame, step, level):
    return self.news[
      jnp.minimum(self._call(frame, step) * self.num_fresh + level, len(self.news) - 1)
    ]
