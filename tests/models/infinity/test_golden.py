"""Infinity against reference numbers of the public code."""

import dataclasses
import json

import infinity_golden as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from videoar_jax.models.bits import cross_entropy, scale_weights
from videoar_jax.models.families import FAMILIES
from videoar_jax.models.infinity import convert
from videoar_jax.models.infinity.decode import decode
from videoar_jax.models.infinity.network import network_of, template_of
from videoar_jax.models.request import sample_keys
from videoar_jax.nn.patches import join_cells
from videoar_jax.tokenizers.autoencoder import autoencoder_of
from videoar_jax.tokenizers.bsq import infinity as tokenizer
from videoar_jax.tokenizers.bsq.self_correction import self_correct
from videoar_jax.train.state import flatten

pytestmark = pytest.mark.golden
LOGITS, GUIDED, LOSS, GRADIENT, TABLE = 1e-4, 5e-4, 1e-5, 1e-4, 2e-5
# An eighth of a step of uint8. The image of e_d16_sq_cfg3 differs from ours by 7.1e-4, and as much
# from the same decoder in plain PyTorch, in float32 and in float64, which equal ours to 1.2e-5. It
# enters where the decoder begins: latents other than the recorded ones by 6e-6 (root mean square)
# explain 94% of its square, as least squares say. The network amplifies what enters there: noise of
# 1e-6 in the latents moves pixels by 7e-5.
PIXELS = 1e-3


def table_error(arrays, config) -> float:
  """Returns the error of the rotary table, `[cos or sin, l, pair]`."""
  angles = golden.layout(arrays, config).angles(config.head_dim)
  theirs = arrays["rope_cos_sin"][:, : len(angles)]
  return golden.error(np.stack([np.cos(angles), np.sin(angles)]), theirs)


def losses(logits, labels, layout):
  """Returns the loss with tokens weighted equally, and by their scale."""
  each = cross_entropy(logits[..., 1] - logits[..., 0], labels).mean((0, 2))
  return [jnp.mean(each * scale_weights(layout.sizes, kind)) for kind in ("none", "sqrt")]


def forward(config, layout, text, arrays):
  """Returns a jitted function from parameters to all recorded activations."""
  features, is_dropped = jnp.asarray(arrays["x_BLC_wo_prefix"]), np.ones(len(text), bool)

  def run(params):
    net = network_of(config, params)
    prompt = net.encode_text(text)
    found = {
      "text_normed": net.text.norm(text),
      "sos": prompt.pooled,
      "text_ca": prompt.rows,
      "gss": net.modulations(prompt)[:, None],
      "logits": net(prompt, features, layout),
      "logits_uncond": net(net.encode_text(text, is_dropped), features, layout),
    }
    x = jnp.concatenate([net.first_token(prompt), net.bits_in(features)], 1)
    for i in range(config.num_layers):
      own = dataclasses.replace(config, num_layers=i + 1)
      first = jax.tree.map(lambda leaf, i=i: leaf[: i + 1], params["blocks"])
      part = network_of(own, params | {"blocks": first})
      found[f"block{i}_out"] = part.run(x, prompt, layout)
    return found

  return jax.jit(run)


@pytest.mark.parametrize("name", golden.cases("d_"))
def test_teacher_forcing(name):
  arrays = np.load(golden.FOLDER / f"{name}.npz")
  config, params = golden.load(name, arrays["raw_features"].shape[1])
  lengths = arrays["lens"]
  text = jnp.asarray(golden.prompts(arrays["text"], lengths, config.text_length))
  config = next(own for own in golden.variants(name, config) if table_error(arrays, own) < TABLE)
  for own in golden.variants(name, config):
    if own.rope_grid == config.rope_grid:
      layout = golden.layout(arrays, own)
      found = forward(own, layout, text, arrays)(params)
      logits = found["logits"]
      if golden.error(logits.reshape(*logits.shape[:2], -1), arrays["logits"]) < LOGITS:
        break
  for key, ours in found.items():
    if key.startswith("text"):
      ours = golden.unpadded(ours, lengths)
    elif key.startswith("logits"):
      ours = ours.reshape(*ours.shape[:2], -1)
    # The first recorded block is that of the other variant, too: the table of levels is added once.
    assert golden.error(ours, arrays[key]) < LOGITS, key
  for loss, key in zip(
    losses(logits, jnp.asarray(arrays["gt"]), layout), ("loss_rw0", "loss_rw1"), strict=True
  ):
    assert abs(float(loss) - float(arrays[key])) < LOSS, key
  # Whatever was flipped, it was flipped after the first labels, and no input of the first token.
  latents = jnp.moveaxis(jnp.asarray(arrays["raw_features"]), 1, -1)[:, None]
  first = self_correct(latents, layout.cell_grids).labels[0][:, 0]
  first = join_cells(first.reshape(len(text), -1, config.num_bits), (1, 1), config.patch_size)
  np.testing.assert_array_equal(first, arrays["gt"][:, :1])


@pytest.mark.parametrize(
  "name", [name for name in golden.cases("d_") if list(golden.FOLDER.glob(f"{name}_grads_rw*"))]
)
def test_gradients(name):
  arrays = np.load(golden.FOLDER / f"{name}.npz")
  config, params = golden.load(name, arrays["raw_features"].shape[1])
  config = next(own for own in golden.variants(name, config) if table_error(arrays, own) < TABLE)
  layout = golden.layout(arrays, config)
  text = jnp.asarray(golden.prompts(arrays["text"], arrays["lens"], config.text_length))
  tensors = load_file(golden.FOLDER / f"{name}.safetensors")
  for path in golden.FOLDER.glob(f"{name}_grads_rw*.safetensors"):
    weighting = int(path.stem[-1])

    def total(params, weighting=weighting):
      net = network_of(config, params)
      logits = net(net.encode_text(text), jnp.asarray(arrays["x_BLC_wo_prefix"]), layout)
      return losses(logits, jnp.asarray(arrays["gt"]), layout)[weighting]

    ours = flatten(jax.jit(jax.grad(total))(params))
    found = {key: np.zeros_like(value) for key, value in tensors.items()} | load_file(path)
    for key, value in flatten(convert.import_params(found, config)).items():
      scale = np.abs(value).max()
      assert golden.error(ours[key], value) <= GRADIENT * max(scale, 1e-30), key


@pytest.mark.parametrize("name", golden.cases("e_"))
def test_sampling(name):
  arrays = np.load(golden.FOLDER / f"{name}.npz")
  config, params = golden.load(name, arrays["summed_codes"].shape[1])
  negative = None
  num_rows = max(arrays["lens"])
  if "neg_text" in arrays and len(arrays["neg_text"]):
    num_rows = max(num_rows, *arrays["neg_lens"])
    negative = jnp.asarray(golden.prompts(arrays["neg_text"], arrays["neg_lens"], num_rows))
  text = jnp.asarray(golden.prompts(arrays["text"], arrays["lens"], num_rows))
  guidance, temperature = (jnp.asarray(arrays[key], jnp.float32) for key in ("cfg", "tau"))
  where = tuple(int(layer) for layer in arrays["cfg_insertion_layer"])

  def run(params, own):
    return decode(
      network_of(own, params),
      golden.layout(arrays, own),
      text,
      sample_keys(0, jnp.arange(len(text))),
      guidance=guidance,
      temperature=temperature,
      top_k=1,
      guidance_layers=where,
      negative=negative,
    )

  for own in golden.variants(name, config):
    found = jax.jit(run, static_argnums=1)(params, own)
    num = len(found.bits)
    if all(np.array_equal(found.bits[k][:, None], arrays[f"bits_{k}"]) for k in range(num)):
      break
  for k, (bits, raw, logits) in enumerate(
    zip(found.bits, found.raw_logits, found.logits, strict=True)
  ):
    np.testing.assert_array_equal(bits[:, None], arrays[f"bits_{k}"], err_msg=f"scale {k}")
    theirs = arrays[f"rawlogits_{k}"]
    # Where guidance is 1, or was mixed in before, there are rows with the prompt only.
    raw = raw.reshape(*raw.shape[:2], -1)[: len(theirs)]
    assert golden.error(raw, theirs) < LOGITS, f"scale {k}"
    if len(theirs) == 2 * len(text) and 0 in where:
      rows = np.split(theirs.reshape(*theirs.shape[:2], -1, 2), 2)
      mixed = guidance[k] * rows[0] + (1 - guidance[k]) * rows[1]
      assert golden.error(logits, mixed[..., 1] - mixed[..., 0]) < GUIDED, f"scale {k}"
  codes = np.moveaxis(found.quantized, -1, 1)
  assert golden.error(codes, arrays["summed_codes"]) < LOGITS
  if (golden.FOLDER / f"{name}_vae.safetensors").exists() and "recon" in arrays:
    tensors = load_file(golden.FOLDER / f"{name}_vae.safetensors")
    settings, weights = tokenizer.import_params(tensors)
    module = autoencoder_of(settings, jax.tree.map(jnp.asarray, weights))
    pixels = jax.jit(lambda z: module.decoder(z))(found.quantized[:, None])
    pixels = np.moveaxis(jnp.clip(pixels[:, 0], -1, 1), -1, 1)
    assert golden.error(pixels, arrays["recon"]) < PIXELS


@pytest.mark.parametrize(
  "name", sorted(path.name for path in golden.FOLDER.glob("d_full_*_keys.json"))
)
def test_public_sizes_are_recognised_and_every_key_is_used(name):
  lists = json.loads((golden.FOLDER / name).read_text())
  shapes = {f"module.{key}": tuple(shape) for key, (shape, _) in lists.items()}
  config = convert.config_of(shapes)
  convert.check_keys(shapes, config)
  assert config.text_dim == 2048 and config.text_length == 512
  known = [
    size
    for size in FAMILIES["infinity"].sizes.values()
    if all(getattr(config, name) == x for name, x in size.items() if name != "dtype")
  ]
  assert len(known) == 1
  # All weights are there: those that are not ours are zeros in place of biases.
  buffers = sum(np.prod(shape) for key, (shape, _) in lists.items() if key.endswith("zero_k_bias"))
  ours = sum(np.prod(leaf.shape) for leaf in flatten(template_of(config).shapes).values())
  assert ours == sum(np.prod(shape) for shape, _ in lists.values()) - buffers
  missing = {key: shape for key, shape in shapes.items() if not key.endswith("word_embed.bias")}
  changed = missing | {"module.head.bias": (3,), "module.blocks.0.new": (1,)}
  with pytest.raises(ValueError, match="not the tensors of an Infinity transformer") as raised:
    convert.check_keys(changed, config)
  for text in (
    "missing: word_embed.bias",
    "unexpected: blocks.0.new",
    "shape: head.bias is (3,)",
  ):
    assert text in str(raised.value)


@pytest.mark.parametrize(
  "name", sorted(path.name for path in golden.TOKENIZER_FOLDER.glob("c_*.npz"))
)
def test_self_correction(name):
  arrays = np.load(golden.TOKENIZER_FOLDER / name)
  schedule = tuple((int(h), int(w)) for _, h, w in arrays["schedule"])
  latents = jnp.moveaxis(jnp.asarray(arrays["raw_features"]), 1, -1)[:, None]
  flips = None
  if "flip_0" in arrays:
    flips = [jnp.asarray(arrays[f"flip_{k}"]) for k in range(len(schedule))]
  found = self_correct(latents, schedule, flips)
  features = jnp.concatenate(found.features, 2)[:, 0]
  assert golden.error(features, arrays["x_BLC_wo_prefix"]) < 2e-6
  for k, labels in enumerate(found.labels):
    np.testing.assert_array_equal(labels.reshape(arrays[f"gt_{k}"].shape), arrays[f"gt_{k}"])
