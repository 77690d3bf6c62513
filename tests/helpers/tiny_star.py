"""A tiny InfinityStar, which compiles fast."""

import jax
from flax import nnx

from videoar_jax.models.infinity_star.config import InfinityStarConfig
from videoar_jax.models.infinity_star.network import InfinityStar
from videoar_jax.tokenizers.bsq.config import BSQConfig

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
