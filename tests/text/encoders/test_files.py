"""Folders of text encoders: shards, names, and what is wrong with them."""

import json
import os
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_encoders import PHI, T5, UMT5, random_tensors, write_encoder

from videoar_jax.text.encoders.config import config_of
from videoar_jax.text.encoders.files import EncoderFolder

IDS, IS_TOKEN = jnp.asarray([[3, 4, 6, 1]]), jnp.ones((1, 4), bool)
INDEX = "model.safetensors.index.json"


def features(folder):
  return np.asarray(EncoderFolder(folder).load("float32", jax.devices()[0])(IDS, IS_TOKEN))


def shard(folder, num=3):
  """Divides the weights of a folder into shards; returns their index."""
  tensors = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  names = {key: f"model-{i % num}.safetensors" for i, key in enumerate(tensors)}
  for name in set(names.values()):
    save_file({key: tensors[key] for key in tensors if names[key] == name}, folder / name)
  (folder / INDEX).write_text(json.dumps({"weight_map": names}))
  return names


@pytest.mark.parametrize("values", [T5, UMT5, PHI])
def test_shards_are_one_encoder(tmp_path, values):
  folder = write_encoder(tmp_path, values)
  expected = features(folder)
  shard(folder)
  np.testing.assert_array_equal(features(folder), expected)


def rename(names):
  return lambda tensors: {names.get(key, key): x for key, x in tensors.items()}


def without_model(tensors):
  return {key.removeprefix("model."): x for key, x in tensors.items()}


def with_more(**more):
  zero = np.zeros((2, 2), np.float32)
  return lambda tensors: tensors | {key.replace("__", "."): zero for key in more}


EMBEDDING = {"shared.weight": "encoder.embed_tokens.weight"}
DECODER = with_more(decoder__block__0__layer__0__layer_norm__weight=1, lm_head__weight=1)


@pytest.mark.parametrize(
  ("values", "change"),
  [
    (T5, rename(EMBEDDING)),
    (T5, DECODER),
    (T5, with_more(encoder__embed_tokens__weight=1)),
    (PHI, without_model),
    (PHI, with_more(lm_head__weight=1, lm_head__bias=1)),
    (PHI, with_more(model__layers__0__self_attn__rotary_emb__inv_freq=1)),
  ],
)
def test_other_names_and_what_is_not_needed(tmp_path, values, change):
  folder = write_encoder(tmp_path, values)
  expected = features(folder)
  save_file(change(random_tensors(values)), folder / "pytorch.safetensors")
  (folder / "model.safetensors").unlink()
  np.testing.assert_array_equal(features(folder), expected)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_parameters_have_the_type_that_is_asked_for(tmp_path, kind):
  folder = write_encoder(tmp_path)
  tensors = {key: x.astype(kind) for key, x in random_tensors(T5).items()}
  save_file(tensors, folder / "model.safetensors")
  for dtype in ("float32", "bfloat16"):
    module = EncoderFolder(folder).load(dtype, jax.devices()[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(module)} == {jnp.dtype(dtype)}
    found = np.asarray(module.blocks.query.kernel[...][1].T, np.float32)
    stored = tensors["encoder.block.1.layer.0.SelfAttention.q.weight"]
    np.testing.assert_array_equal(found, stored.astype(np.dtype(dtype)).astype(np.float32))


def test_all_that_is_wrong_with_tensors_is_listed(tmp_path):
  folder, tensors = write_encoder(tmp_path), random_tensors(T5)
  del tensors["encoder.final_layer_norm.weight"]
  del tensors["encoder.block.1.layer.0.SelfAttention.q.weight"]
  tensors["encoder.block.0.layer.1.DenseReluDense.wi.weight"] = np.zeros((2, 2), np.float32)
  tensors["shared.weight"] = np.zeros((17, 12), np.float32)
  save_file(tensors, folder / "model.safetensors")
  with pytest.raises(ValueError) as raised:
    EncoderFolder(folder)
  for said in (
    "missing: encoder.final_layer_norm.weight",
    "missing: encoder.block.1.layer.0.SelfAttention.q.weight",
    "unexpected: encoder.block.0.layer.1.DenseReluDense.wi.weight",
    "shape: shared.weight is (17, 12), should be (16, 12)",
  ):
    assert said in str(raised.value)


def test_whole_numbers_are_refused(tmp_path):
  folder, tensors = write_encoder(tmp_path), random_tensors(T5)
  key = "encoder.block.1.layer.0.SelfAttention.q.weight"
  save_file(tensors | {key: tensors[key].astype(np.int8)}, folder / "model.safetensors")
  with pytest.raises(ValueError, match=rf"{re.escape(key)} has whole numbers"):
    EncoderFolder(folder).load("float32", jax.devices()[0])


def truncate(folder):
  path = folder / "model-1.safetensors"
  path.write_bytes(path.read_bytes()[:-9])


def lose_tensor(folder):
  path = folder / "model-1.safetensors"
  tensors = load_file(path)
  tensors.pop("shared.weight", None)
  tensors.pop(min(tensors))
  save_file(tensors, path)


def repeat_tensor(folder):
  one, two = (load_file(folder / f"model-{i}.safetensors") for i in (1, 2))
  save_file(two | {min(one): one[min(one)]}, folder / "model-2.safetensors")


def change_index(change):
  def do(folder):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))

  return do


@pytest.mark.parametrize(
  ("break_", "said"),
  [
    (lambda x: (x / "model-1.safetensors").unlink(), r"index.json names files .*model-1\.safet"),
    (truncate, r"model-1\.safetensors is cut off or damaged"),
    (lose_tensor, r"names 1 tensors that its files lack"),
    (repeat_tensor, r"model-2\.safetensors: the tensor .* is in another file"),
    (lambda x: (x / INDEX).write_text("{"), r"index\.json is not an index"),
    (lambda x: (x / INDEX).write_text("[]"), r"index\.json is not an index"),
    (lambda x: (x / INDEX).write_text('{"weight_map": {"a": 1}}'), r"index\.json is not an index"),
    (change_index(lambda x: x.clear()), r"index\.json is empty"),
    (change_index(lambda x: x.update(a="../b.safetensors")), r"must be in its own folder"),
    (lambda x: [f.unlink() for f in x.glob("*.safetensors*")], r"has no \.safetensors files"),
    (lambda x: (x / "config.json").unlink(), r"has no config\.json"),
    (lambda x: (x / "config.json").write_text("{"), r"config\.json is damaged"),
    (lambda x: (x / "config.json").write_text("[1]"), r"config\.json holds a list"),
  ],
)
def test_wrong_folders_are_named(tmp_path, break_, said):
  folder = write_encoder(tmp_path / "encoder")
  (tmp_path / "b.safetensors").touch()
  shard(folder)
  break_(folder)
  with pytest.raises(ValueError, match=said):
    EncoderFolder(folder)


@pytest.mark.parametrize(
  ("values", "change", "said"),
  [
    (T5, {"model_type": "bert"}, "model_type='bert' is not supported; known are t5, umt5, phi"),
    (T5, {"model_type": ["t5"]}, "is not supported; known are t5"),
    (T5, {"feed_forward_proj": "relu"}, "feed_forward_proj='relu' .*; known: 'gated-gelu'"),
    (T5, {"feed_forward_proj": None}, "feed_forward_proj=None"),
    (T5, {"d_model": None}, "d_model=None must be a whole number"),
    (T5, {"num_layers": 0}, "num_layers=0 must be"),
    (T5, {"d_ff": "20"}, "d_ff='20' must be"),
    (T5, {"layer_norm_epsilon": 0}, "layer_norm_epsilon=0 must be"),
    (UMT5, {"relative_attention_num_buckets": 6}, "num_buckets=6 must be a multiple of 4"),
    (UMT5, {"relative_attention_max_distance": 2}, "max_distance=2 must be more than a quarter"),
    (PHI, {"hidden_act": "silu"}, "hidden_act='silu' .*; known: 'gelu_new'"),
    (PHI, {"qk_layernorm": True}, "qk_layernorm=True is not supported"),
    (PHI, {"num_key_value_heads": 1}, "num_key_value_heads=1 is not supported; known: 2"),
    (PHI, {"rope_scaling": {"type": "linear"}}, "rope_scaling=.* is not supported; known: null"),
    (PHI, {"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn' is not supported"),
    (PHI, {"rope_parameters": 1}, "rope_parameters=1 must be an object"),
    (PHI, {"num_attention_heads": 3}, "num_attention_heads=3 does not divide hidden_size=32"),
    (PHI, {"partial_rotary_factor": 2}, "32 numbers of a head rotate"),
  ],
)
def test_wrong_sizes_are_named(tmp_path, values, change, said):
  folder = write_encoder(tmp_path, values)
  (folder / "config.json").write_text(json.dumps(values | change))
  with pytest.raises(ValueError, match=rf"config\.json: .*{said}"):
    EncoderFolder(folder)


def test_rotary_settings_of_later_versions():
  values = {key: x for key, x in PHI.items() if key not in ("rope_theta", "partial_rotary_factor")}
  rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}
  config = config_of(values | {"rope_parameters": rope})
  assert (config.rope_base, config.rotary_dim) == (500.0, 4)


def test_the_fingerprint_is_that_of_contents(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder = write_encoder(tmp_path / "one")
  first = EncoderFolder(folder).fingerprint("float32")
  assert EncoderFolder(folder).fingerprint("float32") == first  # From the cache.
  same = write_encoder(tmp_path / "two")
  assert EncoderFolder(same).fingerprint("float32") == first
  others = {EncoderFolder(folder).fingerprint("bfloat16")}
  others.add(EncoderFolder(write_encoder(tmp_path / "seed", seed=1)).fingerprint("float32"))
  os.utime(same / "tokenizer.json", (1, 1))
  (same / "tokenizer.json").write_text((same / "tokenizer.json").read_text().replace("red", "rde"))
  others.add(EncoderFolder(same).fingerprint("float32"))
  (folder / "config.json").write_text(json.dumps(T5 | {"layer_norm_epsilon": 1e-5}))
  others.add(EncoderFolder(folder).fingerprint("float32"))
  assert len(others - {first}) == 4
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one" / "config.json"))  # Not a folder.
  assert EncoderFolder(folder).fingerprint("float32") in others
