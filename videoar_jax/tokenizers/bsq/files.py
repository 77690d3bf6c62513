"""A tokenizer in a folder of its own: `tokenizer.json` and `tokenizer.safetensors`."""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from videoar_jax.tokenizers.bsq.autoencoder import AutoencoderConfig, abstract_params
from videoar_jax.tokenizers.bsq.schedules import Schedule

CONFIG_FILE, WEIGHTS_FILE = "tokenizer.json", "tokenizer.safetensors"


@dataclasses.dataclass(frozen=True)
class Saved:
  """What a folder says of its tokenizer.

  Attributes:
    config: of the network.
    schedule: scales it was trained with; None takes the default one of each grid.
    source: where it came from, for people.
  """

  config: AutoencoderConfig
  schedule: Schedule | None
  source: str


def flatten(params: dict) -> dict:
  """Returns a nested dict's leaves by dotted name."""
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {".".join(part.key for part in path): leaf for path, leaf in leaves}


def unflatten(leaves: dict) -> dict:
  """Undoes `flatten`."""
  params: dict = {}
  for name, leaf in leaves.items():
    *parents, last = name.split(".")
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return params


def is_saved(folder: str | os.PathLike) -> bool:
  """Says whether a folder is one of these."""
  return (pathlib.Path(folder) / CONFIG_FILE).is_file()


def check_new(folder: str | os.PathLike) -> None:
  """Checks that a tokenizer can be written to a folder.

  Raises:
    ValueError: it holds something already, is a file, or cannot be made.
  """
  folder = pathlib.Path(folder).absolute()
  if folder.is_dir() and any(folder.iterdir()):
    raise ValueError(f"{folder} holds something already; name a new or an empty folder")
  place = folder
  while not place.exists():
    place = place.parent
  if not place.is_dir():
    raise ValueError(f"{place} is a file; name a folder")
  if not os.access(place, os.W_OK | os.X_OK):
    raise ValueError(f"{place} cannot be written to; name another folder")


def save_tokenizer(folder: str | os.PathLike, saved: Saved, params: dict) -> None:
  """Writes a tokenizer, whole or not at all.

  Raises:
    ValueError: the folder is not empty.
    OSError: it cannot be written.
  """
  folder = pathlib.Path(folder).absolute()
  check_new(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  # Beside the folder, so that all of it comes to its name in one step.
  partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}_partial_", dir=folder.parent))
  try:
    weights = {name: np.asarray(leaf, np.float32) for name, leaf in flatten(params).items()}
    save_file(weights, partial / WEIGHTS_FILE)
    text = json.dumps(dataclasses.asdict(saved), indent=2)
    (partial / CONFIG_FILE).write_text(text + "\n")
    umask = os.umask(0)
    os.umask(umask)
    partial.chmod(0o777 & ~umask)  # Temporary folders are closed to others.
    partial.replace(folder)
  except SafetensorError as error:
    raise OSError(f"{partial / WEIGHTS_FILE} cannot be written ({error})") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def read_saved(folder: str | os.PathLike) -> Saved:
  """Reads what a folder says of its tokenizer, without the weights.

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
    schedule = values["schedule"]
    return Saved(
      AutoencoderConfig(**_as_tuples(values["config"])),
      schedule and tuple((int(h), int(w)) for h, w in schedule),
      values["source"],
    )
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f"{path} is damaged ({error!r}); convert the checkpoint anew") from error


def _as_tuples(value):
  """Makes JSON's lists tuples again."""
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
    weights = load_file(path)
  except SafetensorError as error:
    raise ValueError(f"{path} is damaged ({error}); convert the checkpoint anew") from error
  wanted = {name: leaf.shape for name, leaf in flatten(abstract_params(saved.config)).items()}
  if wanted != {name: leaf.shape for name, leaf in weights.items()}:
    raise ValueError(f"{path} does not fit {CONFIG_FILE} beside it; convert the checkpoint anew")
  return saved, unflatten(weights)
