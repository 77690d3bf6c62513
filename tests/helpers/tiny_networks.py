"""Configs, layouts and inputs of tiny networks, which many tests share."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from videoar_jax.models.videoar import corruption
from videoar_jax.models.videoar.config import GeneratorConfig
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.tokenizers.bsq.config import BSQConfig

LAYOUT = Layout(text_length=5, num_frames=3, schedule=((1, 1), (2, 2), (3, 4)))
LAYOUTS = (
  LAYOUT,
  dataclasses.replace(LAYOUT, context="full_frame"),
  dataclasses.replace(
    LAYOUT, context="full_frame", prev_frame_input="all_scales", rope_grid="latent"
  ),
)
NAMES = ("scales", "full_frame", "full_frame-all-latent")  # Of the layouts.
GENERATOR = GeneratorConfig(
  num_layers=2,
  d_model=32,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  mlp_dim=48,
  num_bits=6,
  vocabulary_size=11,
)
TEXT = jnp.array([[3, 4, 5, 6, 1], [7, 1, 0, 0, 0]])
NULL = jnp.array([1, 0, 0, 0, 0])

AUTOENCODER = BSQConfig(
  num_bits=4,
  base_channels=4,
  multipliers=(1, 2),
  num_encoder_blocks=1,
  num_decoder_blocks=1,
  num_mid_blocks=1,
  strides=((2, 2),),
  num_groups=2,
)
# The second stride is of time only.
DEEP_AUTOENCODER = dataclasses.replace(
  AUTOENCODER, num_bits=6, multipliers=(1, 2, 2), strides=((2, 2), (2, 1)), patch_size=2
)


def make_model(config=GENERATOR, layout=LAYOUT, noise=0.2):
  """A model with only random parameters, the zero-initialised head included."""
  leaves, tree = jax.tree.flatten(Generator(nnx.Rngs(params=0), config, layout))
  keys = jax.random.split(jax.random.key(9), len(leaves))
  drawn = [x + noise * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(tree, drawn)


def make_batch(layout):
  """Two random clips, as the transformer's inputs and targets."""
  latents = jax.random.normal(jax.random.key(1), (2, 3, 3, 4, 6))
  return corruption.corrupt(latents, layout.schedule, prev_frame_input=layout.prev_frame_input)


def forward(model, batch, **settings):
  return model(TEXT, batch.features, LAYOUT, **settings)
