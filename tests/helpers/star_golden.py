"""Reads reference numbers of InfinityStar's public code."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from videoar_jax.models.infinity_star import convert
from videoar_jax.models.infinity_star.layout import Layout
from videoar_jax.models.infinity_star.network import InfinityStar, network_of
from videoar_jax.tokenizers.star.schedules import Pyramid

_SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared"
FOLDER = pathlib.Path(os.environ.get("VIDEOAR_GOLDEN", _SHARED / "golden")) / "infinity_star"
TEXT_LENGTH = 16  # Of all reference networks.


def cases(pattern: str) -> list[str]:
  """Returns the names of reference files; none in a clone without them."""
  return sorted(path.name for path in FOLDER.glob(pattern))


def read(name: str) -> dict[str, np.ndarray]:
  """Returns the arrays of a reference file; those with the same inputs share them."""
  arrays = dict(np.load(FOLDER / name))
  if "conddrop" in name:
    shared = dict(np.load(FOLDER / "a_tf_pack2.npz"))
    names = ("raw_features_", "text", "lens", "schedule", "sample_of_scale", "doc_lengths")
    arrays = {key: x for key, x in shared.items() if key.startswith(names)} | arrays
  return arrays


@functools.cache
def tensors_of(name: str) -> dict[str, np.ndarray]:
  """Returns the public tensors of the network that a reference file is of."""
  model = "star_tiny_hd32" if "hd32" in name else "star_tiny"
  return load_file(FOLDER / f"{model}.safetensors")


def config_of(name: str):
  """Returns the settings of the network that a reference file is of."""
  shapes = {key: value.shape for key, value in tensors_of(name).items()}
  return convert.config_of(shapes, TEXT_LENGTH)


def load(name: str) -> InfinityStar:
  """Returns the network that a reference file is of."""
  config = config_of(name)
  params = convert.import_params(tensors_of(name), config)
  return network_of(config, jax.tree.map(jnp.asarray, params))


def pyramid(grid: tuple[int, int]) -> Pyramid:
  """Returns the scales of all reference networks."""
  grids = ((1, 1), (2, 3), (3, 4), (4, 6))
  if grid[0] > grid[1]:
    grids = tuple((w, h) for h, w in grids)
  return Pyramid(
    grids=grids,
    image_repetitions=(2, 3, 2, 2),
    clip_repetitions=(3, 2, 2, 1),
    min_detail_tokens=12,
    clip_length=3,
  )


def layout(latents_shape: tuple[int, ...], num_scales: int | None = None) -> Layout:
  """Returns the sequence of public latents `[b, c, t, h, w]`, maybe cut."""
  schedule = pyramid(latents_shape[3:]).schedule(latents_shape[2])
  kept = None if num_scales is None else tuple(range(num_scales))
  return Layout(TEXT_LENGTH, schedule, kept)


def clips(array) -> jnp.ndarray:
  """Returns clips `[b, t, h, w, c]` of public ones, `[b, c, t, h, w]`."""
  return jnp.asarray(np.moveaxis(array, 1, -1))


def padded(features: np.ndarray) -> jnp.ndarray:
  """Returns the features of a prompt `[1, P, e]`."""
  return jnp.asarray(np.pad(features, ((0, TEXT_LENGTH - len(features)), (0, 0))))[None]


def error(ours, theirs) -> float:
  """Returns the largest difference."""
  ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
  assert ours.shape == theirs.shape
  return float(np.abs(ours - theirs).max())
