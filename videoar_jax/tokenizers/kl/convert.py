"""Public continuous autoencoders as parameters of this package: keys and configs of Diffusers.

Source: NOVA section 13.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from videoar_jax.tokenizers.kl.layouts import AutoencoderKLConfig, ImageKLConfig, OpenSoraConfig
from videoar_jax.tokenizers.kl.network import AutoencoderKL
from videoar_jax.train.state import Template, flatten, unflatten

# Public classes: name of the tokenizer family, and its settings.
CLASSES: dict[str, tuple[str, type[AutoencoderKLConfig]]] = {
  "AutoencoderKL": ("kl_image", ImageKLConfig),
  "AutoencoderKLOpenSora": ("kl_opensora", OpenSoraConfig),
}

# Settings that must be these, where a config names them.
_FIXED = {
  "in_channels": 3,
  "out_channels": 3,
  "act_fn": "silu",
  "double_z": True,
  "use_quant_conv": True,
  "use_post_quant_conv": True,
  "mid_block_add_attention": True,
  "latents_mean": None,
  "latents_std": None,
}

# Names of layers here, where they differ from the public ones.
_LAYERS = {
  "middle": "mid_block",
  "norm_out": "conv_norm_out",
  "shortcut": "conv_shortcut",
  "attention": "attentions.0",
  "norm": "group_norm",
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "out": "to_out.0",
}
# Those of numbered layers.
_NUMBERED = {
  "block": "resnets.{}",
  "down": "down_blocks.{}",
  "up": "up_blocks.{}",
  "downsample": "down_blocks.{}.downsamplers.0.conv",
  "upsample": "up_blocks.{}.upsamplers.0.conv",
}
# Names of the attention's layers in old checkpoints.
_OLD_NAMES = {
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "proj_attn": "to_out.0",
}


def config_of(values: dict) -> tuple[str, AutoencoderKLConfig]:
  """Returns the tokenizer family and the settings of a checkpoint.

  Args:
    values: of its `config.json`.
  Raises:
    ValueError: the class is unknown, a setting is missing, or the network here lacks it.
  """
  name = values.get("_class_name")
  if name not in CLASSES:
    raise ValueError(
      f"_class_name={name!r} is no autoencoder that can be converted; known are "
      f"{', '.join(CLASSES)}"
    )
  family, cls = CLASSES[name]
  missing = [key for key in ("block_out_channels", "latent_channels") if key not in values]
  if missing:
    raise ValueError(f"{' and '.join(missing)} missing; fetch the checkpoint's own config.json")
  config = cls(
    block_channels=tuple(values["block_out_channels"]),
    num_blocks=values.get("layers_per_block", 1),
    num_groups=values.get("norm_num_groups", 32),
    num_channels=values["latent_channels"],
    scaling_factor=values.get("scaling_factor", cls.scaling_factor),
    shift_factor=values.get("shift_factor") or 0.0,
  )
  wrong = [
    f"{key}={values[key]!r}, must be {wanted!r}"
    for key, wanted in (_FIXED | _block_types(config)).items()
    if key in values and _comparable(values[key]) != wanted
  ]
  if wrong:
    raise ValueError(f"{name} with these settings cannot be converted: {'; '.join(wrong)}")
  return family, config


def _block_types(config: AutoencoderKLConfig) -> dict[str, tuple[str, ...]]:
  """Returns the kinds of levels that a config must name."""
  num, num_flat = len(config.block_channels), config.num_flat_levels
  down = ["2D"] * num_flat + ["3D"] * (num - num_flat)
  up = ["2D" if config.is_flat else "3D"] * num
  return {"down_block_types": tuple(down), "up_block_types": tuple(up)}


def _comparable(value):
  """Returns kinds of levels without the rest of their names; other values as they are."""
  if not isinstance(value, list | tuple):
    return value
  return tuple("2D" if "Block2D" in str(kind) else "3D" for kind in value)


def with_tiling(config: AutoencoderKLConfig) -> OpenSoraConfig:
  """Returns the settings of a video autoencoder that codes clips in tiles.

  Raises:
    ValueError: it is one of images.
  """
  if not isinstance(config, OpenSoraConfig):
    raise ValueError("--tiling is for AutoencoderKLOpenSora; this codes frames alone: remove it")
  return dataclasses.replace(config, tiling=True)


def public_key(name: str) -> str:
  """Returns the public key of one of our parameters, `encoder.down_0.block_1.conv1.kernel`."""
  *layers, leaf = name.split(".")
  parts = []
  for layer in layers:
    kind, _, number = layer.rpartition("_")
    parts.append(_NUMBERED[kind].format(number) if kind in _NUMBERED else _LAYERS.get(layer, layer))
  if parts[-1] in ("quant_conv", "post_quant_conv"):
    parts = parts[-1:]
  return ".".join([*parts, "bias" if leaf == "bias" else "weight"])


def import_params(tensors: Mapping[str, np.ndarray], config: AutoencoderKLConfig) -> dict:
  """Returns the network's parameters, float32, as a nested dict.

  Args:
    tensors: of a public checkpoint, by its keys; old names of the attention's layers are known.
    config: from `config_of`.
  Raises:
    ValueError: lists every missing, unexpected or mis-shaped key; or a tensor is not of finite
      floating-point numbers.
  """
  names = {_new_key(key): key for key in tensors}
  wanted = {}
  for name, leaf in flatten(_template(config).shapes).items():
    wanted[public_key(name)] = (name, _public_shape(config, name, leaf.shape))
  wrong = [f"missing {key} {shape}" for key, (_, shape) in wanted.items() if key not in names]
  params = {}
  for key, own in names.items():
    value = np.asarray(tensors[own])
    if key not in wanted:
      wrong.append(f"unexpected {own} {value.shape}")
      continue
    name, shape = wanted[key]
    if "attentions" in key and value.shape == (*shape, 1, 1):
      value = value[..., 0, 0]  # Older ones are convolutions.
    if value.shape != shape:
      wrong.append(f"mis-shaped {own} {value.shape}, needs {shape}")
      continue
    params[name] = _transposed(_checked(own, value))
  if wrong:
    raise ValueError(
      f"not the autoencoder that its config describes, {summary(config)}: {len(wrong)} keys are "
      f"wrong: {'; '.join(wrong)}"
    )
  return unflatten(params)


def _template(config: AutoencoderKLConfig) -> Template:
  return Template.of(lambda key: AutoencoderKL(nnx.Rngs(params=key), config))


def _new_key(key: str) -> str:
  """Returns a key with the new names of an attention's layers."""
  parts = key.split(".")
  if "attentions" in parts and len(parts) > 1:
    parts[-2] = _OLD_NAMES.get(parts[-2], parts[-2])
  return ".".join(parts)


def _public_shape(
  config: AutoencoderKLConfig, name: str, shape: tuple[int, ...]
) -> tuple[int, ...]:
  """Returns the public shape of one of our parameters: outputs, inputs, kernel."""
  if len(shape) != 5:
    return shape[::-1]
  taps, height, width, num_in, num_out = shape
  kernel = (height, width) if _is_flat(config, name) else (taps, height, width)
  return num_out, num_in, *kernel


def _is_flat(config: AutoencoderKLConfig, name: str) -> bool:
  """Returns whether a convolution is 2-D in the public network."""
  part, layer, *_ = name.split(".")
  if config.is_flat or (layer == "conv_in" and part == "encoder"):
    return True
  kind, _, level = layer.rpartition("_")
  if part == "decoder" or kind not in ("down", "downsample"):
    return False
  return int(level) + (kind == "downsample") < config.num_flat_levels


def _checked(key: str, value: np.ndarray) -> np.ndarray:
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise ValueError(f"{key} is of type {value.dtype}; weights are floating-point numbers")
  value = np.asarray(value, np.float32)
  if not np.isfinite(value).all():
    raise ValueError(f"{key} holds values that are not finite")
  return value


def _transposed(value: np.ndarray) -> np.ndarray:
  """Moves outputs and inputs of a weight to the end; adds the axis of frames that 2-D ones lack."""
  value = np.moveaxis(value, (1, 0), (-2, -1)) if value.ndim > 1 else value
  return value[None] if value.ndim == 4 else value


def summary(config: AutoencoderKLConfig) -> str:
  """Describes a network's size."""
  return (
    f"{config.num_channels} channels at stride {config.spatial_stride} and {config.temporal_stride}"
    f" in time, levels of {list(config.block_channels)}, {config.num_blocks} blocks a level, "
    f"scaled by {config.scaling_factor:g}"
  )
