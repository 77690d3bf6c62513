"""Prompt features from another network."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.quickstart import get_config
from videoar_jax.experiment.parse import finalize
from videoar_jax.text.tokenizers import make_text_encoder

RANDOM = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
FEATURES = {"": RANDOM[:1], "a red star": RANDOM[1:], "two\nlines": RANDOM[:2]}


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_features_are_those_of_the_file(tmp_path, kind):
  stored = {name: features.astype(kind) for name, features in FEATURES.items()}
  save_file(stored, tmp_path / "some.safetensors")
  encoder = make_text_encoder(str(tmp_path / "some.safetensors"), 5, ())
  assert (encoder.length, encoder.vocabulary_size, encoder.text_dim) == (5, 0, 6)
  for prompt, features in stored.items():
    expected = np.zeros((5, 6), np.float32)
    expected[: len(features)] = features
    found = encoder.encode(prompt)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(encoder.null(), encoder.encode(""))


def test_a_folder_of_files_is_one(tmp_path):
  for i, (prompt, features) in enumerate(FEATURES.items()):
    save_file({prompt: features}, tmp_path / f"{i}.safetensors")
  encoder = make_text_encoder(str(tmp_path), 3, ())
  for prompt, features in FEATURES.items():
    np.testing.assert_array_equal(encoder.encode(prompt)[: len(features)], features)


@pytest.mark.parametrize(
  ("files", "length", "said"),
  [
    ([], 5, "the folder has no .safetensors files"),
    ([{"a": RANDOM}], 5, r"has 1 prompts, but not the empty one"),
    ([FEATURES, {"a red star": RANDOM}], 5, r"1.safetensors and .*0.safetensors both have .*star"),
    ([FEATURES], 2, r"'a red star' have 3 rows; set text.length, now 2, to at least 3"),
    ([FEATURES, {"b": RANDOM[:, :5]}], 5, r"features of 'b' have shape \[4, 5\]; .*\(here 6\)"),
    ([FEATURES, {"b": RANDOM[0]}], 5, r"features of 'b' have shape \[6\]"),
    ([FEATURES, {"b": RANDOM[:0]}], 5, r"features of 'b' have shape \[0, 6\]"),
    ([FEATURES, {"b": np.float32(0)}], 5, r"features of 'b' have shape \[\]"),
    ([FEATURES], 0, "text.length is 0"),
  ],
)
def test_wrong_files_are_named(tmp_path, files, length, said):
  for i, file in enumerate(files):
    arrays = {name: np.asarray(array) for name, array in file.items()}
    save_file(arrays, tmp_path / f"{i}.safetensors")
  with pytest.raises(ValueError, match=said):
    make_text_encoder(str(tmp_path), length, ())


def test_damaged_file_and_unknown_prompt_are_named(tmp_path):
  with pytest.raises(ValueError, match=r"nowhere\.safetensors cannot be read"):
    make_text_encoder(str(tmp_path / "nowhere.safetensors"), 5, ())
  (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
  with pytest.raises(ValueError, match=r"bad\.safetensors is cut off or damaged"):
    make_text_encoder(str(tmp_path / "bad.safetensors"), 5, ())
  save_file(FEATURES, tmp_path / "good.safetensors")
  encoder = make_text_encoder(str(tmp_path / "good.safetensors"), 5, ())
  with pytest.raises(ValueError, match="no features of 'a red sta'; did you mean 'a red star'"):
    encoder.encode("a red sta")


def test_the_network_takes_their_width(tmp_path):
  save_file(FEATURES, tmp_path / "some.safetensors")
  config = get_config()
  config.text.tokenizer, config.text.length = str(tmp_path), 3
  generator = finalize(config).generator
  assert (generator.vocabulary_size, generator.text_dim) == (0, 6)
