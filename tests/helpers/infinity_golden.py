"""Reads reference numbers of Infinity's public code."""

import dataclasses
import itertools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from videoar_jax.models.infinity import convert
from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity.layout import Layout

_SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared"
_ROOT = pathlib.Path(os.environ.get("VIDEOAR_GOLDEN", _SHARED / "golden"))
FOLDER, TOKENIZER_FOLDER = _ROOT / "infinity_generator", _ROOT / "infinity"


def cases(prefix: str) -> list[str]:
  """Returns the names of reference runs; none in a clone without them."""
  return sorted(path.stem for path in FOLDER.glob(f"{prefix}*.npz"))


def load(name: str, num_bits: int) -> tuple[InfinityConfig, dict]:
  """Returns the settings of a reference network, and its parameters."""
  tensors = load_file(FOLDER / f"{name}.safetensors")
  shapes = {key: tensor.shape for key, tensor in tensors.items()}
  size = round((tensors["word_embed.weight"].shape[1] / num_bits) ** 0.5)
  config = convert.config_of(shapes, size)
  params = convert.import_params(tensors, config)
  return config, jax.tree.map(jnp.asarray, params)


def layers_of_chunk(name: str) -> int:
  """Returns the layers of a chunk, before each of which some variants add level embeddings."""
  tensors = load_file(FOLDER / f"{name}.safetensors")
  return sum(key.startswith("block_chunks.0.") and key.endswith("ada_gss") for key in tensors)


def variants(name: str, config: InfinityConfig):
  """Yields the settings of the public code that the files do not name; the usual ones first."""
  periods, grids = (0, layers_of_chunk(name)), ("largest", "scale")
  for period, grid in itertools.product(periods, grids):
    yield dataclasses.replace(config, level_embedding_period=period, rope_grid=grid)


def layout(arrays, config: InfinityConfig) -> Layout:
  """Returns the sequence of a reference run."""
  grids = tuple((int(h), int(w)) for _, h, w in arrays["schedule"])
  return Layout(grids, config.patch_size, config.rope_grid)


def prompts(text, lengths, num_rows: int | None = None) -> np.ndarray:
  """Returns features `[b, P, e]`, padded with zeros, of those of all prompts in a row."""
  rows = np.zeros((len(lengths), num_rows or max(lengths), text.shape[1]), np.float32)
  for i, part in enumerate(np.split(text, np.cumsum(lengths)[:-1])):
    rows[i, : len(part)] = part
  return rows


def unpadded(rows, lengths) -> np.ndarray:
  """Undoes `prompts`."""
  return np.concatenate(
    [np.asarray(row)[:length] for row, length in zip(rows, lengths, strict=True)]
  )


def error(ours, theirs) -> float:
  """Returns the largest difference."""
  ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
  assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
  return np.abs(ours - theirs).max()
