"""Converts a public NOVA pipeline: transformer, autoencoder, text encoder and noise schedule.

Source: NOVA sections 2, 11 and 13.
"""

import dataclasses
import pathlib
import tempfile

from videoar_jax.converters.checkpoints import diffusers_tensors, name_of, read_config
from videoar_jax.converters.models import (
  check_fits,
  model_settings,
  text_part,
  tokenizer_part,
  weights_of,
)
from videoar_jax.converters.tokenizers import convert_kl
from videoar_jax.experiment import model_folder
from videoar_jax.models.nova import convert
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.text.tokenizers import NUM_SPECIAL
from videoar_jax.tokenizers.files import check_new

NUM_FRAMES, FRAME_RATE = 33, 12.0  # Of the public text-to-video model.
# What a scheduler's settings must be, where it has them.
_FLOW_SETTINGS = {"num_train_timesteps": 1000, "shift_terminal": None} | dict.fromkeys(
  (
    *("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
    *("invert_sigmas", "stochastic_sampling"),
  ),
  False,
)
_DDPM_SETTINGS = {
  "num_train_timesteps": 1000,
  "beta_schedule": "squaredcos_cap_v2",
  "trained_betas": None,
  "prediction_type": "epsilon",
  "variance_type": "fixed_small",
  "clip_sample": False,
  "thresholding": False,
  "rescale_betas_zero_snr": False,
}
_FLOW, _DDPM = "FlowMatchEulerDiscreteScheduler", "DDPMScheduler"


def convert_nova(
  checkpoint: pathlib.Path,
  out: pathlib.Path,
  *,
  tokenizer: pathlib.Path | None = None,
  text_encoder: pathlib.Path | None = None,
  num_heads: int | None = None,
  dtype: str | None = None,
) -> str:
  """Converts a pipeline; returns a summary.

  Args:
    checkpoint: its folder.
    out: new folder.
    tokenizer: converted tokenizer, instead of `vae/`.
    text_encoder: folder, instead of `text_encoder/`.
    num_heads: of the transformers; None for those of the public width.
    dtype: of the weights; None for that of each tensor.
  Raises:
    ValueError, OSError: names the file or the flag, and the reason.
  """
  check_new(out)
  folder = checkpoint / "transformer"
  if not folder.is_dir():
    raise ValueError(f"{checkpoint} has no folder transformer/; name that of a whole pipeline")
  values, found = read_config(folder / "config.json"), diffusers_tensors(folder)
  try:
    config = convert.config_of(values, found, num_heads)
    public = convert.public_tensors(found, config)
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from error
  config, lines = _with_noise(checkpoint, config)
  settings = settings_of(values, config)
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    parts = [tokenizer_part(tokenizer, checkpoint / "vae", folder, _convert_vae)]
    if config.text_dim:
      parts.append(text_part(text_encoder, checkpoint / "text_encoder", config.text_dim, folder))
    files = {name: path for part in parts for name, path in part.files.items()}
    check_fits(settings, files, config)
    weights = weights_of(public, dtype)
    model_folder.write(out, settings, f"NOVA, from {name_of(checkpoint)}", weights, files)
  lines += [line for part in parts for line in part.missing]
  size = f"width {config.d_model}, {weights.num_parameters:,} parameters"
  return "\n".join([f"{out}: {size}", *lines])


def _convert_vae(checkpoint: pathlib.Path, out: pathlib.Path) -> str:
  """Converts the autoencoder; that of video codes tiles, on whose latents NOVA was trained."""
  folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
  name = read_config(folder / "config.json").get("_class_name")
  return convert_kl(checkpoint, out, tiling=name == "AutoencoderKLOpenSora")


def _with_noise(checkpoint: pathlib.Path, config: NovaConfig) -> tuple[NovaConfig, list[str]]:
  """Returns the settings with the noise that the pipeline was trained on, and lines to print.

  Raises:
    ValueError: its scheduler is unknown, or has settings that the network here lacks.
  """
  path = checkpoint / "scheduler" / "scheduler_config.json"
  if not path.is_file():
    # The published models with a deep head are trained on flows.
    noise = "flow" if config.num_head_layers > 3 else "ddpm"
    line = f"missing: scheduler/; noise {noise!r}, as in public models with such a head"
    return dataclasses.replace(config, noise=noise), [line]
  values = read_config(path)
  name = values.get("_sample_class_name") or values.get("_class_name")
  if name == _FLOW:
    _check_settings(path, values, _FLOW_SETTINGS)
    shift = float(values.get("shift", 1.0))
    return dataclasses.replace(config, noise="flow", noise_shift=shift), []
  if name != _DDPM:
    raise ValueError(f"{path}: _class_name={name!r} is unknown; known are {_DDPM} and {_FLOW}")
  _check_settings(path, values, _DDPM_SETTINGS)
  spacing = values.get("timestep_spacing", "leading")
  offset = int(values.get("steps_offset", 0))
  try:
    return dataclasses.replace(config, noise="ddpm", noise_spacing=spacing, noise_offset=offset), []
  except ValueError as error:
    raise ValueError(f"{path}: timestep_spacing: {error}") from error


def _check_settings(path: pathlib.Path, values: dict, wanted: dict) -> None:
  """Raises ValueError if a scheduler has a setting that the network here lacks."""
  for field, value in wanted.items():
    if values.get(field, value) != value:
      raise ValueError(f"{path}: {field}={values[field]!r} is not supported, only {value!r}")


def _check_tables(values: dict, config: NovaConfig, size: tuple[int, int]) -> None:
  """Raises ValueError if tables of positions have other sides than pictures have tokens."""
  stride = values.get("image_stride", 8)
  patches = {"image_base_size": config.patch_size, "video_base_size": config.video_patch_size}
  for field, patch in patches.items():
    wanted, found = [side // stride // patch for side in size], values.get(field)
    if found is not None and list(found)[-2:] != wanted:
      raise ValueError(
        f"transformer/config.json: {field}={found} does not fit image_size={size[0]}x{size[1]}, "
        f"which has {wanted[0]}x{wanted[1]} tokens"
      )


def settings_of(values: dict, config: NovaConfig) -> dict:
  """Returns the config of a NOVA, without paths.

  Args:
    values: of its `transformer/config.json`.
    config: the network.
  Raises:
    ValueError: the transformer's config says no size of a picture, or its tables of positions have
      another.
  """
  if "image_size" not in values:
    raise ValueError("transformer/config.json: image_size is missing")
  result, size = model_settings("nova", config), values["image_size"]
  result.data.resolution = tuple(size) if isinstance(size, list | tuple) else (size, size)
  _check_tables(values, config, result.data.resolution)
  result.data.num_frames = NUM_FRAMES if config.time_base > 1 else 1
  result.data.frame_rate = FRAME_RATE
  result.text.length = config.text_length
  if not config.text_dim:
    result.text.tokenizer = "classes"
    num = config.vocabulary_size - NUM_SPECIAL
    result.text.classes = tuple(f"class {i}" for i in range(num))
    result.text.length = 1
  return result.to_dict()
