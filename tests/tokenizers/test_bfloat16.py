"""Tokenizers of every family whose weights are bfloat16 compute in it, with float32 results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import DEEP_AUTOENCODER

from videoar_jax.tokenizers.decoding import decode
from videoar_jax.tokenizers.encoding import encode
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.kl.config import KLConfig
from videoar_jax.tokenizers.kl.layouts import ImageKLConfig, OpenSoraConfig
from videoar_jax.tokenizers.pixels import to_uint8
from videoar_jax.tokenizers.star.config import StarConfig

PUBLIC = {"block_channels": (2, 2, 4, 4), "num_blocks": 1, "num_groups": 2, "num_channels": 3}
SMALL = {"base_channels": 4, "multipliers": (1, 1), "strides": ((2, 2),), "num_groups": 2}
BLOCKS = {"num_encoder_blocks": 1, "num_decoder_blocks": 1, "num_mid_blocks": 1}
CONFIGS = {
  "bsq": DEEP_AUTOENCODER,
  "kl": KLConfig(num_channels=3, **SMALL, **BLOCKS),
  "kl_image": ImageKLConfig(**PUBLIC),
  "kl_opensora": OpenSoraConfig(**PUBLIC),
  "star": StarConfig(widths=(4, 8, 8, 4, 4), num_blocks=1, z_channels=2),
}


def draw(x, rng):
  """Returns random weights, also where new networks have zeros."""
  if x.ndim == 1:
    return jnp.asarray(x + rng.normal(size=x.shape) / 8, jnp.float32)
  return jnp.asarray(rng.normal(size=x.shape) / np.sqrt(np.prod(x.shape[:-1])), jnp.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_they_code_nearly_what_float32_does(name):
  assert set(CONFIGS) == set(TOKENIZERS)
  family, config, rng = TOKENIZERS[name], CONFIGS[name], np.random.default_rng(0)
  made = jax.jit(family.make_module(config))(jax.random.key(0))
  whole = jax.tree.map(lambda x: draw(x, rng), made)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), whole)
  video = rng.integers(0, 256, (1, 5, 16, 16, 3), np.uint8)
  encoded = [jax.jit(encode)(module.encoder, video) for module in (half, whole)]
  latents = config.latents_of(encoded[1])
  shown = [jax.jit(decode)(module.decoder, latents) for module in (half, whole)]
  assert {x.dtype for x in encoded} == {jnp.dtype(np.float32)}
  assert 1e-4 < relative_error(*encoded) < 0.05
  assert shown[0].dtype == np.uint8
  assert 0 < np.abs(np.int32(shown[0]) - np.int32(shown[1])).max() < 24
  coders = (encode, half.encoder, video), (decode, half.decoder, latents)
  for code, network, x in coders:
    assert convolved_in(lambda network, x, code=code: code(network, x), network, x) == {"bfloat16"}
  tokenizer = family.make_tokenizer(half)
  pixels = video / np.float32(127.5) - 1
  assert relative_error(tokenizer.encode(pixels), latents) < 0.05
  assert tokenizer.decode(latents).dtype == np.float32


def is_jaxpr(x):
  return hasattr(x, "eqns")


def convolved_in(code, *arguments):
  """Returns the types of all operands of convolutions and products."""
  found, jaxprs = set(), [jax.make_jaxpr(code)(*arguments).jaxpr]
  while jaxprs:
    for eqn in jaxprs.pop().eqns:
      if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
        found |= {x.aval.dtype.name for x in eqn.invars}
      inner = [x for value in eqn.params.values() for x in jax.tree.leaves(value, is_leaf=is_jaxpr)]
      jaxprs += [getattr(x, "jaxpr", x) for x in inner if is_jaxpr(x)]
  return found


def test_pixels_are_rounded_in_float32():
  values = jnp.linspace(-1.1, 1.1, 5000).astype(jnp.bfloat16)
  np.testing.assert_array_equal(to_uint8(values), to_uint8(values.astype(jnp.float32)))
  assert len(np.unique(to_uint8(values))) > 200


def relative_error(found, expected):
  assert found.dtype == np.float32 and found.shape == expected.shape
  return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


@pytest.mark.parametrize("name", ["bsq", "star"])
def test_a_frame_at_a_time_is_the_whole(name):
  """States are of that type, too."""
  rng = np.random.default_rng(1)
  made = jax.jit(TOKENIZERS[name].make_module(CONFIGS[name]))(jax.random.key(0))
  half = jax.tree.map(lambda x: draw(x, rng).astype(jnp.bfloat16), made)
  video = rng.integers(0, 256, (2, 9, 16, 16, 3), np.uint8)
  whole, parts = (
    jax.jit(encode, static_argnums=2)(half.encoder, video, size) for size in (10**6, 1)
  )
  assert relative_error(parts, whole) < 0.02
  tokenizer = TOKENIZERS[name].make_tokenizer(half)
  pixels = video / np.float32(127.5) - 1
  first, state = tokenizer.encode_chunk(pixels[:, :1])
  later, _ = tokenizer.encode_chunk(pixels[:, 1:], state)
  assert relative_error(jnp.concatenate([first, later], 1), tokenizer.encode(pixels)) < 0.02
  assert {x.dtype.name for x in jax.tree.leaves(state)} == {"bfloat16"}
  state = jax.tree.map(lambda x: x.astype(jnp.float32), state)
  with pytest.raises(ValueError, match="is of a tokenizer in float32, this one computes in bfl"):
    tokenizer.encode_chunk(pixels[:, 1:], state)
