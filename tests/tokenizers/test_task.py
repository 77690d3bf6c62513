"""The tokenizer's loss and its parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import AUTOENCODER

from videoar_jax.tokenizers.bsq import quantizer
from videoar_jax.tokenizers.bsq.task import TokenizerLossConfig, TokenizerTask
from videoar_jax.tokenizers.pixels import to_float

SCHEDULE = ((1, 1), (2, 2), (4, 4))
PARTS = ("l1", "l2", "commitment", "quantization_error", "entropy")
NOTHING = TokenizerLossConfig(**dict.fromkeys(PARTS, 0.0))


def make_task(**weights):
  return TokenizerTask(AUTOENCODER, SCHEDULE, dataclasses.replace(NOTHING, **weights))


@pytest.fixture(scope="module")
def module():
  return make_task().init(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
  video = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8, 3), np.uint8)
  return {"video": jnp.asarray(video)}


def loss(task, module, batch, is_training=False):
  return task.loss(module, {}, batch, jax.random.key(1), is_training)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_counts_by_its_weight(module, batch, part):
  total, parts = loss(make_task(**{part: 3.0}), module, batch)
  assert abs(float(parts[part])) > 1e-6
  np.testing.assert_allclose(total, 3.0 * parts[part], rtol=1e-6)


def test_scale_dropout_decodes_from_the_first_scales(module, batch):
  task = make_task(l2=1.0, scale_dropout=1.0)
  num_scales = np.asarray(task.draw_num_scales(jax.random.key(1), 3))
  assert set(np.asarray(task.draw_num_scales(jax.random.key(0), 200))) == {1, 2}
  video = to_float(batch["video"])
  latents = module.encoder(video)
  sums = [
    sum(
      quantizer.quantize(latents[i : i + 1], SCHEDULE, jnp.array([[k]])).quantized
      - quantizer.quantize(latents[i : i + 1], SCHEDULE, jnp.array([[k - 1]])).quantized
      for k in range(1, n + 1)
    )
    for i, n in enumerate(num_scales)
  ]
  expected = jnp.mean(jnp.square(module.decoder(jnp.concatenate(sums)) - video))
  dropped, _ = loss(task, module, batch, is_training=True)
  np.testing.assert_allclose(dropped, expected, rtol=1e-5)
  # Outside training every scale counts.
  whole, _ = loss(task, module, batch)
  np.testing.assert_allclose(whole, loss(make_task(l2=1.0), module, batch)[0], rtol=1e-6)
  assert abs(float(whole - dropped)) > 1e-6


def test_scale_dropout_needs_a_share():
  with pytest.raises(ValueError, match=r"scale_dropout=1\.5"):
    TokenizerLossConfig(scale_dropout=1.5)
