"""Converts public tokenizers to folders that `load_tokenizer` and `frozen_tokenizer` take."""

import pathlib

from videoar_jax.converters.checkpoints import diffusers_tensors, name_of, read_config, read_tensors
from videoar_jax.nn.layers import count_parameters
from videoar_jax.tokenizers import files
from videoar_jax.tokenizers.bsq import infinity
from videoar_jax.tokenizers.kl import convert as kl
from videoar_jax.tokenizers.star import convert as star


def convert_infinity(checkpoint: pathlib.Path, out: pathlib.Path) -> str:
  """Converts Infinity's image tokenizer; returns a summary.

  Raises:
    ValueError, OSError: names the file and the reason.
  """
  files.check_new(out)
  tensors, unused = read_tensors(checkpoint, part="vae")
  try:
    config, params = infinity.import_params(tensors)
  except ValueError as error:
    raise ValueError(f"{checkpoint}: {error}") from error
  source = f"Infinity's image tokenizer, from {name_of(checkpoint)}"
  files.save_tokenizer(out, files.Saved("bsq", config, source), params)
  unused += [key for key in tensors if key in infinity.NOT_NEEDED]
  lines = [f"{out}: {infinity.summary(config)}, {count_parameters(params):,} parameters"]
  if unused:
    lines.append(f"not needed, omitted: {', '.join(unused)}")
  return "\n".join(lines)


def convert_kl(checkpoint: pathlib.Path, out: pathlib.Path, *, tiling: bool = False) -> str:
  """Converts a continuous autoencoder; returns a summary.

  Raises:
    ValueError, OSError: names the file and the reason.
  """
  files.check_new(out)
  if (checkpoint / "vae" / "config.json").is_file():
    checkpoint = checkpoint / "vae"
  folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
  path = folder / "config.json"
  values = read_config(path)
  try:
    family, config = kl.config_of(values)
    if tiling:
      config = kl.with_tiling(config)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  tensors = diffusers_tensors(checkpoint)
  try:
    params = kl.import_params(tensors, config)
  except ValueError as error:
    raise ValueError(f"{checkpoint}: {error}") from error
  source = f"{values['_class_name']}, from {name_of(checkpoint)}"
  files.save_tokenizer(out, files.Saved(family, config, source), params)
  return f"{out}: {kl.summary(config)}, {count_parameters(params):,} parameters"


def convert_star(checkpoint: pathlib.Path, out: pathlib.Path) -> str:
  """Converts InfinityStar's video autoencoder; returns a summary.

  Raises:
    ValueError, OSError: names the file and the reason.
  """
  files.check_new(out)
  tensors, unused = read_tensors(checkpoint, part="vae")
  try:
    config, params = star.import_params(tensors)
  except ValueError as error:
    raise ValueError(f"{checkpoint}: {error}") from error
  source = f"InfinityStar's video autoencoder, from {name_of(checkpoint)}"
  files.save_tokenizer(out, files.Saved("star", config, source), params)
  unused += [key for key in tensors if key in star.NOT_NEEDED]
  lines = [f"{out}: {star.summary(config)}, {count_parameters(params):,} parameters"]
  if unused:
    lines.append(f"not needed, omitted: {', '.join(unused)}")
  return "\n".join(lines)
