"""Converts public checkpoints of Infinity and of InfinityStar, with tokenizer and text encoder.

Source: INFINITY sections 1, 5 and 6, S8 and S9.
"""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from videoar_jax.converters.checkpoints import name_of, read_tensors
from videoar_jax.converters.models import (
  check_fits,
  model_settings,
  text_part,
  tokenizer_part,
  weights_of,
)
from videoar_jax.converters.tokenizers import convert_infinity, convert_star
from videoar_jax.experiment import model_folder
from videoar_jax.interop.public_keys import PublicTensors
from videoar_jax.interop.tensor_files import shapes_of
from videoar_jax.models.families import FAMILIES
from videoar_jax.models.infinity import convert as infinity
from videoar_jax.models.infinity.config import RELEASED, InfinityConfig
from videoar_jax.models.infinity_star import convert as star
from videoar_jax.models.infinity_star.config import INTERACTIVE, InfinityStarConfig
from videoar_jax.tokenizers.files import check_new
from videoar_jax.tokenizers.star.schedules import released_pyramid

# (H, W) of the released videos; both have the same network.
STAR_RESOLUTIONS = {"480p": (480, 848), "720p": (720, 1280)}
STAR_FRAMES, STAR_RATE = (81, 161), 16.0
# Where training checkpoints have the weights that are released by themselves: of training on many
# devices, or on one; and where those of others often have them.
PARTS = (
  *(f"{trainer}{name}" for trainer in ("trainer.", "") for name in ("gpt_fsdp", "gpt_wo_ddp")),
  *("state_dict", "model", "module"),
)


def convert_infinity_model(
  checkpoint: pathlib.Path,
  out: pathlib.Path,
  *,
  tokenizer: pathlib.Path | None = None,
  text_encoder: pathlib.Path | None = None,
  resolution: tuple[int, int] | None = None,
  dtype: str | None = None,
) -> str:
  """Converts Infinity; returns a summary.

  Args:
    checkpoint: of the transformer: a file, or a folder of shards.
    out: new folder.
    tokenizer: a public or a converted one; None leaves it out.
    text_encoder: folder of a T5; None leaves it out.
    resolution: (H, W) that images have by default; None for 1024x1024, or 256x256 for the smallest
      network.
    dtype: of the weights; None for that of the checkpoint.
  Raises:
    ValueError, OSError: names the file or the flag, and the reason.
  """

  return _convert(
    "Infinity",
    checkpoint,
    out,
    infinity,
    lambda config: image_settings(config, resolution),
    convert_infinity,
    tokenizer=tokenizer,
    text_encoder=text_encoder,
    dtype=dtype,
  )


def convert_star_model(
  checkpoint: pathlib.Path,
  out: pathlib.Path,
  *,
  tokenizer: pathlib.Path | None = None,
  text_encoder: pathlib.Path | None = None,
  size: str = "480p",
  num_frames: int = STAR_FRAMES[0],
  interactive: bool = False,
  dtype: str | None = None,
) -> str:
  """Converts InfinityStar; returns a summary.

  Args:
    checkpoint, out, tokenizer, text_encoder, dtype: see `convert_infinity_model`.
    size: "480p" or "720p"; the checkpoints differ in nothing that shows.
    num_frames: of a clip, one of `STAR_FRAMES`; at 720p the first.
    interactive: whether it is the interactive model, of 480p.
  Raises:
    ValueError, OSError: names the file or the flag, and the reason.
  """

  if num_frames not in STAR_FRAMES or (size == "720p" and num_frames != STAR_FRAMES[0]):
    raise ValueError(f"--num_frames={num_frames}: {size} has 81 frames, and 480p also 161")
  if interactive and size != "480p":
    raise ValueError(f"--interactive: there is no such model of {size}; remove one of them")

  return _convert(
    "InfinityStar",
    checkpoint,
    out,
    star,
    lambda config: video_settings(config, size, num_frames, interactive=interactive),
    convert_star,
    tokenizer=tokenizer,
    text_encoder=text_encoder,
    dtype=dtype,
  )


def image_settings(config: InfinityConfig, resolution: tuple[int, int] | None = None) -> dict:
  """Returns the config of an Infinity, without paths.

  Args:
    config: the network.
    resolution: see `convert_infinity_model`.
  """
  size = _size_of("infinity", config)
  settings = model_settings("infinity", config)
  settings.data.resolution = resolution or ((256, 256) if size == "125m" else (1024, 1024))
  settings.data.num_frames = 1
  settings.text.length = config.text_length
  settings.sampling.update(RELEASED.get(size, {}))
  return settings.to_dict()


def video_settings(
  config: InfinityStarConfig, size: str, num_frames: int, *, interactive: bool = False
) -> dict:
  """Returns the config of an InfinityStar, without paths.

  Args:
    config: the network.
    size, num_frames, interactive: see `convert_star_model`.
  """
  settings = model_settings("infinity_star", config)
  settings.data.resolution = STAR_RESOLUTIONS[size]
  settings.data.num_frames, settings.data.frame_rate = num_frames, STAR_RATE
  settings.text.length = config.text_length
  if interactive:
    settings.sampling.update(INTERACTIVE)
    settings.generator.image_repetitions = released_pyramid("0.40M", 9 / 16).clip_repetitions
  return settings.to_dict()


def _size_of(family: str, config: Any) -> str | None:
  """Returns the name of a network's size; None for one that has none."""
  for name, settings in FAMILIES[family].sizes.items():
    if all(getattr(config, field) == settings.get(field) for field in ("num_layers", "d_model")):
      return name
  return None


def _convert(
  name: str,
  checkpoint: pathlib.Path,
  out: pathlib.Path,
  keys: Any,
  settings_of: Callable[[Any], dict],
  convert_tokenizer: Callable[[pathlib.Path, pathlib.Path], str],
  *,
  tokenizer: pathlib.Path | None,
  text_encoder: pathlib.Path | None,
  dtype: str | None,
) -> str:
  """Converts a model whose checkpoint is the transformer alone.

  Args:
    name: of the model, for display.
    checkpoint: of the transformer.
    out: new folder.
    keys: the module that knows its public keys.
    settings_of: returns the config of the model, without paths.
    convert_tokenizer: converts a public tokenizer.
    tokenizer, text_encoder, dtype: see `convert_infinity_model`.
  """
  check_new(out)
  found, _ = read_tensors(checkpoint, parts=PARTS)
  try:
    config = keys.config_of(shapes_of(found))
    public: PublicTensors = keys.public_tensors(found, config)
  except ValueError as error:
    raise ValueError(f"{checkpoint}: {error}") from error
  settings = settings_of(config)
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    parts = [
      tokenizer_part(tokenizer, None, folder, convert_tokenizer),
      text_part(text_encoder, None, config.text_dim, folder),
    ]
    files = {place: path for part in parts for place, path in part.files.items()}
    check_fits(settings, files, config)
    weights = weights_of(public, dtype)
    model_folder.write(out, settings, f"{name}, from {name_of(checkpoint)}", weights, files)
  size = f"width {config.d_model}, {config.num_layers} layers"
  lines = [f"{out}: {size}, {weights.num_parameters:,} parameters"]
  return "\n".join([*lines, *(line for part in parts for line in part.missing)])
