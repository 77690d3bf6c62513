"""The generator's loss: weights of scales and bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import GENERATOR, LAYOUT, TEXT

from videoar_jax.models.bits import cross_entropy
from videoar_jax.models.videoar import corruption
from videoar_jax.models.videoar.task import GeneratorLossConfig, GeneratorTask, cell_weights
from videoar_jax.nn.resize import area_resize, linear_resize
from videoar_jax.text.tokenizers import ByteTokenizer

LATENTS = jax.random.normal(jax.random.key(2), (2, 3, 3, 4, 6))


def loss(**settings):
  """Returns the loss of a fresh network, whose logits are all zero, and of one with a bias."""
  config = dataclasses.replace(GENERATOR, vocabulary_size=300)
  task = GeneratorTask(
    config, LAYOUT, GeneratorLossConfig(**settings), None, {}, ByteTokenizer(5), {}
  )
  module = task.init(jax.random.key(0))
  kernel = module.head.kernel
  kernel[...] = 0.3 * jax.random.normal(jax.random.key(1), kernel.shape)
  batch = {"text": TEXT, "latents": LATENTS}
  value = task.loss(module, {}, batch, jax.random.key(3), is_training=False)[0]
  inputs = corruption.corrupt(LATENTS, LAYOUT.schedule)
  labels = jnp.concatenate([bits.reshape(2, 3, -1, 6) for bits in inputs.labels], 2)
  return float(value), np.asarray(cross_entropy(module(TEXT, inputs.features, LAYOUT), labels))


def test_scales_are_weighted():
  value, each = loss()
  assert value == pytest.approx(each.mean(), rel=1e-5)
  value, each = loss(scale_weighting="sqrt")
  weights = np.repeat([1, 1 / 2, 12**-0.5], [1, 4, 12])
  expected = (each * (weights / weights.mean())[:, None]).mean()
  assert value == pytest.approx(expected, rel=1e-5)
  np.testing.assert_allclose(cell_weights(LAYOUT, "sqrt"), weights / weights.mean(), rtol=1e-5)


def test_bits_are_weighted_by_their_residuals():
  """By what each scale codes, relative to its mean over the clip, frame by frame."""
  value, each = loss(bit_weighting="residual")
  expected = []
  for clip in range(2):
    latents, total = np.asarray(LATENTS[clip]), 0
    for s, (h, w) in enumerate(LAYOUT.schedule):
      residual = np.asarray(area_resize(jnp.asarray(latents - total), (h, w)))
      size = np.abs(residual) / np.abs(residual).mean()
      own = each[clip][:, LAYOUT.scale_slice(s)].reshape(3, h, w, 6)
      expected.append((own * size).ravel())
      codes = np.where(residual > 0, 1.0, -1.0) / np.sqrt(6)
      total = total + np.asarray(linear_resize(jnp.asarray(codes), (3, 4)))
  assert value == pytest.approx(np.concatenate(expected).mean(), rel=1e-4)


def test_unknown_weightings_are_named():
  for name in ("scale_weighting", "bit_weighting"):
    with pytest.raises(ValueError, match=f"{name}='much'"):
      GeneratorLossConfig(**{name: "much"})
