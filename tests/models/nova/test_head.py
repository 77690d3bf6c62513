"""The diffusion head with what noisy tokens say of the velocity by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.head import Head, linear_velocity

CONFIG = {
  "d_model": 16,
  "num_heads": 2,
  "head_mlp_dim": 16,
  "num_head_layers": 2,
  "noise": "flow",
  "has_noise_skip": True,
}


def test_velocity_of_tokens_of_variance_one_is_predicted_as_well_as_linearly_possible():
  rng = np.random.default_rng(0)
  tokens, noise = rng.standard_normal((2, 100_000))
  for sigma in (0.02, 0.4, 0.5, 0.98):
    noisy = (1 - sigma) * tokens + sigma * noise
    velocity = noise - tokens
    skip, scale = linear_velocity(jnp.float32(sigma))
    assert skip == pytest.approx(noisy @ velocity / (noisy @ noisy), abs=0.02)
    assert scale == pytest.approx(np.std(velocity - float(skip) * noisy), rel=0.02)


def test_the_head_adds_to_what_noisy_tokens_say():
  head = Head(nnx.Rngs(0), NovaConfig(**CONFIG))
  keys = jax.random.split(jax.random.key(1), 2)
  noisy = jax.random.normal(keys[0], (2, 3, head.config.token_width))
  z = jax.random.normal(keys[1], (2, 3, 16))
  condition = head.condition(z)
  time = jnp.array([[900.0], [40.0]])
  made = head.predict(noisy, time, condition)
  # In sampling, all tokens have one level.
  for row, level in enumerate((900.0, 40.0)):
    factors = head.factors(jnp.float32(level), condition)
    own = head.predict_with(noisy, jnp.float32(level), factors)[row]
    np.testing.assert_allclose(own, made[row], rtol=1e-4, atol=1e-5)
  head.out.kernel[...] *= 0
  head.out.bias[...] *= 0
  skip, _ = linear_velocity(time / 1000)
  np.testing.assert_allclose(
    head.predict(noisy, time, condition), skip[..., None] * noisy, rtol=1e-5
  )


def test_only_flows_have_it():
  with pytest.raises(ValueError, match="has_noise_skip is of noise='flow'; noise is 'ddpm'"):
    NovaConfig(**CONFIG | {"noise": "ddpm"})
