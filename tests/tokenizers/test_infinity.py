"""Infinity's image tokenizer: sizes from keys, and parity with the public network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from videoar_jax.tokenizers.autoencoder import abstract_params, autoencoder_of
from videoar_jax.tokenizers.bsq import infinity, quantizer
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.train.state import flatten

# The name in the list of keys -> bits, channels of the levels.
PUBLIC = {
  "infinity_vae_d16 ": (16, (1, 2, 4, 4, 4)),
  "infinity_vae_d24 ": (24, (1, 2, 4, 4, 4)),
  "infinity_vae_d32 ": (32, (1, 2, 4, 4, 4)),
  "infinity_vae_d64 ": (64, (1, 2, 4, 4, 4)),
  "infinity_vae_d56_f8_14_patchify ": (14, (1, 2, 4, 4)),
}


@pytest.fixture(scope="module")
def public_shapes(golden_folder):
  lists = json.loads((golden_folder / "a_full_vae_keys.json").read_text())
  assert len(lists) == len(PUBLIC)
  return {
    name: next(
      {key: tuple(shape) for key, (shape, _) in keys.items()}
      for title, keys in lists.items()
      if title.startswith(name)
    )
    for name in PUBLIC
  }


@pytest.fixture(scope="module")
def tensors(golden_folder):
  return load_file(golden_folder / "a_vae_d48_ch32.safetensors")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_sizes_are_recognised_and_every_key_is_used_once(public_shapes, name):
  shapes, (num_bits, multipliers) = public_shapes[name], PUBLIC[name]
  config = infinity.recognise(shapes)
  assert config == BSQConfig(
    num_bits=num_bits, multipliers=multipliers, strides=((1, 2),) * (len(multipliers) - 1)
  )
  names = infinity.check_keys(config, shapes)
  assert sorted([*names.values(), *infinity.NOT_NEEDED]) == sorted(shapes)
  assert names.keys() == flatten(abstract_params(config)).keys()


def test_every_wrong_key_is_named(public_shapes):
  shapes = dict(public_shapes["infinity_vae_d32 "])
  # Those that sizes are read from are among them.
  missing = [
    "encoder.conv_in.conv.weight",
    "encoder.conv_out.conv.bias",
    "decoder.norm_out.norm.bias",
  ]
  for key in missing:
    del shapes[key]
  unexpected = ["encoder.mid.attn_1.q.weight", "decoder.up.1.block.0.conv1.weight"]
  shapes |= dict.fromkeys(unexpected, (8, 8))
  mis_shaped = ["encoder.down.1.block.0.conv1.conv.weight", "decoder.conv_in.conv.weight"]
  shapes |= dict.fromkeys(mis_shaped, (7, 7, 3, 3))
  with pytest.raises(ValueError, match="7 keys are wrong") as raised:
    infinity.check_keys(infinity.recognise(shapes), shapes)
  text = str(raised.value)
  for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", mis_shaped)):
    for key in keys:
      assert f"{kind} {key} (" in text


@pytest.mark.parametrize("keys", [{}, {"layer.0.weight": (3, 3)}])
def test_another_architecture_is_refused(keys):
  with pytest.raises(ValueError, match="no Infinity image tokenizer"):
    infinity.recognise(keys)


def test_weights_that_are_no_numbers_are_refused(tensors):
  key = "decoder.conv_out.conv.bias"
  for value, message in (
    (np.full(3, np.nan, np.float32), "not finite"),
    (np.zeros(3, np.int64), "int64"),
  ):
    with pytest.raises(ValueError, match=f"{key}.*{message}"):
      infinity.import_params(tensors | {key: value})


def test_half_precision_is_read(tensors):
  """Also as bfloat16, which NumPy itself does not support."""
  halves = {key: value.astype(jnp.bfloat16) for key, value in tensors.items()}
  params = infinity.import_params(halves)[1]
  kernel, weight = params["encoder"]["conv_in"]["kernel"], tensors["encoder.conv_in.conv.weight"]
  assert kernel.dtype == np.float32
  np.testing.assert_allclose(kernel[-1], weight.transpose(2, 3, 1, 0), rtol=2**-8)


def test_image_kernels_become_the_last_tap(tensors):
  config, params = infinity.import_params(tensors)
  kernel = params["decoder"]["conv_in"]["kernel"]
  weight = tensors["decoder.conv_in.conv.weight"]
  assert kernel.shape == (3, 3, 3, 48, 32) and kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel[2, 0, 1], weight[:, :, 0, 1].T)
  assert not kernel[:2].any()
  assert config.num_encoder_blocks == 1 and config.num_decoder_blocks == 2


def test_one_frame_equals_the_image_network(tensors, golden):
  """Every recorded activation, every bit, the quantized latent and every pixel."""
  arrays = golden("a_vae_d48_ch32_img64.npz")
  config, params = infinity.import_params(tensors)
  module = autoencoder_of(config, jax.tree.map(jnp.asarray, params))

  def expected(name):
    return np.moveaxis(arrays[name], 1, -1)[:, None]

  def check(name, ours):
    theirs = expected(name)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max(), err_msg=name)

  @jax.jit
  def encode(module, x):
    encoder = module.encoder
    x, steps = encoder.conv_in(x)[0], []
    for level in range(5):
      x, _ = getattr(encoder, f"down_{level}")(x)
      steps.append(x)
      if level < 4:
        x, _ = getattr(encoder, f"downsample_{level}")(x)
        steps.append(x)
    return steps, encoder.mid(x)[0]

  steps, middle = encode(module, expected("x"))
  # The first of theirs are the input convolution and the first level's, which are not recorded.
  recorded = [i for i in range(1, 10) if f"enc_hs_{i}" in arrays]
  assert recorded == list(range(2, 10))
  for i in recorded:
    check(f"enc_hs_{i}", steps[i - 1])
  check("enc_mid", middle)
  latents = jax.jit(lambda module, x: module.encoder(x))(module, expected("x"))
  check("h", latents)

  schedule = tuple((int(h), int(w)) for _, h, w in arrays["schedule"])
  quantized = quantizer.quantize(latents, schedule)
  for s, (bits, units) in enumerate(zip(quantized.bits, quantized.normalized, strict=True)):
    differs = np.asarray(bits) != arrays[f"bits_{s}"]
    assert not differs[np.abs(units) > 1e-6].any(), f"scale {s}: {differs.sum()} bits differ"
  check("z", quantized.quantized)

  decode = jax.jit(lambda module, z: module.decoder(z))
  pixels = decode(module, quantized.quantized)
  check("recon_unclamped", pixels)
  check("recon", jnp.clip(pixels, -1, 1))
  bits = [jnp.asarray(arrays[f"bits_{s}"]) for s in range(len(schedule))]
  check("recon_from_bits", jnp.clip(decode(module, quantizer.dequantize(bits)), -1, 1))
