"""The transformer's forward pass and gradients, also split over devices."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sequences import keep_of_window
from tiny_networks import (
  GENERATOR,
  LAYOUT,
  LAYOUTS,
  NAMES,
  NULL,
  TEXT,
  forward,
  make_batch,
  make_model,
)

from videoar_jax.models.request import sample_keys
from videoar_jax.models.videoar.decode import decode
from videoar_jax.models.videoar.network import Generator
from videoar_jax.nn.mask import AttentionMask
from videoar_jax.parallel.mesh import MeshConfig, make_mesh


@pytest.fixture(scope="module")
def model():
  return make_model()


@pytest.fixture(scope="module")
def batch():
  return make_batch(LAYOUT)


def test_no_token_sees_the_future(model, batch):
  """Changing one block's input changes exactly the logits that see it."""
  logits = forward(model, batch)
  changed_features = batch.features.at[:, 1, LAYOUT.scale_slice(1)].add(1.0)
  changed = model(TEXT, changed_features, LAYOUT)
  moved = np.abs(np.asarray(changed - logits)).max(-1) > 1e-5
  assert not moved[:, 0].any() and not moved[:, 1, LAYOUT.scale_slice(0)].any()
  assert moved[:, 1, 1:].all() and moved[:, 2].all()


def test_later_frames_see_the_complete_latent(batch):
  layout = LAYOUTS[1]
  model = make_model(layout=layout)

  def run(latents):
    return model(TEXT, batch.features, layout, quantized=latents)

  moved = np.abs(run(batch.quantized.at[:, 1].add(1.0)) - run(batch.quantized)).max((-1, -2)) > 1e-5
  np.testing.assert_array_equal(moved, [[False, False, True]] * 2)
  with pytest.raises(ValueError, match="complete latents"):
    model(TEXT, batch.features, layout)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("rope_fractions", (0.5, 0.5)),
    ("rope_base", 0.0),
    ("context", "none"),
    ("prev_frame_input", "no"),
    ("rope_grid", "no"),
    ("remat", True),
    ("attention", "flash"),
  ],
)
def test_impossible_settings_are_named(field, value, without_type_checks):
  with pytest.raises(ValueError, match=field):
    if field in ("context", "prev_frame_input", "rope_grid"):
      dataclasses.replace(LAYOUT, **{field: value})
    else:
      dataclasses.replace(GENERATOR, **{field: value})


def test_padding_does_not_matter(model, batch):
  other = make_model()
  rows = other.text_embedding.table
  rows[...] = rows[...].at[0].add(3.0)
  np.testing.assert_allclose(forward(other, batch), forward(model, batch), atol=1e-6)
  rows[...] = rows[...].at[7].add(3.0)
  assert jnp.abs(forward(other, batch) - forward(model, batch))[1].max() > 1e-3


def test_logits_are_not_rounded_to_the_type_of_activations(model):
  x = jax.random.normal(jax.random.key(2), (2, 3, 32), jnp.bfloat16)
  logits, transpose = jax.vjp(lambda x: model.logits(x), x)
  kernel = model.head.kernel[...].astype(jnp.bfloat16)
  exact = np.asarray(model.norm_out(x), np.float64) @ np.asarray(kernel, np.float64)
  assert logits.dtype == jnp.float32 and np.abs(exact).max() > 1
  np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-5)
  assert transpose(logits)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_gradients_with_remat_or_unrolled_equal_those_without(layout):
  batch = make_batch(layout)

  def gradient(**settings):
    model = make_model(dataclasses.replace(GENERATOR, **settings), layout)

    def loss(model):
      kwargs = {"quantized": batch.quantized}
      return jnp.sum(jnp.sin(model(TEXT, batch.features, layout, **kwargs)))

    return jax.tree.leaves(jax.jit(jax.grad(loss))(model))

  expected = gradient(remat="none")
  for settings in (
    {"remat": "dots"},
    {"remat": "full", "attention": "dense"},
    {"remat": "none", "scan_layers": False},
    {"remat": "full", "scan_layers": False},
  ):
    for a, b in zip(gradient(**settings), expected, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-4)
  assert max(float(jnp.abs(x).max()) for x in expected) > 0.1


@pytest.mark.parametrize(("sequence", "layout"), [(2, LAYOUTS[0]), (1, LAYOUTS[1])], ids=NAMES[:2])
def test_a_sequence_that_is_filled_up_for_the_kernel_gives_the_same(sequence, layout):
  """Padded to 128 tokens of any content; the interpreted kernel against dense attention."""
  batch = make_batch(layout)

  def run(attention, mesh):
    model = make_model(dataclasses.replace(GENERATOR, attention=attention), layout)

    def loss(model):
      logits = model(TEXT, batch.features, layout, quantized=batch.quantized, frame_keep=keep)
      return jnp.sum(jnp.sin(logits))

    with jax.set_mesh(make_mesh(mesh, jax.devices()[: mesh.sequence])):
      lowered = jax.jit(jax.value_and_grad(loss)).lower(model)
      assert ("tensor<2x128x32xf32>" in lowered.as_text()) == (attention == "splash")
      return jax.tree.leaves(lowered.compile()(model))

  keep = jax.random.bernoulli(jax.random.key(3), 0.5, (2, 3, 3))
  expected = run("dense", MeshConfig(data=1))
  for a, b in zip(run("splash", MeshConfig(data=1, sequence=sequence)), expected, strict=True):
    # Rounding is relative to the largest values, of which some gradients are sums.
    np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("attention", ["dense", "blocked"])
def test_bfloat16_activations_are_near(batch, attention):
  """Logits, parameters and gradients are float32; the gradients point in the same direction."""

  def gradient(dtype):
    model = make_model(dataclasses.replace(GENERATOR, dtype=dtype, attention=attention))

    def loss(model):
      return jnp.sum(jnp.square(forward(model, batch)))

    return jax.jit(lambda model: (forward(model, batch), jax.grad(loss)(model)))(model)

  (logits, exact), (rounded, found) = gradient("float32"), gradient("bfloat16")
  assert {x.dtype for x in jax.tree.leaves((rounded, found))} == {np.dtype(np.float32)}
  error = float(jnp.abs(rounded - logits).max() / jnp.abs(logits).max())
  assert 1e-5 < error < 0.05
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
    assert jnp.vdot(a, b) > 0.98 * jnp.linalg.norm(a) * jnp.linalg.norm(b)


def check_split(attention, num_kv_heads, slack, **sizes):
  """Compares a gradient on a mesh with one device's, and checks each device's share of the work."""
  layout = dataclasses.replace(LAYOUT, text_length=6)
  batch, text = make_batch(layout), jnp.pad(TEXT, ((0, 0), (0, 1)))
  config = dataclasses.replace(GENERATOR, attention=attention, num_kv_heads=num_kv_heads)
  model = make_model(config, layout)

  def loss(model):
    return jnp.sum(jnp.sin(model(text, batch.features, layout)))

  found, flops = [], []
  for mesh in (MeshConfig(data=1), MeshConfig(data=1, **sizes)):
    ways = mesh.sequence * mesh.tensor
    with jax.set_mesh(make_mesh(mesh, jax.devices()[:ways])):
      lowered = jax.jit(jax.value_and_grad(loss)).lower(model)
      compiled = lowered.compile()
      flops.append(compiled.cost_analysis()["flops"])
      found.append(compiled(model))
  # Of its 57 tokens, devices have an equal number.
  assert "tensor<2x58x32xf32>" in lowered.as_text()
  # Each device has its share of the work and, in time, no part of the others'.
  assert flops[1] < slack / ways * flops[0], flops
  for one, two in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.parametrize(
  ("attention", "num_kv_heads"),
  # With one head of keys, two devices share it.
  [("dense", 2), ("blocked", 1), ("blocked", 2)],
)
def test_a_sequence_is_split_over_devices_and_attention_by_heads(attention, num_kv_heads):
  check_split(attention, num_kv_heads, 1.15, sequence=2)


def test_a_sequence_and_heads_are_split_together():
  """On four devices, in another process."""
  folder = pathlib.Path(__file__).parent
  paths = [str(folder.parents[1] / "helpers"), str(folder)]
  lines = (
    f"import sys; sys.path[:0] = {paths!r}",
    f"from {__name__.rpartition('.')[2]} import check_split",
    "check_split('blocked', 2, 1.5, sequence=2, tensor=2)",
  )
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  flags["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  done = subprocess.run(
    [sys.executable, "-c", "\n".join(lines)],
    cwd=folder.parents[2],
    env=os.environ | flags,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]


def test_heads_that_do_not_divide_over_a_sequence_are_named():
  model = make_model(dataclasses.replace(GENERATOR, num_heads=3, num_kv_heads=1))
  mesh = make_mesh(MeshConfig(data=1, sequence=2), jax.devices()[:2])
  wrong = pytest.raises(ValueError, match=r"'attended_heads' of size 3 .*mesh\.sequence")
  with jax.set_mesh(mesh), wrong:
    jax.eval_shape(lambda model: forward(model, make_batch(LAYOUT)), model)


def test_remat_saves_memory():
  """Each policy keeps less for the backward pass than the previous one, unrolled or not."""
  text = jax.ShapeDtypeStruct((8, 5), jnp.int32)
  features = jax.ShapeDtypeStruct((8, 3, 17, 6), jnp.float32)

  def temporaries(remat, *, scan_layers=True):
    changes = {"num_layers": 12, "attention": "dense", "scan_layers": scan_layers}
    config = dataclasses.replace(GENERATOR, remat=remat, **changes)

    def loss(model, text, features):
      return jnp.sum(model(text, features, LAYOUT))

    model = jax.eval_shape(lambda: Generator(nnx.Rngs(params=0), config, LAYOUT))
    gradient = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})
    compiled = gradient.lower(model, text, features).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  none, dots, full = (temporaries(remat) for remat in ("none", "dots", "full"))
  assert none > 1.5 * dots and dots > 1.5 * full, (none, dots, full)
  assert temporaries("full", scan_layers=False) < 1.1 * full


def test_window_is_a_table_of_kept_frames(model, batch):
  keep = keep_of_window(2, 3, 1)
  logits = forward(model, batch, window=1)
  np.testing.assert_allclose(logits, forward(model, batch, frame_keep=keep), atol=1e-5)
  assert float(jnp.abs(logits - forward(model, batch)).max()) > 0.01


def test_scan_equals_unrolled(model, batch):
  logits = forward(model, batch)
  mask, angles = AttentionMask(LAYOUT.mask(), TEXT != 0), model.angles(LAYOUT.positions)
  video = model.embed_features(batch.features, LAYOUT, jnp.arange(3)[:, None] == 0)
  x = jnp.concatenate([model.embed_text(TEXT, jnp.float32), video.reshape(2, -1, 32)], 1)
  for layer in range(GENERATOR.num_layers):
    block = jax.tree.map(lambda p, layer=layer: p[layer], model.blocks)
    x, _ = block(x, angles, mask)
  np.testing.assert_allclose(model.logits(x[:, 5:]).reshape(logits.shape), logits, atol=1e-5)


def test_features_of_text_are_as_good_as_tokens():
  """A linear layer on one-hot features is a lookup; it gives the same logits and bits."""
  tokens = make_model()
  features = Generator(
    nnx.Rngs(params=0), dataclasses.replace(GENERATOR, vocabulary_size=0, text_dim=11), LAYOUT
  )
  features.text_embedding.kernel[...] = tokens.text_embedding.table[...]
  for name in ("scale_embedding", "start", "feature_in", "blocks", "norm_out", "head"):
    setattr(features, name, getattr(tokens, name))
  batch = make_batch(LAYOUT)

  def one_hot(text):
    return jax.nn.one_hot(text, 11) * (text != 0)[..., None]

  logits = tokens(TEXT, batch.features, LAYOUT)
  np.testing.assert_allclose(features(one_hot(TEXT), batch.features, LAYOUT), logits, atol=1e-5)
  table, keys = jnp.full((3, 3), 2.0), sample_keys(0, jnp.arange(2))
  plain = decode(tokens, LAYOUT, TEXT, NULL, keys, table)
  given = decode(features, LAYOUT, one_hot(TEXT), one_hot(NULL), keys, table)
  np.testing.assert_allclose(given.logits, plain.logits, atol=1e-4)
  for one, other in zip(given.bits, plain.bits, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_wide_tokens_are_never_parted_into_frames(layout):
  """TPU's compiler takes minutes to reshape `[b, t n, m]` if n is not a multiple of 8."""
  inputs = make_batch(layout)

  def logits(features, latents):
    return make_model(layout=layout)(TEXT, features, layout, quantized=latents)

  traced = jax.make_jaxpr(logits)(inputs.features, inputs.quantized)
  shapes = [x.aval.shape for equation in traced.eqns for x in equation.outvars]
  assert any(len(shape) == 3 and shape[-1] == GENERATOR.d_model for shape in shapes)
  assert not [shape for shape in shapes if len(shape) == 4 and shape[-1] == GENERATOR.d_model]
