"""What conversions of whole models share: their tokenizer, their text encoder, their checks."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from videoar_jax.experiment import model_folder, parse
from videoar_jax.experiment.defaults import default_config
from videoar_jax.interop import tensors
from videoar_jax.interop.public_keys import PublicTensors
from videoar_jax.interop.tensor_map import MappedTensors
from videoar_jax.models.families import FAMILIES
from videoar_jax.text.encoders.files import EncoderFolder
from videoar_jax.tokenizers.files import saved_family

_FEATURES = "text_encoder.safetensors"


class Parts(NamedTuple):
  """The parts of a model besides its generator.

  Attributes:
    files: by their places in the model's folder.
    missing: lines that say what is not there, and the fix.
  """

  files: dict[str, pathlib.Path]
  missing: list[str]


def tokenizer_part(
  path: pathlib.Path | None,
  public: pathlib.Path | None,
  scratch: pathlib.Path,
  convert: Callable[[pathlib.Path, pathlib.Path], str],
) -> Parts:
  """Returns the tokenizer.

  Args:
    path: a converted or a public one; None for `public`.
    public: one that may not exist.
    scratch: folder for a converted one.
    convert: converts a public tokenizer to a new folder.
  Raises:
    ValueError, OSError: it cannot be converted.
  """
  place = model_folder.TOKENIZER
  path = path or (public if public is not None and public.exists() else None)
  if path is None:
    line = f"missing: {public.name}/" if public is not None else "missing: tokenizer"
    fix = f"name one by --tokenizer, or put a converted one into the folder as {place}/"
    return Parts({}, [f"{line}; {fix}"])
  if not path.exists():
    raise ValueError(f"--tokenizer={path} does not exist")
  if saved_family(path) is not None:
    return Parts({place: path}, [])
  convert(path, scratch / place)
  return Parts({place: scratch / place}, [])


def text_part(
  path: pathlib.Path | None, public: pathlib.Path | None, text_dim: int, scratch: pathlib.Path
) -> Parts:
  """Returns the text encoder, or features of "" in its place.

  Args:
    path: folder of an encoder; None for `public`.
    public: folder that may not exist.
    text_dim: width of its features.
    scratch: folder for a file of features.
  Raises:
    ValueError: the path is no folder, or its features have another width.
  """
  if path is not None and not path.is_dir():
    raise ValueError(f"--text_encoder={path} is no folder")
  path = path or (public if public is not None and public.is_dir() else None)
  if path is not None:
    width = EncoderFolder(path).config.d_model
    if width != text_dim:
      raise ValueError(
        f"{path} makes features of width {width}, but the model takes {text_dim}; name its own "
        "encoder by --text_encoder"
      )
    files = model_folder.text_encoder_parts(path)
    if any(file.name == "tokenizer.json" for file in files.values()):
      return Parts(files, [])
  tensors.write(scratch / _FEATURES, {"": np.zeros((1, text_dim), np.float32)})
  what = "text_encoder/" if path is None else "tokenizer.json of the text encoder"
  line = f"missing: {what}; name a folder by --text_encoder, or sample with --text_features=FILE"
  return Parts({_FEATURES: scratch / _FEATURES}, [line])


def model_settings(family: str, config: Any):
  """Returns the config of a model, as a ConfigDict, without sizes of clips and paths.

  Args:
    family: of the model.
    config: its network.
  """
  result = default_config({model_folder.STAGE: "generator"}, family=family)
  derived, network = FAMILIES[family].derived, dataclasses.asdict(config)
  result.generator.update({name: x for name, x in network.items() if name not in derived})
  loop = result.stage[model_folder.STAGE].loop
  loop.num_steps, loop.batch_size = 1, 1
  return result


def check_fits(settings: dict, files: Mapping[str, pathlib.Path], config: Any) -> None:
  """Checks that tokenizer and text encoder, if they are there, suit a network.

  Raises:
    ValueError: they do not; names the setting.
  """
  if model_folder.TOKENIZER not in files:
    return
  values = settings | {"frozen_tokenizer": str(files[model_folder.TOKENIZER]), "tokenizer": {}}
  text = model_folder.text_encoder_of(files)
  if text is not None:
    values = values | {"text": settings["text"] | {"tokenizer": str(text)}}
  found = parse.finalize(values).generator
  for name in FAMILIES[settings["family"]].derived:
    wanted = getattr(config, name)
    if getattr(found, name) != wanted:
      raise ValueError(
        f"the generator's {name} is {wanted}, but {getattr(found, name)} with this tokenizer and "
        "this text encoder; name others by --tokenizer and --text_encoder"
      )


def weights_of(public: PublicTensors | MappedTensors, dtype: str | None) -> model_folder.Weights:
  """Returns the weights to write, in a type, or by default in that of the largest public tensor."""
  if dtype is None:
    largest = max(public.shapes, key=lambda name: np.prod(public.shapes[name]))
    dtype = public.source_dtype(largest)
  kind = np.dtype(dtype)
  return model_folder.Weights(
    {name: (tuple(shape), kind) for name, shape in public.shapes.items()}, public.read
  )
