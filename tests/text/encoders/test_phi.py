"""Phi-2 against reference numbers of the public code."""

import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nova_golden import FOLDER, cases
from safetensors.numpy import load_file
from tiny_encoders import PHI, write_encoder

from videoar_jax.text.encoders.files import EncoderFolder


def write_golden(folder: pathlib.Path, case: str):
  """Writes the folder of a reference network, whose sizes are those of its tensors."""
  source = FOLDER / case
  arrays, tensors = np.load(source), load_file(source.with_suffix(".safetensors"))
  numbers = [re.match(r"model\.layers\.(\d+)\.", key) for key in tensors]
  rows, width = tensors["model.embed_tokens.weight"].shape
  values = PHI | {
    "vocab_size": rows,
    "hidden_size": width,
    "intermediate_size": len(tensors["model.layers.0.mlp.fc1.bias"]),
    "num_hidden_layers": len({x[1] for x in numbers if x}),
  }
  # The tensors do not tell heads and rotary numbers; those of PHI are of the first reference.
  config = source.with_suffix(".config.json")
  values |= json.loads(config.read_text()) if config.is_file() else {}
  (folder / "config.json").write_text(json.dumps(values))
  os.symlink(source.with_suffix(".safetensors"), folder / "model.safetensors")
  return arrays


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("phi_*.npz"))
def test_features_are_those_of_the_public_code(tmp_path, case):
  arrays = write_golden(tmp_path, case)
  module = EncoderFolder(tmp_path).load("float32", jax.devices()[0])
  ids = jnp.asarray(arrays["ids"], jnp.int32)
  found = jax.jit(module)(ids, jnp.ones(ids.shape, bool))
  np.testing.assert_allclose(found, arrays["last_hidden_state"], atol=2e-5)


def test_padding_changes_nothing(tmp_path):
  module = EncoderFolder(write_encoder(tmp_path, PHI)).load("float32", jax.devices()[0])
  ids = jnp.asarray(np.random.default_rng(0).integers(0, 16, (2, 9)), jnp.int32)
  is_token = jnp.arange(9) < jnp.asarray([9, 5])[:, None]
  whole = module(ids, is_token)
  np.testing.assert_allclose(whole[1, :5], module(ids[1:, :5], is_token[1:, :5])[0], atol=1e-5)
  np.testing.assert_allclose(whole[0, :5], module(ids[:1, :5], is_token[:1, :5])[0], atol=1e-5)
  turned = module(ids[:1, ::-1], is_token[:1])[0, ::-1]
  assert np.abs(turned - whole[0]).max() > 0.1  # Positions count.
