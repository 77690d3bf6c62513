"""Public keys of Infinity's transformer: every one is used once, and wrong ones are named."""

import collections

import numpy as np
import pytest

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


class Lazy:
  """Makes a tensor when it is asked for; each element says which tensor it is of."""

  def __init__(self, shapes):
    self.shapes, self.read = shapes, collections.Counter()

  def keys(self):
    return self.shapes.keys()

  def __getitem__(self, key):
    self.read[key] += 1
    generator = np.random.default_rng(list(self.shapes).index(key))
    return generator.normal(size=self.shapes[key]).astype(np.float32)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_each_tensor_is_read_once(prefix):
  shapes = shapes_of(prefix)
  config, tensors = convert.config_of(shapes), Lazy(shapes)
  assert (config.num_layers, config.d_model, config.num_heads) == (CHUNKS * LAYERS, M, HEADS)
  assert (config.text_dim, config.text_length, config.num_bits) == (TEXT, ROWS, BITS)
  convert.check_keys(shapes, config)
  params = convert.import_params(tensors, config)
  wanted = {key for key in shapes if not key.endswith("zero_k_bias")}
  assert tensors.read == collections.Counter(wanted)
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
  convert.import_params(Lazy(shapes), config)


def test_tokens_of_several_cells_have_fewer_bits_each():
  assert convert.config_of(shapes_of(), patch_size=2).num_bits == 1
  with pytest.raises(ValueError, match="tokens of 4 bits are not 3x3 cells"):
    convert.config_of(shapes_of(), patch_size=3)


def test_fewer_rows_of_no_prompt():
  shapes = shapes_of()
  config, tensors = convert.config_of(shapes | {"cfg_uncond": (3, TEXT)}), Lazy(shapes)
  rows = convert.import_params(tensors, config)["text"]["no_prompt"]
  np.testing.assert_array_equal(rows, tensors["cfg_uncond"][:3])


def test_wrong_tensors_are_all_named():
  shapes = shapes_of()
  config, tensors = convert.config_of(shapes), Lazy(shapes)
  del tensors.shapes["head.bias"]
  tensors.shapes["extra"] = (2,)
  with pytest.raises(ValueError, match=r"2 tensors.*missing: head.bias; unexpected: extra"):
    convert.import_params(tensors, config)
  shapes = shapes_of() | {"head.bias": (7,)}
  found = {key: Lazy(shapes)[key] for key in shapes}
  found["lvl_embed.weight"][0, 0] = np.nan
  found["pos_start"] = found["pos_start"].astype(np.int32)
  with pytest.raises(ValueError, match="3 tensors are wrong") as raised:
    convert.import_params(found, config)
  for text in (
    "head.bias (7,), needs (8,)",
    "lvl_embed.weight holds",
    "pos_start is of type int32",
  ):
    assert text in str(raised.value)


@pytest.mark.parametrize(
  ("key", "text"),
  [
    ("encoder.conv_in.conv.weight", "Infinity image tokenizer"),
    ("image_encoder.patch_embed.proj.weight", "NOVA"),
    ("text_proj.weight", "InfinityStar"),
    ("layer.weight", "names begin with"),
  ],
)
def test_other_networks_are_recognised(key, text):
  with pytest.raises(ValueError, match=f"not an Infinity transformer.*{text}"):
    convert.config_of({key: (3, 3)})
