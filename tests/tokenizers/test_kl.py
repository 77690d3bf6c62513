"""The continuous tokenizer: latents, loss and streaming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.kl.config import KLConfig
from videoar_jax.tokenizers.kl.task import KLLossConfig, KLTask, Posterior

CONFIG = KLConfig(
  num_channels=3,
  base_channels=4,
  multipliers=(1, 1),
  num_encoder_blocks=1,
  num_decoder_blocks=1,
  num_mid_blocks=1,
  strides=((2, 2),),
  num_groups=2,
)


@pytest.fixture(scope="module")
def module():
  return jax.jit(TOKENIZERS["kl"].make_module(CONFIG))(jax.random.key(0))


def test_latents_are_the_means_and_the_same_in_chunks(module):
  tokenizer = TOKENIZERS["kl"].make_tokenizer(module)
  video = jax.random.uniform(jax.random.key(1), (2, 5, 8, 8, 3), minval=-1.0)
  latents = tokenizer.encode(video)
  assert latents.shape == (2, 3, 4, 4, 3)
  np.testing.assert_allclose(latents, module.encoder(video)[..., :3], atol=1e-5)
  np.testing.assert_allclose(tokenizer.encode(video, chunk=1), latents, atol=1e-5)
  whole = tokenizer.decode(latents)
  assert whole.shape == video.shape
  np.testing.assert_allclose(tokenizer.decode(latents, chunk=1), whole, atol=1e-5)


def test_divergence_is_that_of_normal_distributions():
  rng = np.random.default_rng(0)
  mean, deviation = rng.normal(size=(1, 2, 2, 2, 3)), rng.uniform(0.2, 2.0, (1, 2, 2, 2, 3))
  task = KLTask(CONFIG, KLLossConfig(kl=0.5), frozen={})
  posterior = Posterior(*(jnp.asarray(x, jnp.float32) for x in (mean, 2 * np.log(deviation))))
  loss, metrics = task.regularisation(posterior)
  # By integration of p log(p / q), for each channel.
  x = np.linspace(-15, 15, 20_001)
  p = np.exp(-(((x - mean[..., None]) / deviation[..., None]) ** 2) / 2)
  p /= deviation[..., None] * np.sqrt(2 * np.pi)
  log_q = -(x**2) / 2 - np.log(2 * np.pi) / 2
  inner = np.where(p > 1e-300, p * (np.log(np.maximum(p, 1e-300)) - log_q), 0.0)
  expected = np.trapezoid(inner, x, axis=-1).mean()
  np.testing.assert_allclose(metrics["kl"], expected, rtol=1e-4)
  np.testing.assert_allclose(loss, 0.5 * expected, rtol=1e-4)


def test_training_draws_from_the_posterior_and_evaluation_does_not(module):
  task = KLTask(CONFIG, KLLossConfig(), frozen={})
  video = jnp.zeros((2, 1, 8, 8, 3))
  mean, posterior = task.code(module, video, jax.random.key(2), is_training=False)
  np.testing.assert_array_equal(mean, posterior.mean)
  keys = jax.random.split(jax.random.key(3), 400)
  drawn = jax.jit(jax.vmap(lambda key: task.code(module, video, key, is_training=True)[0]))(keys)
  deviation = np.exp(0.5 * np.asarray(posterior.log_variance))
  error = np.abs(drawn.mean(0) - mean) / (deviation / 20)
  assert error.max() < 5
  np.testing.assert_allclose(drawn.std(0) / deviation, 1.0, atol=0.2)


def test_wrong_settings_are_named():
  with pytest.raises(ValueError, match=r"tokenizer\.num_channels=0"):
    KLConfig(num_channels=0)
  with pytest.raises(ValueError, match="kl=-1"):
    KLLossConfig(kl=-1.0)
