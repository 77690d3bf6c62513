"""Saves and loads a tokenizer as a folder with `tokenizer.json` and `tokenizer.safetensors`."""

import dataclasses
import json
import os
import pathlib

import numpy as np

from videoar_jax.interop import tensors
from videoar_jax.interop.atomic import replacing
from videoar_jax.interop.strict_json import to_json
from videoar_jax.tokenizers.autoencoder import abstract_params
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.train.state import flatten, unflatten

CONFIG_FILE, WEIGHTS_FILE = "tokenizer.json", "tokenizer.safetensors"


@dataclasses.dataclass(frozen=True)
class Saved:
  """The contents of `tokenizer.json`.

  Attributes:
    config: the network's, with the scales that it was trained with.
    source: where it came from, for display.
  """

  config: BSQConfig
  source: str


def is_saved(folder: str | os.PathLike) -> bool:
  """Returns whether a folder holds a saved tokenizer."""
  return (pathlib.Path(folder) / CONFIG_FILE).is_file()


def check_new(folder: str | os.PathLike) -> None:
  """Checks that a tokenizer can be written to a folder.

  Raises:
    ValueError: it is not empty, is a file, or cannot be created.
  """
  folder = pathlib.Path(folder).absolute()
  if folder.is_dir() and any(folder.iterdir()):
    raise ValueError(f"{folder} is not empty; name a new or an empty folder")
  place = folder
  while not place.exists():
    place = place.parent
  if not place.is_dir():
    raise ValueError(f"{place} is a file; name a folder")
  if not os.access(place, os.W_OK | os.X_OK):
    raise ValueError(f"{place} cannot be written to; name another folder")


def save_tokenizer(folder: str | os.PathLike, saved: Saved, params: dict) -> None:
  """Writes a tokenizer atomically.

  Raises:
    ValueError: the folder is not empty.
    OSError: it cannot be written.
  """
  folder = pathlib.Path(folder).absolute()
  check_new(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  weights = {name: np.asarray(leaf, np.float32) for name, leaf in flatten(params).items()}
  with replacing(folder) as partial:
    partial.mkdir()
    tensors.write(partial / WEIGHTS_FILE, weights)
    text = to_json(dataclasses.asdict(saved), indent=2)
    (partial / CONFIG_FILE).write_text(text + "\n")


def read_saved(folder: str | os.PathLike) -> Saved:
  """Reads a tokenizer's description, without its weights.

  Raises:
    FileNotFoundError: there is no tokenizer in it.
    ValueError: its description is damaged.
  """
  path = pathlib.Path(folder) / CONFIG_FILE
  if not path.is_file():
    raise FileNotFoundError(
      f"no {CONFIG_FILE} in {folder}; make it with `python -m videoar_jax.convert`"
    )
  try:
    values = json.loads(path.read_text())
    config = BSQConfig(**_as_tuples(values["config"]))
    # The first versions stored the scales beside the network's settings.
    if scales := values.get("schedule"):
      text = " ".join(f"{int(h)}x{int(w)}" for h, w in scales)
      config = dataclasses.replace(config, schedule=text)
    return Saved(config, values["source"])
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f"{path} is damaged ({error!r}); convert the checkpoint again") from error


def _as_tuples(value):
  """Turns JSON's lists back into tuples."""
  if isinstance(value, dict):
    return {name: _as_tuples(each) for name, each in value.items()}
  return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def read_params(folder: str | os.PathLike) -> tuple[Saved, dict]:
  """Reads a tokenizer: its description and its parameters.

  Raises:
    FileNotFoundError: there is no tokenizer in it.
    ValueError: it is damaged.
  """
  saved, path = read_saved(folder), pathlib.Path(folder) / WEIGHTS_FILE
  try:
    weights = tensors.read(path)
  except ValueError as error:
    raise ValueError(f"{error}; convert the checkpoint again") from error
  wanted = {name: leaf.shape for name, leaf in flatten(abstract_params(saved.config)).items()}
  if wanted != {name: leaf.shape for name, leaf in weights.items()}:
    raise ValueError(f"{path} does not fit {CONFIG_FILE} beside it; convert the checkpoint again")
  return saved, unflatten(weights)
