"""Saves and loads a tokenizer as a folder with `tokenizer.json` and `tokenizer.safetensors`.

The first versions saved tokenizers of the family "bsq" alone, and did not name it.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videoar_jax.interop import tensors
from videoar_jax.interop.atomic import replacing
from videoar_jax.interop.strict_json import to_json
from videoar_jax.nn.conv import without_zero_taps
from videoar_jax.tokenizers.base import TokenizerConfig, TokenizerFamily
from videoar_jax.train.state import Template, flatten, unflatten

CONFIG_FILE, WEIGHTS_FILE = "tokenizer.json", "tokenizer.safetensors"


@dataclasses.dataclass(frozen=True)
class Saved:
  """The contents of `tokenizer.json`.

  Attributes:
    family: name of its family, in `TOKENIZERS`.
    config: the network's, with the scales that it was trained with.
    source: where it came from, for display.
  """

  family: str
  config: TokenizerConfig
  source: str


def is_saved(folder: str | os.PathLike, family: str) -> bool:
  """Returns whether a folder holds a saved tokenizer of a family.

  Raises:
    ValueError: its description is damaged.
  """
  return saved_family(folder) == family


def saved_family(folder: str | os.PathLike) -> str | None:
  """Returns the name of the family of the tokenizer in a folder; None if it holds none.

  Raises:
    ValueError: its description is damaged.
  """
  path = pathlib.Path(folder) / CONFIG_FILE
  if not path.is_file():
    return None
  with _named(path):
    return json.loads(path.read_text()).get("family", "bsq")


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
  """Names the damaged file in errors."""
  try:
    yield
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(f"{path} is damaged ({error!r}); convert the checkpoint again") from error


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
  weights = flatten(params)
  shapes = {name: leaf.shape for name, leaf in weights.items()}
  save_each(folder, saved, shapes, lambda name: np.asarray(weights[name]))


def save_each(
  folder: str | os.PathLike,
  saved: Saved,
  shapes: Mapping[str, tuple[int, ...]],
  make: Callable[[str], np.ndarray],
) -> None:
  """Writes a tokenizer whose weights are made one at a time, atomically.

  Args:
    folder: new or empty.
    saved: its description.
    shapes: of its parameters, by their names in files.
    make: returns a parameter by name.
  Raises:
    ValueError: the folder is not empty.
    OSError: it cannot be written.
  """
  folder = pathlib.Path(folder).absolute()
  check_new(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  kinds = {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}
  with replacing(folder) as partial:
    partial.mkdir()
    tensors.write_each(partial / WEIGHTS_FILE, kinds, make)
    save_description(partial, saved)


def save_description(folder: pathlib.Path, saved: Saved) -> None:
  """Writes a tokenizer's description alone into a folder, which is all that plans read."""
  folder.mkdir(parents=True, exist_ok=True)
  text = to_json(dataclasses.asdict(saved), indent=2)
  (folder / CONFIG_FILE).write_text(text + "\n")


def read_saved(folder: str | os.PathLike, family: TokenizerFamily) -> Saved:
  """Reads the description of a family's tokenizer, without its weights.

  Raises:
    FileNotFoundError: there is no tokenizer in it.
    ValueError: its description is damaged, or it is of another family.
  """
  path, found = pathlib.Path(folder) / CONFIG_FILE, saved_family(folder)
  if found is None:
    raise FileNotFoundError(
      f"no {CONFIG_FILE} in {folder}; make it with `python -m videoar_jax.convert`"
    )
  if found != family.name:
    raise ValueError(f"{path} is of the tokenizer family {found!r}; {family.name!r} is needed here")
  with _named(path):
    values = json.loads(path.read_text())
    config = _as_tuples(values["config"])
    # The first versions stored the scales beside the network's settings.
    if scales := values.get("schedule"):
      config["schedule"] = " ".join(f"{int(h)}x{int(w)}" for h, w in scales)
    return Saved(found, family.network(**config), values["source"])


def _as_tuples(value):
  """Turns JSON's lists back into tuples."""
  if isinstance(value, dict):
    return {name: _as_tuples(each) for name, each in value.items()}
  return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def read_params(folder: str | os.PathLike, family: TokenizerFamily) -> tuple[Saved, dict]:
  """Reads a family's tokenizer: its description and its parameters.

  Raises:
    FileNotFoundError: there is no tokenizer in it.
    ValueError: it is damaged, or of another family.
  """
  saved, path = read_saved(folder, family), pathlib.Path(folder) / WEIGHTS_FILE
  try:
    weights = tensors.read(path)
  except ValueError as error:
    raise ValueError(f"{error}; convert the checkpoint again") from error
  abstract = Template.of(family.make_module(saved.config)).shapes
  wanted = {name: leaf.shape for name, leaf in flatten(abstract).items()}
  if wanted != {name: leaf.shape for name, leaf in weights.items()}:
    raise ValueError(f"{path} does not fit {CONFIG_FILE} beside it; convert the checkpoint again")
  return saved, unflatten(weights)


def read_module(folder: str | os.PathLike, family: TokenizerFamily) -> nnx.Module:
  """Reads a family's network, to code clips; see `conv.without_zero_taps`.

  Raises:
    FileNotFoundError, ValueError: as `read_params`.
  """
  saved, params = read_params(folder, family)
  template = Template.of(family.make_module(saved.config))
  return without_zero_taps(template.module(jax.tree.map(jnp.asarray, params)))
