"""NOVA's network: temporal encoder, spatial encoder and decoder, diffusion head.

Source: arXiv 2412.14169.
"""

from flax import nnx

from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.head import Head
from videoar_jax.models.nova.spatial import SpatialTransformer
from videoar_jax.models.nova.temporal import TemporalEncoder
from videoar_jax.train.state import Template


class Nova(nnx.Module):
  """The whole network; its parts are called one by one: sampling runs them unequally often."""

  def __init__(self, rngs: nnx.Rngs, config: NovaConfig):
    self.config = config
    self.temporal = TemporalEncoder(rngs, config)
    self.spatial = SpatialTransformer(rngs, config)
    self.head = Head(rngs, config)


def template_of(config: NovaConfig) -> Template:
  """Returns the network's structure, without computing its parameters."""
  return Template.of(lambda key: Nova(nnx.Rngs(params=key), config))


def network_of(config: NovaConfig, params: dict) -> Nova:
  """Returns the network with given parameters."""
  return template_of(config).module(params)
