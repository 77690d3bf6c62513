"""The public continuous autoencoders against reference numbers of the public code."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import nova_golden as golden
import numpy as np
import pytest
from public_kl import clips, golden_values, module_of, weights_of
from safetensors.numpy import load_file

from videoar_jax.tokenizers.kl import convert
from videoar_jax.tokenizers.kl.posterior import posterior_of

pytestmark = pytest.mark.golden
FORWARD = 2e-5  # Largest error over largest value.


def load(name, **changes):
  family, config = convert.config_of(golden_values(name))
  params = convert.import_params(load_file(weights_of(name)), config)
  return module_of(family, dataclasses.replace(config, **changes), params)


def encode(module, video):
  return jax.jit(lambda module, x: module.encoder(x))(module, jnp.asarray(video))


def decode(module, latents):
  """Decodes unscaled latents."""
  scaled = (latents - module.config.shift_factor) * module.config.scaling_factor
  return jax.jit(lambda module, x: module.decoder(x))(module, jnp.asarray(scaled))


@pytest.mark.parametrize("name", golden.cases("vae2d*.npz"))
def test_image_autoencoder(name):
  arrays, module = np.load(golden.FOLDER / name), load(name)
  moments = encode(module, clips(arrays["x"]))
  assert golden.error(moments, clips(arrays["moments"])) < FORWARD
  mean, log_variance = posterior_of(moments)
  assert golden.error(mean, clips(arrays["mean"])) < FORWARD
  assert golden.error(jnp.exp(0.5 * log_variance), clips(arrays["std"])) < FORWARD
  latents = module.config.latents_of(moments)
  assert golden.error(latents, clips(arrays["scaled_mean"])) < FORWARD
  assert golden.error(decode(module, clips(arrays["mean"])), clips(arrays["decoded"])) < FORWARD


@pytest.mark.parametrize("name", golden.cases("vae3d*.npz"))
def test_video_autoencoder_in_tiles(name):
  arrays, module = np.load(golden.FOLDER / name), load(name, tiling=True)
  for key in arrays.files:
    if key.startswith("x"):
      end = key.removeprefix("x").replace("img", "_img")
      moments = encode(module, clips(arrays[key]))
      assert golden.error(moments, clips(arrays[f"moments{end}"])) < FORWARD, key
      if f"decoded{end}" in arrays.files:
        mean = clips(arrays[f"moments{end}"])[..., : module.config.num_channels]
        assert golden.error(decode(module, mean), clips(arrays[f"decoded{end}"])) < FORWARD, key
    if key.startswith("z"):
      # As in the public code, the incomplete last tile is dropped.
      found = decode(module, clips(arrays[key]))
      assert golden.error(found, clips(arrays[f"decoded_{key}"])) < FORWARD, key


@pytest.mark.parametrize("name", golden.cases("vae_full_shapes.json"))
def test_every_public_key_is_known(name):
  for title, shapes in json.loads((golden.FOLDER / name).read_text()).items():
    first = "encoder.down_blocks.{}.resnets.0.conv1.bias"
    values = {
      "_class_name": title.split("_", maxsplit=1)[0],
      "block_out_channels": [shapes[first.format(i)][0] for i in range(4)],
      "layers_per_block": 2,
      "latent_channels": shapes["post_quant_conv.bias"][0],
    }
    _, config = convert.config_of(values)
    views = {key: np.broadcast_to(np.float32(1), shape) for key, shape in shapes.items()}
    convert.import_params(views, config)
