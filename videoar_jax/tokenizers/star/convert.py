"""Imports InfinityStar's public video autoencoder: its keys, its sizes, its weights.

The public scale of the latents becomes part of the linear maps between convolutions and latents.

Source: INFINITY section 6.7.
"""

import itertools
import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from videoar_jax.tokenizers.star.config import STRIDES, StarConfig
from videoar_jax.tokenizers.star.network import abstract_params
from videoar_jax.train.state import flatten, unflatten

Shape = tuple[int, ...]

SCALE, _NUM_SCALES = "scale_learnable_parameters", 4
# Powers of two, under two names each; and maps for a second resolution, which no public code uses.
NOT_NEEDED = (
  "quantizer.lfq_semantic.mask",
  "quantizer.lfq_detail.mask",
  "quantize.lfq_semantic.mask",
  "quantize.lfq_detail.mask",
  "proj_down_two.weight",
  "proj_down_two.bias",
  "proj_up_two.weight",
  "proj_up_two.bias",
)


def config_of(shapes: Mapping[str, Shape]) -> StarConfig:
  """Returns the settings of the network that a checkpoint holds, from its shapes alone.

  Raises:
    ValueError: the keys are of no such network, or ours cannot represent it.
  """
  levels = [f"encoder.down_blocks.{level}.resnets.0.conv1.conv.bias" for level in range(4)]
  wanted = [*levels, "encoder.conv_out.conv.weight", "decoder.conv_in.conv.weight"]
  absent = [key for key in wanted if len(shapes.get(key, ())) != (1 if key in levels else 5)]
  if absent:
    keys = sorted(shapes)
    found = f"its {len(keys)} keys begin with {', '.join(keys[:3])}" if keys else "it is empty"
    raise ValueError(
      f"it holds no InfinityStar video autoencoder: there is no {', no '.join(absent)}; {found}"
    )
  *rest, encoded, decoded = (shapes[key] for key in wanted)
  blocks = [re.match(r"encoder\.down_blocks\.\d+\.resnets\.(\d+)\.", key) for key in shapes]
  return StarConfig(
    widths=(*(width for (width,) in rest), encoded[1]),
    num_blocks=max(int(match[1]) + 1 for match in blocks if match),
    z_channels=decoded[1],
  )


def public_key(name: str) -> str:
  """Returns the public key of one of our parameters, `encoder.down_0.block_1.conv1.kernel`."""
  *modules, leaf = name.split(".")
  weight = "bias" if leaf == "bias" else "weight"
  if modules[-1] == "proj":
    return f"proj_{'down' if modules[0] == 'encoder' else 'up'}.{weight}"
  parts: list[str] = []
  for before, module in itertools.pairwise(["", *modules]):
    kind, _, number = module.rpartition("_")
    if kind in ("down", "downsample"):
      parts += ["down_blocks", number]
    elif kind in ("up", "upsample"):
      # The public decoder counts its blocks from the latents on.
      parts += ["up_blocks", str(len(STRIDES) - 1 - int(number))]
    elif kind == "block":
      parts += ["resnets", number]
    elif module == "norm" and "sample" not in before:
      parts.append("norm_layer")
    else:
      parts.append({"mid": "mid_block", "scale": "conv_y", "shift": "conv_b"}.get(module, module))
    if kind.endswith("sample"):
      parts += [f"{kind}rs", "0", "conv"]
  # Each public convolution is wrapped in a module.
  return ".".join([*parts, "gamma"] if leaf == "scale" else [*parts, "conv", weight])


def public_shape(name: str, shape: Shape) -> Shape:
  """Returns the public shape of one of our parameters."""
  *modules, leaf = name.split(".")
  if leaf == "scale":
    return (*shape, 1, 1, 1)
  if leaf == "bias":
    return shape
  if modules[-1] == "proj":
    return shape[::-1]
  return (*shape[:-3:-1], *(shape[:-2] or (1, 1, 1)))


def check_keys(config: StarConfig, shapes: Mapping[str, Shape]) -> dict[str, str]:
  """Returns the public key of each of our parameters, each used once.

  Args:
    config: from `config_of`.
    shapes: of the checkpoint.
  Raises:
    ValueError: names every key that is missing, unexpected or of another shape.
  """
  names, wanted = {}, {SCALE: (_NUM_SCALES,)}
  for name, leaf in flatten(abstract_params(config)).items():
    names[name] = public_key(name)
    wanted[names[name]] = public_shape(name, tuple(leaf.shape))
  wrong = [f"missing {key} {shape}" for key, shape in wanted.items() if key not in shapes]
  for key, shape in shapes.items():
    if key in wanted and tuple(shape) != wanted[key]:
      wrong.append(f"mis-shaped {key} {tuple(shape)}, needs {wanted[key]}")
    elif key not in wanted and key not in NOT_NEEDED:
      wrong.append(f"unexpected {key} {tuple(shape)}")
  if wrong:
    raise ValueError(
      f"it looks like an autoencoder of {summary(config)}, but {len(wrong)} keys are wrong: "
      f"{'; '.join(wrong)}"
    )
  return names


def import_params(tensors: Mapping[str, np.ndarray]) -> tuple[StarConfig, dict]:
  """Returns the settings and the parameters, float32, of a public checkpoint.

  Args:
    tensors: by their public keys; each is looked up once, if it has the attribute `shapes`.
  Raises:
    ValueError: keys, shapes or values are not those of the public network.
  """
  shapes = getattr(tensors, "shapes", None)
  if shapes is None:
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
  config = config_of(shapes)
  params = {
    name: _ours(name, _read(tensors, key)) for name, key in check_keys(config, shapes).items()
  }
  scale = _read(tensors, SCALE)[0]
  if not scale > 0:
    raise ValueError(f"{SCALE} begins with {scale}; the scale of latents must be positive")
  for leaf in ("kernel", "bias"):
    params[f"encoder.proj.{leaf}"] = params[f"encoder.proj.{leaf}"] * scale
  params["decoder.proj.kernel"] = params["decoder.proj.kernel"] / scale
  return config, unflatten(params)


def _read(tensors: Mapping[str, np.ndarray], key: str) -> np.ndarray:
  tensor = tensors[key]
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise ValueError(f"{key} is of type {tensor.dtype}; weights are floating-point numbers")
  value = np.asarray(tensor, np.float32)
  if not np.isfinite(value).all():
    raise ValueError(f"{key} holds values that are not finite")
  return value


def _ours(name: str, value: np.ndarray) -> np.ndarray:
  """Returns a public tensor in our layout."""
  *modules, leaf = name.split(".")
  if leaf == "scale":
    return value.reshape(-1)
  if leaf == "bias":
    return value
  if value.ndim == 2 or modules[-1] in ("scale", "shift"):
    return value.reshape(value.shape[:2]).T
  return value.transpose(2, 3, 4, 1, 0)


def summary(config: StarConfig) -> str:
  """Describes a network's size."""
  return (
    f"{config.num_channels} channels, widths {list(config.widths)}, {config.num_blocks} blocks a "
    "level"
  )
