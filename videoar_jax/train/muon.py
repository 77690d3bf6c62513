"""Muon for kernels of any number of axes, faster than Optax's where matrices are tall.

Optax iterates on the matrix itself. Every iterate is a polynomial of the Gram matrix times the
matrix, so for a matrix much taller than wide, such as a convolution's, it is cheaper to iterate on
small square matrices and to multiply the tall one once. In exact arithmetic the result is the same.
Rounding makes small eigenvalues of the Gram matrix negative, and these grow with each step: so it
is done in full precision on every device, and for the usual number of steps only.

Source: K. Jordan, Muon: an optimizer for hidden layers (2024).
"""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_TALL = 2  # From this ratio of sides, iterating on the Gram matrix takes fewer operations.
_MAX_STEPS = 5  # Of iterations on the Gram matrix.


def orthogonalize(x: Float[Array, "*b n m"], num_steps: int) -> Float[Array, "*b n m"]:
  """Moves the singular values of matrices towards 1, by Newton-Schulz iterations.

  Args:
    x: matrices.
    num_steps: iterations.
  """
  if x.shape[-2] > x.shape[-1]:
    return orthogonalize(x.mT, num_steps).mT
  x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8)
  a, b, c = _COEFFICIENTS
  identity = jnp.eye(x.shape[-2], dtype=x.dtype)
  if x.shape[-1] < _TALL * x.shape[-2] or num_steps > _MAX_STEPS:
    for _ in range(num_steps):
      gram = x @ x.mT
      x = (a * identity + b * gram + c * gram @ gram) @ x
    return x
  with jax.default_matmul_precision("highest"):
    gram, polynomial = x @ x.mT, identity
    for _ in range(num_steps):
      factor = a * identity + b * gram + c * gram @ gram
      polynomial = factor @ polynomial
      gram = gram @ (factor @ factor)  # Polynomials of one matrix commute.
      gram = (gram + gram.mT) / 2
    return polynomial @ x


def scale_by_muon(axes: dict, num_steps: int, beta: float = 0.95) -> optax.GradientTransformation:
  """Replaces gradients of kernels by their orthogonalized Nesterov momentum.

  A kernel is a matrix of its last axis and of all others together; stacked layers have a matrix
  each.

  Args:
    axes: logical names of each kernel's axes; more axes before them are stacked layers.
    num_steps: Newton-Schulz iterations.
    beta: decay of the momentum.
  """

  def init(params):
    # Optax's state, so that checkpoints of its Muon load.
    return optax.contrib.MuonState(
      jnp.zeros([], jnp.int32), optax.tree.zeros_like(params), jnp.asarray(_COEFFICIENTS)
    )

  def update(gradients, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    momentum = optax.tree.update_moment(gradients, state.mu, beta, 1)
    ahead = optax.tree.bias_correction(momentum, beta, optax.safe_increment(count))
    unbiased = optax.tree.bias_correction(gradients, beta, count)
    nesterov = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, ahead, unbiased)

    def kernel(x, names):
      if isinstance(x, optax.MaskedNode):
        return x
      num_stacked = x.ndim - len(names)
      matrix = x.reshape(*x.shape[:num_stacked], -1, x.shape[-1])
      scale = math.sqrt(max(1, matrix.shape[-1] / matrix.shape[-2]))
      return scale * orthogonalize(matrix, num_steps).reshape(x.shape)

    updates = jax.tree.map(
      kernel, nesterov, axes, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )
    return updates, optax.contrib.MuonState(count, momentum, state.ns_coeffs)

  return optax.GradientTransformation(init, update)
