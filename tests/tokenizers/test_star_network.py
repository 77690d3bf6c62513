"""InfinityStar's video autoencoder: reference numbers, causality and streaming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import star_golden as golden
from safetensors.numpy import load_file

from videoar_jax.tokenizers.star import convert
from videoar_jax.tokenizers.star.network import autoencoder_of


@pytest.fixture(scope="module")
def narrow():
  """The reference network."""
  config, params = convert.import_params(load_file(golden.FOLDER / "f_star_vae_narrow.safetensors"))
  return autoencoder_of(config, jax.tree.map(jnp.asarray, params))


@pytest.mark.golden
@pytest.mark.parametrize("name", golden.cases("f_star_vae_*.npz"))
def test_latents_and_pixels_are_the_public_ones(narrow, name):
  arrays = np.load(golden.FOLDER / name)
  posterior = jax.jit(lambda net, x: net.encoder.posterior_chunk(x)[0])(
    narrow, golden.channels_last(arrays["x"])
  )
  mean = golden.channels_last(arrays["mean_patchified"])
  assert golden.error(posterior.mean, mean) < 5e-5
  latents = golden.channels_last(arrays["z_from_mean"])
  assert golden.error(narrow.encoder.latents_of(posterior), latents) < 5e-5
  video = jax.jit(lambda net, z: net.decoder(z))(narrow, latents)
  assert golden.error(video, golden.channels_last(arrays["recon"])) < 5e-5
