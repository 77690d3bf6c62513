"""InfinityStar's tokenizer as a family: import of public weights, estimates, folders."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import star_tokenizer_golden as golden
from safetensors.numpy import load_file

from videoar_jax.nn.layers import count_parameters
from videoar_jax.tokenizers import files
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.star import convert
from videoar_jax.tokenizers.star.config import StarConfig
from videoar_jax.tokenizers.star.network import abstract_params, autoencoder_of
from videoar_jax.train.state import flatten

FAMILY = TOKENIZERS["star"]
CONFIG = StarConfig(widths=(4, 8, 8, 4, 4), num_blocks=1, z_channels=2)


def _public(config, seed=0):
  """Returns random weights of a network under their public names."""
  rng, tensors = np.random.default_rng(seed), {}
  for name, leaf in flatten(abstract_params(config)).items():
    shape = convert.public_shape(name, leaf.shape)
    tensors[convert.public_key(name)] = rng.normal(size=shape).astype(np.float32)
  tensors[convert.SCALE] = np.asarray([0.5, 2.0, 3.0, 4.0], np.float32)
  return tensors | {key: np.zeros(1, np.int64) for key in convert.NOT_NEEDED}


@pytest.mark.golden
@pytest.mark.parametrize("name", golden.cases("f_star_videovae_full_keys*.json"))
def test_all_public_keys_are_known(name):
  table = json.loads((golden.FOLDER / name).read_text())
  shapes = {key: tuple(shape) for key, (shape, _) in table.items()}
  config = convert.config_of(shapes)
  assert config == StarConfig()
  used = [*convert.check_keys(config, shapes).values(), convert.SCALE, *convert.NOT_NEEDED]
  assert sorted(used) == sorted(shapes)
  sizes = [math.prod(shapes[key]) for key in used if "mask" not in key and "_two" not in key]
  assert sum(sizes) == count_parameters(abstract_params(config)) + 4


@pytest.mark.golden
@pytest.mark.parametrize("name", golden.cases("f_star_vae_*.safetensors"))
def test_a_converted_folder_codes_as_the_imported_network(name, tmp_path):
  config, params = convert.import_params(load_file(golden.FOLDER / name))
  files.save_tokenizer(tmp_path / "star", files.Saved("star", config, "public"), params)
  found = [each.name for each in TOKENIZERS.values() if each.is_converted(tmp_path / "star")]
  assert found == ["star"]
  tokenizer = FAMILY.load_converted(tmp_path / "star")
  assert tokenizer.config == config
  module = autoencoder_of(config, jax.tree.map(jnp.asarray, params))
  video = jax.random.uniform(jax.random.key(0), (1, 1, 16, 16, 3), minval=-1)
  latents = tokenizer.encode(video)
  np.testing.assert_allclose(latents, jax.jit(lambda x: module.encoder(x))(video), atol=1e-5)
  with pytest.raises(ValueError, match="converted, not trained; use the tokenizer family bsq"):
    FAMILY.check_init(tmp_path / "star", config)


def test_every_wrong_key_is_named():
  tensors = _public(CONFIG)
  assert convert.import_params(tensors)[0] == CONFIG
  wrong = dict(tensors, extra=np.zeros(3, np.float32))
  wrong["proj_up.bias"] = np.zeros(7, np.float32)
  del wrong["decoder.up_blocks.3.upsamplers.0.conv.norm.gamma"]
  with pytest.raises(ValueError, match="3 keys are wrong") as error:
    convert.import_params(wrong)
  for text in (
    "missing decoder.up_blocks.3.upsamplers.0.conv.norm.gamma (8, 1, 1, 1)",
    "mis-shaped proj_up.bias (7,), needs (8,)",
    "unexpected extra (3,)",
  ):
    assert text in str(error.value)
  key = "encoder.down_blocks.2.resnets.0.conv1.conv.bias"
  with pytest.raises(ValueError, match=f"no InfinityStar video autoencoder: there is no {key}"):
    convert.import_params({name: x for name, x in tensors.items() if name != key})
  with pytest.raises(ValueError, match="it is empty"):
    convert.import_params({})


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (np.full(8, np.nan, np.float32), "proj_up.bias holds values that are not finite"),
    (np.zeros(8, np.int32), "proj_up.bias is of type int32"),
  ],
)
def test_bad_values_are_refused(value, message):
  with pytest.raises(ValueError, match=message):
    convert.import_params(_public(CONFIG) | {"proj_up.bias": value})


def test_the_scale_of_latents_must_be_positive():
  with pytest.raises(ValueError, match="the scale of latents must be positive"):
    convert.import_params(_public(CONFIG) | {convert.SCALE: np.zeros(4, np.float32)})


def test_tensors_are_read_once_and_what_is_not_needed_never(without_type_checks):
  class Lazy(dict):
    def __init__(self, tensors):
      super().__init__(tensors)
      self.shapes = {key: value.shape for key, value in tensors.items()}
      self.read = []

    def __getitem__(self, key):
      self.read.append(key)
      return super().__getitem__(key)

  tensors = Lazy(_public(CONFIG))
  convert.import_params(tensors)
  assert sorted([*tensors.read, *convert.NOT_NEEDED]) == sorted(tensors)


def _products(jaxpr) -> int:
  """Returns the FLOPs of all convolutions and matrix products in a program."""
  total = 0
  for equation in jaxpr.eqns:
    out = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "conv_general_dilated":
      total += 2 * out * math.prod(equation.invars[1].aval.shape[:-1])
    if equation.primitive.name == "dot_general":
      ((contracted, _), _), shape = equation.params["dimension_numbers"], equation.invars[0].aval
      total += 2 * out * math.prod(shape.shape[axis] for axis in contracted)
    for value in equation.params.values():
      if hasattr(value, "jaxpr"):
        total += _products(value.jaxpr)
  return total


@pytest.mark.parametrize("num_frames", [1, 9])
def test_flops_are_those_of_the_program(num_frames):
  size = (32, 48)
  params = abstract_params(CONFIG)
  video = jax.ShapeDtypeStruct((1, num_frames, *size, 3), jnp.float32)
  latents = jax.ShapeDtypeStruct((1, *CONFIG.latent_shape(num_frames, size), 8), jnp.float32)
  encode = jax.make_jaxpr(lambda params, x: autoencoder_of(CONFIG, params).encoder(x))
  decode = jax.make_jaxpr(lambda params, x: autoencoder_of(CONFIG, params).decoder(x))
  counted = _products(encode(params, video).jaxpr), _products(decode(params, latents).jaxpr)
  assert FAMILY.flops(CONFIG, num_frames, size) == counted
  assert min(counted) > 0


def test_bytes_of_encoding_do_not_grow_with_the_clip_nor_the_batch():
  public = StarConfig()
  few, many = ((2, f, 480, 848) for f in (5, 81))
  assert FAMILY.encode_bytes(public, few) == FAMILY.encode_bytes(public, many)
  assert FAMILY.encode_bytes(public, (64, 81, 480, 848)) == FAMILY.encode_bytes(public, many)
  frame = 4 * 480 * 848 * 96
  assert 10 * frame < FAMILY.encode_bytes(public, many) < 60 * frame


def test_training_is_refused():
  with pytest.raises(ValueError, match="not trained"):
    FAMILY.check(CONFIG, FAMILY.loss(), (16, 16))
  with pytest.raises(ValueError, match="not trained"):
    FAMILY.make_task(CONFIG, FAMILY.loss(), (16, 16), None)
  FAMILY.check(CONFIG, None, (16, 16))
  with pytest.raises(ValueError, match="height 24"):
    FAMILY.check(CONFIG, None, (24, 16))
