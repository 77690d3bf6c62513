"""Public continuous autoencoders: tiny ones with random weights, and reference ones."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from nova_golden import FOLDER
from safetensors.numpy import load_file

from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.kl import convert
from videoar_jax.train.state import Template, flatten, unflatten

CLASSES = {"vae2d": "AutoencoderKL", "vae3d": "AutoencoderKLOpenSora"}


def module_of(family: str, config, params: dict):
  """Returns a network with given parameters."""
  template = Template.of(TOKENIZERS[family].make_module(config))
  return template.module(jax.tree.map(jnp.asarray, params))


def random_params(family: str, config) -> dict:
  """Returns random parameters, of which none are zeros."""
  generator = np.random.default_rng(0)
  shapes = flatten(Template.of(TOKENIZERS[family].make_module(config)).shapes)

  def draw(shape):
    fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 10
    return generator.normal(0, fan_in**-0.5, shape).astype(np.float32)

  return unflatten({name: draw(leaf.shape) for name, leaf in shapes.items()})


def public_tensors(config, params: dict) -> dict[str, np.ndarray]:
  """Returns parameters as a public checkpoint has them."""
  tensors = {}
  for name, value in flatten(params).items():
    if value.ndim == 5:
      value = np.moveaxis(value, (-1, -2), (0, 1))
      value = value[:, :, 0] if convert._is_flat(config, name) else value
    tensors[convert.public_key(name)] = np.ascontiguousarray(value.T if value.ndim == 2 else value)
  return tensors


def golden_values(name: str) -> dict:
  """Returns what the config.json of a reference network would hold, from its shapes."""
  tensors = load_file(weights_of(name))
  count = len({key.split(".")[2] for key in tensors if key.startswith("encoder.down_blocks.")})
  first = "encoder.down_blocks.{}.resnets.0.conv1.bias"
  blocks = {key.split(".")[4] for key in tensors if "encoder.down_blocks.0.resnets" in key}
  arrays = np.load(FOLDER / name)
  scaling = 0.18215
  if "scaled_mean" in arrays:
    scaling = float(np.median(arrays["scaled_mean"] / arrays["mean"]).round(6))
  return {
    "_class_name": CLASSES[name[:5]],
    "block_out_channels": [len(tensors[first.format(i)]) for i in range(count)],
    "layers_per_block": len(blocks),
    "latent_channels": len(tensors["post_quant_conv.bias"]),
    "scaling_factor": scaling,
  }


def weights_of(name: str) -> pathlib.Path:
  """Returns the weights of a reference case: those of its own name, or of its kind."""
  own = FOLDER / name.replace(".npz", ".safetensors")
  return own if own.is_file() else FOLDER / f"{name[:5]}.safetensors"


def clips(array) -> np.ndarray:
  """Returns clips `[b, t, h, w, c]` of public ones, `[b, c, t, h, w]` or `[b, c, h, w]`."""
  array = np.moveaxis(array, 1, -1)
  return array if array.ndim == 5 else array[:, None]
