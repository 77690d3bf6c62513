"""Converts a public NOVA pipeline: transformer, autoencoder, text encoder and noise schedule.

Source: NOVA sections 2, 11 and 13.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping

import numpy as np

from videoar_jax.converters.checkpoints import diffusers_tensors, read_config
from videoar_jax.converters.tokenizers import convert_kl
from videoar_jax.experiment import model_folder, parse
from videoar_jax.experiment.defaults import default_config
from videoar_jax.interop import tensors
from videoar_jax.interop.public_keys import PublicTensors
from videoar_jax.models.families import FAMILIES
from videoar_jax.models.nova import convert
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.tokenizers.files import check_new

NUM_FRAMES, FRAME_RATE = 33, 12.0  # Of the public text-to-video model.
_FLOW, _DDPM = "FlowMatchEulerDiscreteScheduler", "DDPMScheduler"
_FEATURES = "text_encoder.safetensors"


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
  with tempfile.TemporaryDirectory() as scratch:
    parts, missing = _parts(
      checkpoint, pathlib.Path(scratch), config, tokenizer=tokenizer, text_encoder=text_encoder
    )
    settings = _settings(values, config)
    _check(settings, parts, config)
    weights = weights_of(public, dtype)
    source = f"NOVA, from {checkpoint.name}"
    model_folder.write(out, settings, source, weights, parts)
  size = f"width {config.d_model}, {weights.num_parameters:,} parameters"
  return "\n".join([f"{out}: {size}", *lines, *missing])


def weights_of(public: PublicTensors, dtype: str | None) -> model_folder.Weights:
  """Returns the weights to write, in a type, or by default in that of the largest public tensor."""
  if dtype is None:
    largest = max(public.shapes, key=lambda name: np.prod(public.shapes[name]))
    dtype = public.source_dtype(largest)
  kind = np.dtype(dtype)
  return model_folder.Weights(
    {name: (tuple(shape), kind) for name, shape in public.shapes.items()}, public.read
  )


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
    if values.get("use_dynamic_shifting"):
      raise ValueError(f"{path}: use_dynamic_shifting is not supported; set it to false")
    shift = float(values.get("shift", 1.0))
    return dataclasses.replace(config, noise="flow", noise_shift=shift), []
  if name != _DDPM:
    raise ValueError(f"{path}: _class_name={name!r} is unknown; known are {_DDPM} and {_FLOW}")
  wanted = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "thresholding": False,
  }
  for field, value in wanted.items():
    if values.get(field, value) != value:
      raise ValueError(f"{path}: {field}={values[field]!r} is not supported, only {value!r}")
  spacing = values.get("timestep_spacing", "leading")
  offset = int(values.get("steps_offset", 0))
  try:
    return dataclasses.replace(config, noise="ddpm", noise_spacing=spacing, noise_offset=offset), []
  except ValueError as error:
    raise ValueError(f"{path}: timestep_spacing: {error}") from error


def _parts(
  checkpoint: pathlib.Path,
  scratch: pathlib.Path,
  config: NovaConfig,
  *,
  tokenizer: pathlib.Path | None,
  text_encoder: pathlib.Path | None,
) -> tuple[dict[str, pathlib.Path], list[str]]:
  """Returns the model's other parts, by their place in its folder, and what is missing."""
  parts, missing = {}, []
  if tokenizer is None and (checkpoint / "vae").is_dir():
    tokenizer = scratch / "tokenizer"
    convert_kl(checkpoint / "vae", tokenizer)
  if tokenizer is None:
    missing.append(
      f"missing: vae/; put a converted tokenizer into the folder as {model_folder.TOKENIZER}/, or "
      "name one by --tokenizer"
    )
  else:
    parts[model_folder.TOKENIZER] = tokenizer
  if not config.text_dim:
    return parts, missing
  text_encoder = text_encoder or checkpoint / "text_encoder"
  if text_encoder.is_dir():
    return parts | model_folder.text_encoder_parts(text_encoder), missing
  # Padding alone: it says how wide features are.
  tensors.write(scratch / _FEATURES, {"": np.zeros((1, config.text_dim), np.float32)})
  missing.append("missing: text_encoder/; sample with --text_features, or name it: --text_encoder")
  return parts | {_FEATURES: scratch / _FEATURES}, missing


def _settings(values: dict, config: NovaConfig) -> dict:
  """Returns the config of the model, without paths.

  Raises:
    ValueError: the transformer's config says no size of a picture.
  """
  result = default_config({model_folder.STAGE: "generator"}, family="nova")
  derived = FAMILIES["nova"].derived
  network = dataclasses.asdict(config)
  result.generator.update({name: x for name, x in network.items() if name not in derived})
  if "image_size" not in values:
    raise ValueError("transformer/config.json: image_size is missing")
  size = values["image_size"]
  result.data.resolution = tuple(size) if isinstance(size, list | tuple) else (size, size)
  result.data.num_frames = NUM_FRAMES if config.time_base > 1 else 1
  result.data.frame_rate = FRAME_RATE
  result.text.length = config.text_length
  if not config.text_dim:
    result.text.tokenizer = "classes"
    # The last row is "no condition".
    result.text.classes = tuple(f"class {i}" for i in range(config.vocabulary_size - 1))
  loop = result.stage[model_folder.STAGE].loop
  loop.num_steps, loop.batch_size = 1, 1
  return result.to_dict()


def _check(settings: dict, parts: Mapping[str, pathlib.Path], config: NovaConfig) -> None:
  """Raises ValueError if the parts do not fit together."""
  if model_folder.TOKENIZER not in parts:
    return
  values = settings | {"frozen_tokenizer": str(parts[model_folder.TOKENIZER]), "tokenizer": {}}
  text = model_folder.text_encoder_of(parts)
  if text is not None:
    values = values | {"text": settings["text"] | {"tokenizer": str(text)}}
  found = parse.finalize(values).generator
  for name, wanted in dataclasses.asdict(config).items():
    if getattr(found, name) != wanted:
      raise ValueError(
        f"the transformer's {name} is {wanted}, but {getattr(found, name)} with the tokenizer and "
        "the text encoder; name others by --tokenizer and --text_encoder"
      )
