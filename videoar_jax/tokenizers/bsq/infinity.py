"""Imports Infinity's public image tokenizer: its keys, its sizes, its weights.

An image kernel becomes the last temporal slice of ours and the slices of earlier frames are zero,
so every frame of a clip is coded as the image network codes it.

Source: VIDEOAR sections 2.1 and 2.2.
"""

import collections
import re
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from videoar_jax.tokenizers.autoencoder import abstract_params
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.train.state import flatten, unflatten

Shapes = Mapping[str, tuple[int, ...]]

# One constant of the quantizer under two names: powers of two, which ours needs no integers for.
NOT_NEEDED = ("quantizer.lfq.mask", "quantize.lfq.mask")
NUM_GROUPS = 32  # As in the public network; shapes do not show it.


def recognise(shapes: Shapes) -> BSQConfig:
  """Returns the settings of the network that a checkpoint holds, from its shapes alone.

  A width is the one that most tensors of its level have; `check_keys` names those that differ.

  Raises:
    ValueError: the keys are of no such network, or ours cannot represent it.
  """
  widths = []
  for level in range(_count(shapes, r"(?:encoder\.down|decoder\.up)\.(\d+)\.")):
    votes = (
      shape[0]
      for key, shape in shapes.items()
      if re.match(rf"encoder\.down\.{level}\.block\.\d+\.(conv\d|norm2)\.", key) and shape
    )
    widths.append(_most_common(votes))
  num_bits = _most_common(
    shapes[key][axis]
    for key, axis in (
      ("encoder.conv_out.conv.weight", 0),
      ("encoder.conv_out.conv.bias", 0),
      ("decoder.conv_in.conv.weight", 1),
      *((key, 0) for key in NOT_NEEDED),
    )
    if len(shapes.get(key, ())) > axis
  )
  if not widths or None in widths or num_bits is None:
    raise ValueError(
      "it holds no Infinity image tokenizer: there are no blocks encoder.down.*.block.* of every "
      f"level, or no convolution encoder.conv_out; {_first_keys(shapes)}"
    )
  if any(width % widths[0] for width in widths):
    raise ValueError(f"the widths of its levels, {widths}, are not multiples of the first one")
  return BSQConfig(
    num_bits=num_bits,
    base_channels=widths[0],
    multipliers=tuple(width // widths[0] for width in widths),
    num_encoder_blocks=_count(shapes, r"encoder\.down\.\d+\.block\.(\d+)\."),
    num_decoder_blocks=_count(shapes, r"decoder\.up\.\d+\.block\.(\d+)\."),
    strides=((1, 2),) * (len(widths) - 1),
    num_groups=NUM_GROUPS,
  )


def public_key(name: str) -> str:
  """Returns the public key of one of our parameters, `encoder.down_0.block_1.conv1.kernel`."""
  *modules, leaf = name.split(".")
  parts: list[str] = []
  for module in modules:
    kind, _, number = module.rpartition("_")
    if kind == "block":
      is_middle = parts[-1] == "mid"
      parts += [f"block_{int(number) + 1}"] if is_middle else ["block", number]
    elif kind == "downsample":
      parts += ["down", number, "downsample", "conv"]
    elif kind == "upsample":
      parts += ["up", number, "upsample"]
    elif kind in ("down", "up"):
      parts += [kind, number]
    else:
      parts.append(module)
  # Each public layer is wrapped in a module.
  parts.append("norm" if "norm" in parts[-1] else "conv")
  return ".".join([*parts, "bias" if leaf == "bias" else "weight"])


def check_keys(config: BSQConfig, shapes: Shapes) -> dict[str, str]:
  """Returns the public key of each of our parameters, each used once.

  Args:
    config: from `recognise`.
    shapes: of the checkpoint.
  Raises:
    ValueError: names every key that is missing, unexpected or of another shape.
  """
  wanted = {}
  for name, leaf in flatten(abstract_params(config)).items():
    shape = tuple(leaf.shape)
    wanted[public_key(name)] = (name, (*shape[:2:-1], *shape[1:3]) if len(shape) == 5 else shape)
  wrong = [f"missing {key} {shape}" for key, (_, shape) in wanted.items() if key not in shapes]
  for key, shape in shapes.items():
    if key in wanted and tuple(shape) != wanted[key][1]:
      wrong.append(f"mis-shaped {key} {tuple(shape)}, needs {wanted[key][1]}")
    elif key not in wanted and key not in NOT_NEEDED:
      wrong.append(f"unexpected {key} {tuple(shape)}")
  if wrong:
    raise ValueError(
      f"it looks like a tokenizer of {summary(config)}, but {len(wrong)} keys are wrong: "
      f"{'; '.join(wrong)}"
    )
  return {name: key for key, (name, _) in wanted.items()}


def import_params(tensors: Mapping[str, np.ndarray]) -> tuple[BSQConfig, dict]:
  """Returns the settings and the parameters, float32, of a public checkpoint.

  Raises:
    ValueError: keys, shapes or values are not those of the public network.
  """
  shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
  config = recognise(shapes)
  names, params = check_keys(config, shapes), {}
  for name, key in names.items():
    if not jnp.issubdtype(tensors[key].dtype, jnp.floating):
      raise ValueError(f"{key} is of type {tensors[key].dtype}; weights are floating-point numbers")
    value = np.asarray(tensors[key], np.float32)
    if not np.isfinite(value).all():
      raise ValueError(f"{key} holds values that are not finite")
    params[name] = _inflated(value) if value.ndim == 4 else value
  return config, unflatten(params)


def _inflated(weight: np.ndarray) -> np.ndarray:
  """Maps `[out, in, kh, kw]` to `[kt, kh, kw, in, out]`, with the image kernel as last slice."""
  image = weight.transpose(2, 3, 1, 0)
  kernel = np.zeros((image.shape[0], *image.shape), np.float32)
  kernel[-1] = image
  return kernel


def _count(keys: Iterable[str], pattern: str) -> int:
  found = [re.match(pattern, key) for key in keys]
  return max((int(match[1]) + 1 for match in found if match), default=0)


def _most_common(values: Iterable[int]) -> int | None:
  counted = collections.Counter(values).most_common(1)
  return counted[0][0] if counted else None


def _first_keys(shapes: Shapes) -> str:
  keys = sorted(shapes)
  return f"its {len(keys)} keys begin with {', '.join(keys[:3])}" if keys else "it is empty"


def summary(config: BSQConfig) -> str:
  """Describes a network's size."""
  return (
    f"{config.num_bits} bits, stride {config.spatial_stride}, base {config.base_channels}, "
    f"multipliers {list(config.multipliers)}, {config.num_encoder_blocks} and "
    f"{config.num_decoder_blocks} blocks a level"
  )
