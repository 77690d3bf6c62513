"""Public keys of Infinity's transformer: every one is used once, and wrong ones are named."""

import collections

import numpy as np
import pytest

from videoar_jax.interop.tensor_files import LazyTensors
from videoar_jax.models.infinity import convert

M, HEADS, POOL, TEXT, ROWS, BITS, HIDDEN = 16, 2, 2, 6, 5, 4, 24
CHUNKS, LAYERS = 2, 3  # Of layers, and layers of a chunk.


def shapes_of(prefix=""):
  top = {
    "cfg_uncond": (ROWS, TEXT),
    "pos_start": (1, 1, M),
    "text_norm.weight": (TEXT,),
    "text_proj_for_sos.ca.mat_q": (1, POOL, M // POOL),
    "text_proj_for_sos.ca.mat_kv.weight": (2 * M, TEXT),
    "text_proj_for_sos.ca.v_bias": (M,),
    "text_proj_for_sos.ca.zero_k_bias": (M,),
    "text_proj_for_sos.ca.proj.weight": (M, M),
    "text_proj_for_ca.0.weight": (M, TEXT),
    "text_proj_for_ca.2.weight": (M, M),
    "lvl_embed.weight": (15, M),
    "word_embed.weight": (M, BITS),
    "shared_ada_lin.1.weight": (6 * M, M),
    "head_nm.ada_lin.1.weight": (2 * M, M),
    "head.weight": (2 * BITS, M),
  }
  block = {
    "ada_gss": (1, 1, 6, M),
    "ca_norm.weight": (M,),
    "sa.mat_qkv.weight": (3 * M, M),
    "sa.q_bias": (M,),
    "sa.v_bias": (M,),
    "sa.zero_k_bias": (M,),
    "sa.scale_mul_1H11": (1, HEADS, 1, 1),
    "sa.proj.weight": (M, M),
    "ca.mat_q.weight": (M, M),
    "ca.mat_kv.weight": (2 * M, M),
    "ca.v_bias": (M,),
    "ca.zero_k_bias": (M,),
    "ca.proj.weight": (M, M),
    "ffn.fc1.weight": (HIDDEN, M),
    "ffn.fc2.weight": (M, HIDDEN),
  }
  without_bias = ("mat_qkv", "mat_kv", "text_norm", "lvl_embed", "sos.ca.mat_q")
  for part in (top, block):
    for key, shape in list(part.items()):
      if key.endswith(".weight") and not any(name in key for name in without_bias):
        part[key.replace("weight", "bias")] = shape[:1]
  for c in range(CHUNKS):
    for j in range(LAYERS):
      top |= {f"block_chunks.{c}.module.{j}.{key}": shape for key, shape in block.items()}
  return {prefix + key: shape for key, shape in top.items()}


def lazy(shapes, read):
  """Returns tensors that are made when they are asked for, and counted in `read`."""

  def make(key):
    read[key] += 1
    generator = np.random.default_rng(list(shapes).index(key))
    return generator.normal(size=shapes[key]).astype(np.float32)

  return LazyTensors(shapes, make)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_each_tensor_is_used_once(prefix, without_type_checks):
  shapes = shapes_of(prefix)
  read = collections.Counter()
  config, tensors = convert.config_of(shapes), lazy(shapes, read)
  assert (config.num_layers, config.d_model, config.num_heads) == (CHUNKS * LAYERS, M, HEADS)
  assert (config.text_dim, config.text_length, config.num_bits) == (TEXT, ROWS, BITS)
  convert.check_keys(shapes, config)
  params = convert.import_params(tensors, config)
  # Once for each parameter that a tensor holds.
  parts = {"sa.mat_qkv.weight": 3, "ca.mat_kv.weight": 2, "zero_k_bias": 0}
  for key in shapes:
    assert read[key] == next((num for end, num in parts.items() if key.endswith(end)), 1), key
  # Layers of all chunks are in order; the others are not mixed up.
  fourth = tensors[f"{prefix}block_chunks.1.module.1.ffn.fc1.weight"].T
  np.testing.assert_array_equal(params["blocks"]["up"]["kernel"][4], fourth)
  both = tensors[f"{prefix}block_chunks.0.module.0.ca.mat_kv.weight"]
  cross = params["blocks"]["cross"]
  np.testing.assert_array_equal(cross["key"]["kernel"][0], both[:M].T)
  np.testing.assert_array_equal(cross["value"]["kernel"][0], both[M:].T)
  # Pairs of neighbours, which public heads rotate, become halves of a head.
  bias = tensors[f"{prefix}block_chunks.0.module.0.sa.q_bias"].reshape(HEADS, -1)
  expected = np.concatenate([bias[:, ::2], bias[:, 1::2]], axis=1).ravel()
  np.testing.assert_array_equal(params["blocks"]["attention"]["query"]["bias"][0], expected)


def test_one_chunk_is_called_blocks():
  shapes = {
    key.replace("block_chunks.0.module", "blocks"): shape
    for key, shape in shapes_of().items()
    if not key.startswith("block_chunks.1")
  }
  config = convert.config_of(shapes)
  assert config.num_layers == LAYERS
  convert.import_params(lazy(shapes, collections.Counter()), config)


def test_tokens_of_several_cells_have_fewer_bits_each():
  assert convert.config_of(shapes_of(), patch_size=2).num_bits == 1
  with pytest.raises(ValueError, match="tokens of 4 bits are not 3x3 cells"):
    convert.config_of(shapes_of(), patch_size=3)


def test_fewer_rows_of_no_prompt():
  shapes = shapes_of()
  config = convert.config_of(shapes | {"cfg_uncond": (3, TEXT)})
  tensors = lazy(shapes, collections.Counter())
  rows = convert.import_params(tensors, config)["text"]["no_prompt"]
  np.testing.assert_array_equal(rows, tensors["cfg_uncond"][:3])


def test_wrong_tensors_are_all_named(without_type_checks):
  shapes = shapes_of()
  config, read = convert.config_of(shapes), collections.Counter()
  del shapes["head.bias"]
  shapes |= {"extra": (2,), "lvl_embed.weight": (14, M), "lvl_1L": (1, 9)}
  with pytest.raises(ValueError, match="not the tensors of an Infinity transformer") as raised:
    convert.import_params(lazy(shapes, read), config)
  assert not read  # Before anything is read.
  for text in ("missing: head.bias", "unexpected: extra", "lvl_embed.weight is (14, 16)"):
    assert text in str(raised.value)
  assert "lvl_1L" not in str(raised.value)
  whole = shapes_of()
  tensors = dict(lazy(whole, read))
  for key, value, text in (
    ("lvl_embed.weight", np.full((15, M), np.nan, np.float32), "lvl_embed.weight holds values"),
    ("pos_start", np.zeros((1, 1, M), np.int32), "pos_start is of type int32"),
  ):
    with pytest.raises(ValueError, match=text):
      convert.import_params(tensors | {key: value}, config)


@pytest.mark.parametrize(
  ("key", "text"),
  [
    ("encoder.conv_in.conv.weight", "image or video tokenizer"),
    ("image_encoder.patch_embed.proj.weight", "NOVA"),
    ("text_proj.weight", "InfinityStar"),
    ("layer.weight", "names begin with"),
  ],
)
def test_other_networks_are_recognised(key, text):
  with pytest.raises(ValueError, match=f"not an Infinity transformer.*{text}"):
    convert.config_of({key: (3, 3)})
