"""A tiny InfinityStar, which compiles fast."""

import dataclasses

import jax
import numpy as np
from flax import nnx
from tiny_encoders import T5, write_encoder

from videoar_jax.converters.models import model_settings
from videoar_jax.experiment import model_folder
from videoar_jax.models.infinity_star.config import InfinityStarConfig
from videoar_jax.models.infinity_star.network import InfinityStar, template_of
from videoar_jax.tokenizers import files
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.star.config import StarConfig
from videoar_jax.tokenizers.star.network import abstract_params
from videoar_jax.train.state import flatten

CONFIG = InfinityStarConfig(
  num_layers=2,
  d_model=16,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_dim=16,
  remat="none",
  schedule="1 2 4",
  image_repetitions=(1, 2, 2),
  clip_repetitions=(2, 1, 1),
  min_detail_tokens=4,
  clip_length=2,
  num_channels=6,
  semantic_bits=3,
  vocabulary_size=30,
  text_length=6,
)
# A quantizer's clips do not care which autoencoder makes the latents.
AUTOENCODER = BSQConfig(
  num_bits=6, patch_size=4, base_channels=4, multipliers=(1, 1), strides=((2, 1),), num_groups=1
)


def make_net(config=CONFIG, noise=0.3) -> InfinityStar:
  """A network with only random parameters."""
  leaves, tree = jax.tree.flatten(InfinityStar(nnx.Rngs(params=0), config))
  keys = jax.random.split(jax.random.key(9), len(leaves))
  drawn = [x + noise * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(tree, drawn)


# Of a model's folder: 9 frames of 32x32 pixels, 4 a second.
TOKENIZER = StarConfig(widths=(4, 8, 8, 4, 4), num_blocks=1, z_channels=2)
SHAPE = {"num_frames": 9, "resolution": (32, 32), "frame_rate": 4.0}
MODEL = dataclasses.replace(
  CONFIG,
  schedule="",
  image_repetitions=(),
  clip_repetitions=(),
  clip_length=1,
  num_channels=8,
  semantic_bits=4,
  vocabulary_size=0,
  text_dim=T5["d_model"],
  text_length=16,
)


def write_tokenizer(folder):
  """Writes a converted tokenizer with random weights; returns its folder."""
  generator = np.random.default_rng(0)

  def draw(leaf):
    fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 10
    return generator.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

  params = jax.tree.map(draw, abstract_params(TOKENIZER))
  files.save_tokenizer(folder, files.Saved("star", TOKENIZER, "random"), params)
  return folder


def write_model(folder, scratch):
  """Writes a model's folder with random weights, as `convert` does; returns it."""
  generator, settings = np.random.default_rng(1), model_settings("infinity_star", MODEL)
  settings.data.update(SHAPE)
  settings.text.length = MODEL.text_length
  params = {
    name: np.float32(generator.normal(0, 0.02, leaf.shape) + name.endswith(".scale"))
    for name, leaf in flatten(template_of(MODEL).shapes).items()
  }
  weights = model_folder.Weights({k: (x.shape, x.dtype) for k, x in params.items()}, params.get)
  parts = model_folder.text_encoder_parts(write_encoder(scratch / "t5"))
  parts[model_folder.TOKENIZER] = write_tokenizer(scratch / "tokenizer")
  model_folder.write(folder, settings.to_dict(), "random", weights, parts)
  return folder
