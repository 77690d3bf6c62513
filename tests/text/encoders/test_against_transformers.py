"""Text encoders against those of `transformers`, where it and PyTorch are installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoders import PHI, T5, UMT5

from videoar_jax.text.encoders.files import EncoderFolder
from videoar_jax.text.encoders.t5 import relative_buckets

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 50}
T5_WIDE = SMALL | {
  "d_model": 96,
  "num_heads": 5,
  "d_kv": 16,
  "d_ff": 128,
  "num_layers": 4,
  "relative_attention_num_buckets": 32,
  "relative_attention_max_distance": 128,
}
PHI_WIDE = SMALL | {
  "hidden_size": 80,
  "num_attention_heads": 4,
  "intermediate_size": 160,
  "num_hidden_layers": 3,
  "partial_rotary_factor": 0.5,
}
CASES = [
  ("T5", T5 | SMALL),
  ("T5", T5 | T5_WIDE),
  ("UMT5", UMT5 | SMALL),
  ("UMT5", UMT5 | T5_WIDE),
  ("Phi", PHI | SMALL),
  ("Phi", PHI | PHI_WIDE),
]
PARTS = {"Phi": ("PhiModel", "PhiForCausalLM")}


def make(kind: str, values: dict, part: int):
  """Returns a network with random weights: the encoder alone, or with what is not needed."""
  names = PARTS.get(kind, (f"{kind}EncoderModel", f"{kind}ForConditionalGeneration"))
  torch.manual_seed(0)
  config = getattr(transformers, f"{kind}Config")(**values)
  network = getattr(transformers, names[part])(config).eval()
  with torch.no_grad():
    for name, weight in network.named_parameters():
      if weight.ndim > 1:
        weight.normal_(0, weight.shape[-1] ** -0.5)
      else:
        weight.normal_(float("norm.weight" in name), 0.3)
  return network


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize(("kind", "values"), CASES)
def test_features_are_those_of_transformers(tmp_path, kind, values, part):
  network = make(kind, values, part)
  network.save_pretrained(tmp_path, max_shard_size="20kB")
  generator, lengths = np.random.default_rng(0), (200, 77, 1)
  ids = generator.integers(0, 50, (3, 200))
  mask = np.arange(200) < np.array(lengths)[:, None]
  if part:
    network = network.model if kind == "Phi" else network.encoder
  with torch.no_grad():
    expected = network(torch.tensor(ids), torch.tensor(mask).long()).last_hidden_state.numpy()
  module = EncoderFolder(tmp_path).load("float32", jax.devices()[0])
  found = np.asarray(module(jnp.asarray(ids, jnp.int32), jnp.asarray(mask)))
  for row, other, length in zip(found, expected, lengths, strict=True):
    error = np.abs(row[:length] - other[:length]).max() / np.abs(other[:length]).max()
    assert error < 1e-5


@pytest.mark.parametrize(
  ("num_buckets", "max_distance"), [(32, 128), (8, 10), (16, 20), (64, 256), (12, 100), (32, 1000)]
)
def test_buckets_are_those_of_transformers(num_buckets, max_distance):
  attention = transformers.models.t5.modeling_t5.T5Attention
  offset = torch.arange(600)[None] - torch.arange(600)[:, None]
  expected = attention._relative_position_bucket(offset, True, num_buckets, max_distance)
  np.testing.assert_array_equal(relative_buckets(600, num_buckets, max_distance), expected)
