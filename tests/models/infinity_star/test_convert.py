"""Public checkpoints of InfinityStar: names, shapes, and what is wrong with them."""

import json
import math

import jax
import numpy as np
import pytest
import star_golden as golden

from videoar_jax.interop.tensor_files import LazyTensors
from videoar_jax.models.infinity_star import convert
from videoar_jax.models.infinity_star.config import InfinityStarConfig
from videoar_jax.models.infinity_star.network import template_of
from videoar_jax.train.state import flatten

CONFIG = InfinityStarConfig(
  num_layers=2,
  d_model=8,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_dim=12,
  num_channels=6,
  semantic_bits=4,
  text_dim=3,
  text_length=5,
)


def make_tensors(prefix="block_chunks.{}.module.0") -> dict[str, np.ndarray]:
  """A public checkpoint of `CONFIG`, with two chunks of a layer each."""
  shapes = {"cfg_uncond": (5, 3), "sos_token": (1, 1, 8), "text_proj.weight": (8, 3)}
  shapes |= {"text_proj.bias": (8,), "word_embed.weight": (8, 6), "word_embed.bias": (8,)}
  shapes |= {"norm_hidden_sates.weight": (8,), "head.weight": (12, 8), "head.bias": (12,)}
  shapes |= {"semantic_head2.weight": (8, 8), "semantic_head2.bias": (8,)}
  for i in range(2):
    layer = {"attn.q_proj.weight": (16, 8), "attn.k_proj.weight": (8, 8)}
    layer |= {"attn.v_proj.weight": (8, 8), "attn.o_proj.weight": (8, 16)}
    layer |= {"attn.q_norm.weight": (8,), "attn.k_norm.weight": (8,)}
    layer |= {"mlp.gate_proj.weight": (12, 8), "mlp.up_proj.weight": (12, 8)}
    layer |= {"mlp.down_proj.weight": (8, 12)}
    layer |= {"input_layernorm.weight": (8,), "post_attention_layernorm.weight": (8,)}
    shapes |= {f"{prefix.format(i)}.{name}": shape for name, shape in layer.items()}
  generator = np.random.default_rng(0)
  return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def shapes_of(tensors):
  return {name: tensor.shape for name, tensor in tensors.items()}


def test_tensors_are_read_once_and_layers_stacked(without_type_checks):
  tensors = make_tensors()
  assert convert.config_of(shapes_of(tensors)) == CONFIG
  asked = []

  def read(name):
    asked.append(name)
    return tensors[name]

  lazy = LazyTensors(shapes_of(tensors), read)
  params = flatten(convert.import_params(lazy, CONFIG))
  assert sorted(asked) == sorted(tensors.keys() - {"sos_token"})
  kernel = tensors["block_chunks.1.module.0.mlp.gate_proj.weight"].T
  np.testing.assert_array_equal(params["blocks.mlp.gate.kernel"][1], kernel)
  # Pairs of neighbours of a head become its two halves; the second head begins at row 8.
  rows = tensors["block_chunks.0.module.0.attn.q_proj.weight"][[8, 10, 12, 14, 9, 11, 13, 15]]
  np.testing.assert_array_equal(params["blocks.attention.query.kernel"][0][:, 8:], rows.T)
  values = tensors["block_chunks.0.module.0.attn.v_proj.weight"]
  np.testing.assert_array_equal(params["blocks.attention.value.kernel"][0], values.T)
  norms = tensors["block_chunks.1.module.0.attn.k_norm.weight"]
  np.testing.assert_array_equal(params["blocks.attention.key_norm.scale"][1, :4], norms[::2])


def test_other_names_of_the_same_network():
  tensors = make_tensors()
  expected = convert.import_params(tensors, CONFIG)
  renamed = {name.replace("semantic_head2", "semantic_head"): x for name, x in tensors.items()}
  renamed = {
    name.replace("block_chunks.0.module.0", "blocks.0").replace(
      "block_chunks.1.module.0", "blocks.1"
    ): x
    for name, x in renamed.items()
  }
  assert convert.config_of(shapes_of(renamed)) == CONFIG
  jax.tree.map(np.testing.assert_array_equal, convert.import_params(renamed, CONFIG), expected)


def test_layers_are_in_the_order_of_their_numbers():
  names = [f"block_chunks.{c}.module.{i}.input_layernorm.weight" for c in (10, 2) for i in (1, 0)]
  assert convert._layers(names) == [f"block_chunks.{c}.module.{i}" for c in (2, 10) for i in (0, 1)]


def test_all_that_is_wrong_is_named():
  tensors = make_tensors()
  del tensors["text_proj.bias"], tensors["block_chunks.1.module.0.attn.k_proj.weight"]
  tensors["lvl_embed.weight"] = np.zeros((15, 8))
  tensors["head.bias"] = np.zeros(13)
  tensors["block_chunks.0.module.0.mlp.up_proj.weight"] = np.zeros((11, 8))
  with pytest.raises(ValueError, match="not the tensors of a transformer of InfinityStar") as error:
    convert.import_params(tensors, CONFIG)
  for text in (
    "missing: text_proj.bias",
    "missing: block_chunks.1.module.0.attn.k_proj.weight",
    "unexpected: lvl_embed.weight",
    "shape: head.bias is (13,), which does not make (12,)",
    "shape: block_chunks.0.module.0.mlp.up_proj.weight is (11, 8), which does not make (8, 12)",
  ):
    assert text in str(error.value)
  with pytest.raises(ValueError, match=r"q_norm\.weight is missing"):
    convert.config_of({"cfg_uncond": (5, 3)})
  # A file of a folder without an index.
  shapes = {name: x.shape for name, x in make_tensors().items() if "block_chunks.0" not in name}
  del shapes["text_proj.bias"], shapes["cfg_uncond"]
  with pytest.raises(ValueError, match="cfg_uncond is missing: fetch all files of the checkpoint"):
    convert.config_of(shapes)


@pytest.mark.golden
@pytest.mark.parametrize("name", golden.cases("d_full_*_keys.json"))
def test_released_checkpoints_are_covered(name):
  keys = json.loads((golden.FOLDER / name).read_text())
  if "word_embed.weight" not in keys:
    pytest.skip(f"{name} is of no transformer")
  shapes = {key: tuple(shape) for key, (shape, _) in keys.items()}
  config = convert.config_of(shapes)
  sources = convert._sources(config, convert._layers(shapes))
  used = [key for source in sources.values() for key in source.names]
  assert sorted(used) == sorted(shapes.keys() - {"sos_token"})
  ours = flatten(template_of(config).shapes)
  assert ours.keys() == sources.keys()
  for parameter, leaf in ours.items():
    sizes = [math.prod(shapes[key]) for key in sources[parameter].names]
    assert math.prod(leaf.shape) == sum(sizes), parameter
