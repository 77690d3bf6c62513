"""Initializes a video tokenizer from an image tokenizer.

The last temporal slice of every kernel is the image kernel, also in the convolutions that halve or
double time; where channels are unfolded to several frames, each frame's are the image's. Time is
padded with zeros in front, so the first frame is always coded as the image
network codes it; if the other slices start at zero, so is every frame.

Source: VIDEOAR section 2.2.
"""

import dataclasses

import jax
import jax.numpy as jnp

from videoar_jax.nn import layers
from videoar_jax.nn.conv import image_start
from videoar_jax.tokenizers.autoencoder import abstract_params
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.train.state import flatten, unflatten

# Convolutions next to the latent, with one channel per bit.
_BIT_WIDE = ("encoder.conv_out", "decoder.conv_in")


def check_inflatable(image: BSQConfig, video: BSQConfig) -> None:
  """Checks that one network can initialize the other; bits and temporal strides may differ.

  Raises:
    ValueError: names every field that differs.
  """
  ours, theirs = _fixed_fields(video), _fixed_fields(image)
  wrong = [
    f"tokenizer.{name}={ours[name]!r}, but {theirs[name]!r} in the image tokenizer"
    for name in ours
    if ours[name] != theirs[name]
  ]
  if wrong:
    raise ValueError(
      f"the image tokenizer has other settings: {'; '.join(wrong)}. Set the fields to its values"
    )


def inflate(
  params: dict, image: BSQConfig, video: BSQConfig, temporal: str, key: jax.Array
) -> tuple[dict, list[str]]:
  """Makes a video tokenizer's parameters from an image tokenizer's.

  Args:
    params: the image tokenizer's.
    image: its settings.
    video: settings of the network to initialize.
    temporal: "zeros" or "random", initial kernel slices of earlier frames.
    key: random key.
  Returns:
    (parameters, names of those that are random because the number of bits differs).
  Raises:
    ValueError: the networks differ in more than bits and temporal strides.
  """
  check_inflatable(image, video)
  old, new, fresh = flatten(params), {}, []
  for i, (name, leaf) in enumerate(flatten(abstract_params(video)).items()):
    keys = jax.random.split(jax.random.fold_in(key, i))
    if image.num_bits != video.num_bits and name.startswith(_BIT_WIDE):
      fresh.append(name)
      start = layers.zeros if name.endswith("bias") else image_start()
      value = start(keys[0], leaf.shape)
    else:
      # Subpixels of further frames start as those of the image.
      value = jnp.asarray(old[name])
      value = jnp.tile(value, leaf.shape[-1] // value.shape[-1])
    if value.ndim == 5:
      earlier = jnp.zeros_like(value[:-1])
      if temporal == "random":
        earlier = layers.fan_in(value.shape)(keys[1], earlier.shape)
      value = jnp.concatenate([earlier, value[-1:]])
    new[name] = value
  return unflatten(new), fresh


def _fixed_fields(config: BSQConfig) -> dict:
  """Returns the settings that must match: all but bits, scales and temporal strides."""
  values = dataclasses.asdict(config)
  del values["num_bits"], values["schedule"]
  values["strides"] = tuple(("any", space) for _, space in config.strides)
  return values
