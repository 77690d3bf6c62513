"""T5's encoder against a plain one, written from its description."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoders import T5, UMT5, random_tensors, write_encoder

from videoar_jax.text.encoders.files import EncoderFolder
from videoar_jax.text.encoders.t5 import relative_buckets

WIDER = {"d_model": 24, "num_heads": 2, "d_kv": 16, "num_layers": 3}
CASES = [values | sizes for values in (T5, UMT5) for sizes in ({}, WIDER)]


@pytest.mark.parametrize(
  ("num_buckets", "max_distance"), [(32, 128), (8, 10), (16, 20), (32, 256), (4, 3), (64, 128)]
)
def test_buckets_are_those_of_whole_numbers(num_buckets, max_distance):
  """Distances of a range are at least exact * (max / exact)^(i / n): both sides to the power n."""
  length = 300
  found = relative_buckets(length, num_buckets, max_distance)
  half, exact = num_buckets // 2, num_buckets // 4
  num = half - exact
  for offset in range(-length + 1, length):
    far = abs(offset)
    bucket = far
    if far >= exact:
      starts = [i for i in range(num) if far**num * exact**i >= exact**num * max_distance**i]
      bucket = exact + starts[-1]
    bucket += half if offset > 0 else 0
    assert set(np.diagonal(found, offset)) == {bucket}, offset


def plain_t5(values, tensors, ids):
  """Returns features of tokens without padding, in float64, one head at a time."""
  tensors = {key: array.astype(np.float64) for key, array in tensors.items()}
  size, width = values["relative_attention_num_buckets"], values["d_kv"]
  buckets = relative_buckets(len(ids), size, values["relative_attention_max_distance"])

  def norm(x, key):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * tensors[f"{key}.weight"]

  def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

  x = tensors["shared.weight"][ids]
  for i in range(values["num_layers"]):
    layer = f"encoder.block.{i}.layer.0"
    owner = layer if values["model_type"] == "umt5" else "encoder.block.0.layer.0"
    table = tensors[f"{owner}.SelfAttention.relative_attention_bias.weight"]
    y, heads = norm(x, f"{layer}.layer_norm"), []
    for n in range(values["num_heads"]):
      rows = slice(n * width, (n + 1) * width)
      q, k, v = (y @ tensors[f"{layer}.SelfAttention.{name}.weight"][rows].T for name in "qkv")
      weights = np.exp(q @ k.T + table[buckets, n])
      heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    x = x + np.concatenate(heads, -1) @ tensors[f"{layer}.SelfAttention.o.weight"].T
    layer = f"encoder.block.{i}.layer.1"
    y, dense = norm(x, f"{layer}.layer_norm"), f"{layer}.DenseReluDense"
    gate, up = (y @ tensors[f"{dense}.{name}.weight"].T for name in ("wi_0", "wi_1"))
    x = x + gelu(gate) * up @ tensors[f"{dense}.wo.weight"].T
  return norm(x, "encoder.final_layer_norm")


@pytest.mark.parametrize("values", CASES)
def test_features_are_those_of_a_plain_t5(tmp_path, values):
  """Whatever padding follows the tokens, and whatever it holds."""
  module = EncoderFolder(write_encoder(tmp_path, values)).load("float32", jax.devices()[0])
  lengths, generator = (13, 4, 1), np.random.default_rng(1)
  ids = generator.integers(0, values["vocab_size"], (3, 13)).astype(np.int32)
  is_token = np.arange(13) < np.array(lengths)[:, None]
  found = np.asarray(jax.jit(module)(jnp.asarray(ids), jnp.asarray(is_token)))
  for row, tokens, length in zip(found, ids, lengths, strict=True):
    expected = plain_t5(values, random_tensors(values), tokens[:length])
    np.testing.assert_allclose(row[:length], expected, atol=1e-5)


def test_bfloat16_is_close(tmp_path):
  folder = EncoderFolder(write_encoder(tmp_path))
  ids, is_token = jnp.asarray([[3, 4, 6, 1]]), jnp.ones((1, 4), bool)
  exact, rounded = (folder.load(x, jax.devices()[0]) for x in ("float32", "bfloat16"))
  assert {leaf.dtype.name for leaf in jax.tree.leaves(rounded)} == {"bfloat16"}
  error = jnp.abs(rounded(ids, is_token) - exact(ids, is_token)).max()
  assert 1e-4 < error < 0.05
