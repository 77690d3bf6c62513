"""int8 weights: their error, their memory, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_nova
import tiny_star
from flax import nnx
from speed import optimized
from tiny_networks import LAYOUT, forward, make_batch, make_model

from videoar_jax import load_model, sample
from videoar_jax.experiment import parse
from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity.network import Infinity
from videoar_jax.nn.layers import Linear, stack_layers
from videoar_jax.nn.quantized import quantize, with_dtype

AXES = ("embed", "mlp")


def make_stack(num_in=24, num_out=40, **settings):
  return stack_layers(
    lambda rngs: Linear(rngs, num_in, num_out, AXES, **settings), jax.random.key(1), 3
  )


class Net(nnx.Module):
  def __init__(self, **settings):
    self.layers = make_stack(**settings)
    self.head = Linear(nnx.Rngs(0), 40, 8, AXES)


def layer(stack, i):
  return jax.tree.map(lambda x: x[i], stack)


def test_weights_are_rounded_per_output_channel():
  net = Net()
  kernel = np.array(net.layers.kernel[...])
  kernel[1, :, 5] = 0
  kernel[2, :, 7] *= 1000  # A large channel leaves its neighbours as exact as before.
  net.layers.kernel = nnx.Param(jnp.asarray(kernel), axes=("layers", *AXES))
  found = with_dtype(net, "int8")
  rounded, scale = found.layers.kernel[...], np.asarray(found.layers.kernel_scale[...])
  assert rounded.dtype == jnp.int8 and scale.shape == (3, 40)
  error = np.abs(np.asarray(rounded, np.float32) * scale[:, None] - kernel)
  assert (error <= scale[:, None] * 0.5001).all() and (error[1, :, 5] == 0).all()
  np.testing.assert_allclose(scale[2], np.abs(kernel[2]).max(0) / 127, rtol=1e-6)
  assert found.head.kernel[...].dtype == jnp.float32
  assert net.layers.kernel[...].dtype == jnp.float32  # The module itself is as before.


@pytest.mark.parametrize("settings", [{}, {"use_bias": True}, {"lora_rank": 2}])
def test_products_are_close_to_those_of_float32(settings):
  net = Net(**settings)
  net = jax.tree.map(lambda x: x + 0.01, net)  # Biases and adapters begin with zeros.
  x = jax.random.normal(jax.random.key(2), (5, 7, 24))
  found = with_dtype(net, "int8")
  for i in range(3):
    expected, y = layer(net.layers, i)(x), layer(found.layers, i)(x)
    assert y.dtype == jnp.float32 and y.shape == expected.shape
    assert jnp.max(jnp.abs(y - expected)) < 0.02 * jnp.max(jnp.abs(expected))
  y = layer(found.layers, 0)(x.astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  y = layer(found.layers, 0)(x.astype(jnp.bfloat16), has_float32_result=True)
  assert y.dtype == jnp.float32


def make_nova():
  run = parse.finalize(tiny_nova.make_config())
  return run.family.make_module(run)(jax.random.key(0))


def make_infinity():
  sizes = {"num_layers": 2, "d_model": 16, "num_heads": 2, "num_pool_heads": 2, "mlp_dim": 16}
  kinds = {"num_levels": 2, "num_bits": 4, "text_dim": 8, "text_length": 8}
  config = InfinityConfig(**sizes, **kinds)
  return Infinity(nnx.Rngs(params=jax.random.key(0)), config)


@pytest.mark.parametrize("make", [make_model, make_nova, make_infinity, tiny_star.make_net])
def test_stacked_layers_of_every_family_are_int8(make):
  net = jax.eval_shape(lambda: with_dtype(make(), "int8"))
  kinds = {
    ".".join(map(str, path)): (layer.kernel.dtype, layer.kernel.ndim)
    for path, layer in nnx.iter_modules(net)
    if isinstance(layer, Linear)
  }
  assert sum(kind == jnp.int8 for kind, _ in kinds.values()) >= 4
  for name, (kind, num_axes) in kinds.items():
    assert (kind == jnp.int8) == (num_axes == 3), name


def test_logits_are_close():
  model, batch = make_model(), make_batch(LAYOUT)
  expected, found = (jax.jit(forward)(net, batch) for net in (model, with_dtype(model, "int8")))
  error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
  assert 1e-5 < error < 0.05


def test_what_stays_is_float32_also_if_it_was_stored_in_bfloat16():
  stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_model())
  kinds = {x.dtype for x in jax.tree.leaves(with_dtype(stored, "int8"))}
  assert kinds == {jnp.dtype(jnp.int8), jnp.dtype(np.float32)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_needs_no_memory_beside_its_result(dtype):
  kernel = jax.ShapeDtypeStruct((2, 256, 512), dtype)
  with optimized():
    compiled = jax.jit(lambda x: quantize(x)).lower(kernel).compile()
  if jax.default_backend() == "cpu":  # Where 4 bytes a weight would be a copy in float32.
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * 2 * 256 * 512


def test_what_is_int8_already_is_refused():
  once = with_dtype(Net(), "int8")
  with pytest.raises(ValueError, match="the weights are int8 already; load the checkpoint"):
    with_dtype(once, "int8")


def test_networks_without_stacked_layers_are_refused():
  with pytest.raises(ValueError, match=r"no stacked layers; take float32 or bfloat16"):
    with_dtype(Linear(nnx.Rngs(0), 2, 2, AXES), "int8")


def test_other_types_are_refused(tmp_path, capsys):
  with pytest.raises(ValueError, match=r"dtype='fp8' is no type of weights here; take float32, b"):
    load_model(tmp_path, dtype="fp8")
  with pytest.raises(SystemExit):
    sample.main([f"--workdir={tmp_path}", "--prompt=a", "--dtype=fp8"])
  assert "invalid choice: 'fp8'" in capsys.readouterr().err
