"""Prompts that are encoded by a pretrained text encoder."""

import logging
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoders import PHI, T5, UMT5, WORDS, write_encoder, write_tokenizer

from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.parallel.rules import replicated
from videoar_jax.text import feature_cache
from videoar_jax.text.encoders.files import EncoderFolder
from videoar_jax.text.feature_cache import FeatureCache
from videoar_jax.text.features import TextFeatures, write_features
from videoar_jax.text.pretrained import PretrainedText
from videoar_jax.text.tokenizers import make_text_encoder

pytest.importorskip("tokenizers")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Keeps features out of the user's own cache; returns the folder."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "videoar_jax" / "text"


@pytest.fixture
def folder(tmp_path):
  return write_encoder(tmp_path / "encoder")


def module_of(folder, dtype="float32"):
  return EncoderFolder(folder).load(dtype, jax.devices()[0])


def expected_of(module, ids):
  """Returns features of tokens, not padded."""
  return np.asarray(module(jnp.asarray([ids], jnp.int32), jnp.ones((1, len(ids)), bool)))[0]


def stored(cache):
  """Returns the files of features, without the notes of what has which digest."""
  return sorted(cache.rglob("*.safetensors"))


@pytest.mark.parametrize(("values", "end"), [(T5, [1]), (UMT5, [1]), (PHI, [])])
def test_prompts_are_encoded_with_the_tokenizers_own_special_tokens(tmp_path, values, end):
  folder = write_encoder(tmp_path / "encoder", values)
  encoder = make_text_encoder(str(folder), 24, ())
  width = values.get("d_model") or values["hidden_size"]
  assert (encoder.length, encoder.vocabulary_size, encoder.text_dim) == (24, 0, width)
  module = module_of(folder)
  for prompt in ("a red star moves left", "blue", "a red " * 9, ""):
    ids = [WORDS.index(word) for word in prompt.split()] + end
    found = encoder.encode(prompt)
    assert found.dtype == np.float32
    assert found.shape == (24, width)
    assert not found[len(ids) :].any()
    if ids:
      np.testing.assert_allclose(found[: len(ids)], expected_of(module, ids), atol=1e-5)
  np.testing.assert_array_equal(encoder.null(), encoder.encode(""))
  assert encoder.num_bytes == sum(x.nbytes for x in jax.tree.leaves(module))


def test_long_prompts_are_cut_before_the_end_token(folder, caplog):
  encoder, module = PretrainedText(str(folder), 4), module_of(folder)
  with caplog.at_level(logging.WARNING):
    for prompt in ("a red star", "a red star moves", "a red star moves left", "a red star moves"):
      found = encoder.encode(prompt)
      np.testing.assert_allclose(found, expected_of(module, [3, 4, 6, 1]), atol=1e-5)
  assert encoder.num_cut == 2
  (said,) = [record.getMessage() for record in caplog.records if "are cut" in record.getMessage()]
  assert "text.length=4" in said and "'a red star moves'" in said


def test_few_programs_are_compiled(folder):
  encoder = PretrainedText(str(folder), 100)
  counts = []
  for num in (2, 6, 16, 17, 32, 41, 100):  # With the end token.
    encoder.encode("a " * (num - 1))
    counts.append(encoder._program._cache_size())
  assert counts == [1, 1, 1, 2, 2, 3, 4]  # 16, 32, 64, 128


def test_weights_are_loaded_late_and_features_are_kept(folder, cache, monkeypatch):
  first = PretrainedText(str(folder), 8).encode("a red star")
  (file,) = stored(cache)
  loads = []
  load = EncoderFolder.load
  monkeypatch.setattr(EncoderFolder, "load", lambda *args: loads.append(args) or load(*args))
  again = PretrainedText(str(folder), 6)
  np.testing.assert_array_equal(again.encode("a red star"), first[:6])
  assert not loads
  file.write_bytes(file.read_bytes()[:-5])  # As after a fault of the disk.
  damaged = PretrainedText(str(folder), 8)
  np.testing.assert_array_equal(damaged.encode("a red star"), first)
  damaged.encode("a star")
  assert len(loads) == 1
  assert len(stored(cache)) == 2
  PretrainedText(str(folder), 8, "bfloat16").encode("a red star")
  write_encoder(folder, seed=1)
  other = PretrainedText(str(folder), 8).encode("a red star")
  assert np.abs(other - first).max() > 0.1
  assert len(loads) == 3
  assert len(stored(cache)) == 4


def test_bfloat16_features_are_rounded(folder):
  exact, rounded = (
    PretrainedText(str(folder), 8, dtype).encode("a star") for dtype in ("float32", "bfloat16")
  )
  np.testing.assert_array_equal(rounded, np.asarray(jnp.asarray(rounded, jnp.bfloat16), np.float32))
  assert 1e-4 < np.abs(exact - rounded).max() < 0.05
  with pytest.raises(ValueError, match=r"text\.dtype='float16' must be 'float32' or 'bfloat16'"):
    PretrainedText(str(folder), 8, "float16")


def test_features_are_the_same_while_a_program_is_traced(folder):
  """Losses ask for the null prompt inside jit, on a mesh of other devices, and no transfers."""
  expected = PretrainedText(str(folder), 4).null()
  encoder = PretrainedText(str(folder), 4)
  encoder._cache = FeatureCache("none of these")

  @jax.jit
  def loss(x):
    return x + jnp.asarray(encoder.null())

  mesh = make_mesh(MeshConfig(fsdp=2))
  x = jax.device_put(jnp.zeros((4, 12)), replicated(mesh))
  with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
    found = loss(x)
  np.testing.assert_array_equal(found, expected)


def test_several_threads_get_the_same(folder, cache):
  prompts = [" ".join(WORDS[3 + (i >> j & 1)] for j in range(4)) for i in range(16)]
  expected = {prompt: PretrainedText(str(folder), 8).encode(prompt) for prompt in prompts}
  for file in stored(cache):
    file.unlink()
  encoder = PretrainedText(str(folder), 8)
  with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(encoder.encode, prompts * 4))
  for prompt, features in zip(prompts * 4, found, strict=True):
    np.testing.assert_array_equal(features, expected[prompt])
  assert len(stored(cache)) == 16
  assert not list(cache.rglob("*.partial"))


def test_a_pickled_encoder_has_no_weights(folder):
  encoder = PretrainedText(str(folder), 8, "bfloat16")
  expected = encoder.encode("a red star")
  data = pickle.dumps(encoder)
  assert len(data) < 1000
  program = (
    "import pickle, sys; x = pickle.load(sys.stdin.buffer); assert 'flax' not in sys.modules;"
    "sys.stdout.buffer.write(x.encode('a red star').tobytes())"
  )
  done = subprocess.run([sys.executable, "-c", program], input=data, stdout=-1, check=True)
  np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32).reshape(8, 12), expected)


def test_memory_is_bounded(monkeypatch):
  monkeypatch.setattr(feature_cache, "_MAX_BYTES", 100)
  cache = FeatureCache("f")
  cache._folder = None
  rows = [np.full((1, 10), i, np.float32) for i in range(3)]
  cache.put("0", rows[0])
  cache.put("1", rows[1])
  cache.get("0")
  cache.put("2", rows[2])
  assert cache.get("1") is None  # The one that was not used for longest.
  np.testing.assert_array_equal(cache.get("0"), rows[0])
  np.testing.assert_array_equal(cache.get("2"), rows[2])


def test_without_a_place_for_them_features_are_computed(folder, tmp_path, monkeypatch, caplog):
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  encoder = PretrainedText(str(folder), 8)
  with caplog.at_level(logging.WARNING):
    assert encoder.encode("a red star").any()
    assert encoder.encode("a blue star").any()
  assert sum("not kept on disk" in record.getMessage() for record in caplog.records) == 1


def test_features_are_written_for_later(folder, tmp_path, monkeypatch):
  encoder = PretrainedText(str(folder), 8)
  prompts = ["", "a red star", "blue", "a"]
  assert write_features(tmp_path / "one.safetensors", encoder, prompts) == 4
  monkeypatch.setattr("videoar_jax.text.features._FILE_BYTES", 200)
  assert write_features(tmp_path / "new" / "many", encoder, prompts) == 4
  assert len(list((tmp_path / "new" / "many").iterdir())) == 2
  for path in (tmp_path / "one.safetensors", tmp_path / "new" / "many"):
    found = TextFeatures(str(path), 8)
    for prompt in prompts:
      np.testing.assert_array_equal(found.encode(prompt), encoder.encode(prompt))


def test_a_prompt_without_tokens_has_a_row_of_padding(tmp_path):
  encoder = PretrainedText(str(write_encoder(tmp_path / "phi", PHI)), 8)
  write_features(tmp_path / "one.safetensors", encoder, [""])
  assert not TextFeatures(str(tmp_path / "one.safetensors"), 8).null().any()


def test_a_prompt_has_to_be_text(folder, without_type_checks):
  for prompt in (3, None, b"a"):
    with pytest.raises(ValueError, match="a prompt must be a text"):
      PretrainedText(str(folder), 8).encode(prompt)


def test_a_tokenizer_beside_the_folder(folder):
  expected = PretrainedText(str(folder), 8).encode("a star")
  (folder.parent / "tokenizer").mkdir()
  (folder / "tokenizer.json").rename(folder.parent / "tokenizer" / "tokenizer.json")
  np.testing.assert_array_equal(PretrainedText(str(folder), 8).encode("a star"), expected)


@pytest.mark.parametrize(
  ("break_", "said"),
  [
    (lambda x: (x / "tokenizer.json").unlink(), r"has no tokenizer\.json; fetch it"),
    (lambda x: (x / "tokenizer.json").write_text("{"), r"tokenizer\.json is not a tokenizer file"),
    (lambda x: (x / "model.safetensors").write_bytes(b"no"), "safetensors is cut off or damaged"),
    (lambda x: (x / "config.json").write_text('{"model_type": "gpt2"}'), "known are t5, umt5, phi"),
    (lambda x: (x / "config.json").write_text("{"), "config.json is damaged"),
  ],
)
def test_wrong_folders_are_named_with_the_field(folder, break_, said):
  break_(folder)
  with pytest.raises(ValueError, match=rf"text\.tokenizer='.*encoder': .*{said}"):
    make_text_encoder(str(folder), 8, ())


def test_a_tokenizer_of_another_encoder_is_refused(folder, monkeypatch):
  monkeypatch.setattr("tiny_encoders.WORDS", [f"word{i}" for i in range(16)] + ["<unk>", "</s>"])
  write_tokenizer(folder / "tokenizer.json")
  with pytest.raises(ValueError, match=r"has token 17, but the encoder has 16 embeddings"):
    make_text_encoder(str(folder), 8, ())


def test_a_length_without_room_is_refused(folder):
  with pytest.raises(ValueError, match=r"text\.length is 1; it must be more than the 1 tokens"):
    make_text_encoder(str(folder), 1, ())


def test_a_folder_of_features_may_have_another_config(tmp_path, folder):
  write_features(tmp_path / "features" / "a.safetensors", PretrainedText(str(folder), 8), [""])
  (tmp_path / "features" / "config.json").write_text('{"made": "today"}')
  assert isinstance(make_text_encoder(str(tmp_path / "features"), 8, ()), TextFeatures)
