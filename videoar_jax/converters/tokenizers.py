"""Converts public tokenizers to folders that `load_tokenizer` and `frozen_tokenizer` take."""

import pathlib

from videoar_jax.converters.checkpoints import diffusers_tensors, name_of, read_config, read_tensors
from videoar_jax.nn.layers import count_parameters
from videoar_jax.tokenizers import files
from videoar_jax.tokenizers.bsq import infinity
from videoar_jax.tokenizers.kl import convert as kl
from videoar_jax.tokenizers.star import convert as star

# Where files have tokenizers: those of the tokenizer's training, and of the transformer's.
PARTS = ("vae", "trainer.vae_local", "vae_local", "state_dict")


def convert_infinity(checkpoint: pathlib.Path, out: pathlib.Path) -> str:
  """Converts Infinity's image tokenizer; returns a summary.

  Raises:
    ValueError, OSError: names the file and the reason.
  """
  return _convert(checkpoint, out, "bsq", infinity, "Infinity's image tokenizer")


def convert_star(checkpoint: pathlib.Path, out: pathlib.Path) -> str:
  """Converts InfinityStar's video autoencoder; returns a summary.

  Raises:
    ValueError, OSError: names the file and the reason.
  """
  return _convert(checkpoint, out, "star", star, "InfinityStar's video autoencoder")


def _convert(checkpoint: pathlib.Path, out: pathlib.Path, family: str, module, name: str) -> str:
  """Converts a file that may have the tokenizer as one of its `PARTS`.

  Args:
    checkpoint: the file.
    out: new folder.
    family: name of the tokenizer family.
    module: with `import_params`, `summary` and `NOT_NEEDED`.
    name: what it is, for display.
  """
  files.check_new(out)
  tensors, unused = read_tensors(checkpoint, parts=PARTS)
  try:
    config, params = module.import_params(tensors)
  except ValueError as error:
    raise ValueError(f"{checkpoint}: {error}") from error
  source = f"{name}, from {name_of(checkpoint)}"
  files.save_tokenizer(out, files.Saved(family, config, source), params)
  unused += [key for key in tensors if key in module.NOT_NEEDED]
  lines = [f"{out}: {module.summary(config)}, {count_parameters(params):,} parameters"]
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
