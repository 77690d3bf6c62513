"""Layers: products in bfloat16, which take another path on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videoar_jax.nn import layers


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("has_float32_result", [False, True])
def test_a_product_in_bfloat16_is_that_of_float32_rounded(has_float32_result, lora_rank):
  linear = layers.Linear(
    nnx.Rngs(0), 24, 40, (None, None), use_bias=True, lora_rank=lora_rank, init=layers.normal(0.2)
  )
  if lora_rank:
    linear.lora_up[...] = jax.random.normal(jax.random.key(3), (2, 40))
  x = jax.random.normal(jax.random.key(1), (2, 3, 24)).astype(jnp.bfloat16)
  weights = jax.random.normal(jax.random.key(2), (2, 3, 40))

  def loss(linear, x):
    y = linear(x, has_float32_result=has_float32_result)
    return jnp.sum(y.astype(jnp.float32) * weights), y

  gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
  (by_linear, by_x), y = gradient(linear, x)
  # The same numbers, not rounded in between.
  exact = jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), linear)
  (exact_by_linear, exact_by_x), exact_y = gradient(exact, x.astype(jnp.float32))
  assert y.shape == (2, 3, 40) and y.dtype == (jnp.float32 if has_float32_result else jnp.bfloat16)
  assert by_x.dtype == jnp.bfloat16
  found = jax.tree.leaves((y, by_x, by_linear))
  expected = jax.tree.leaves((exact_y, exact_by_x, exact_by_linear))
  for one, other in zip(found, expected, strict=True):
    one = np.asarray(one, np.float32)
    assert np.abs(one - other).max() < 0.02 * np.abs(other).max()
    assert np.any(other)


def test_products_on_cpu_have_float32_results():
  """Others convert bfloat16 to float32, and take twice as long."""
  linear = layers.Linear(nnx.Rngs(0), 8, 16, (None, None))

  def loss(linear, x):
    return jnp.sum(linear(x).astype(jnp.float32) ** 2)

  x = jnp.ones((2, 3, 8), jnp.bfloat16)
  program = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(linear, x))
  assert program.count("dot_general") == program.count("preferred_element_type=float32") == 3
