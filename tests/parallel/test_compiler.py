"""Settings of the compiler, and the programs that take them."""

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_tasks import Task
from type_checks import stand_in

from videoar_jax.experiment import token_cache
from videoar_jax.parallel import compiler, programs
from videoar_jax.parallel.compiler import jitted
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.parallel.programs import Program
from videoar_jax.tokenizers import coder
from videoar_jax.tokenizers.base import TokenizerFamily
from videoar_jax.tokenizers.coder import Coder
from videoar_jax.train import trainer
from videoar_jax.train.config import LoopConfig
from videoar_jax.train.optimizer import OptimizerConfig
from videoar_jax.train.state import Template
from videoar_jax.train.trainer import Trainer

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(("has_avx2_only", "keys"), [(False, 1), (True, 2)])
def test_compiler_options_are_valid_and_only_for_cpu(monkeypatch, has_avx2_only, keys):
  monkeypatch.setattr(compiler, "_has_avx2_only", lambda: has_avx2_only)
  assert compiler.compiler_options("cpu") is None  # Tests disable most optimizations.
  jax.config.update("jax_disable_most_optimizations", False)
  try:
    assert compiler.compiler_options("tpu", is_decoding=True) is None
    options = compiler.compiler_options("cpu", is_decoding=True)
    assert len(options) == keys and len(compiler.compiler_options("cpu")) == 1
    found = jax.jit(lambda x: x @ x.T, compiler_options=options)(X)
  finally:
    jax.config.update("jax_disable_most_optimizations", True)
  np.testing.assert_allclose(found, X @ X.T)


@pytest.fixture
def asked(monkeypatch):
  """What asked for options; these are none that the compiler knows."""
  found = []

  def options(platform, **settings):
    found.append((platform, settings))
    return {"no_such_option": 1}

  for module in (compiler, programs, coder, trainer, token_cache):
    monkeypatch.setattr(module, "compiler_options", options)
  return found


def add(x):
  return x + 1


@pytest.mark.parametrize("is_decoding", [False, True])
@pytest.mark.parametrize("make", [Program, jitted])
def test_programs_are_compiled_with_the_options(asked, make, is_decoding):
  program = make(add, is_decoding=is_decoding)
  assert not asked  # A backend is not chosen before the first call.
  with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
    program(X)
  assert asked == [("cpu", {"is_decoding": is_decoding})]


def test_training_is_compiled_with_the_options(asked):
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  config = LoopConfig(1, 2, OptimizerConfig(kind="adamw", warmup_steps=0))
  made = Trainer(Task(), config, mesh, seed=0)
  with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
    made.step(made.init(), {}, {"video": X[:, :2]}, made.key)
  assert asked == [("cpu", {})]


def test_encoding_is_compiled_with_the_options(asked):
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  family = stand_in(TokenizerFamily, encode_posterior=lambda module, video: video)
  template = stand_in(Template, module=lambda params: params)
  encode = token_cache._make_encode(family, template, mesh, np.dtype(np.float16))
  with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
    encode({}, X)
  assert asked == [("cpu", {})]


@pytest.mark.parametrize("name", ["_encode", "_decode", "_encode_chunk", "_decode_chunk"])
def test_coders_are_compiled_with_the_options(asked, monkeypatch, name):
  for function in ("_encode_clip", "_decode_clip", "_encode", "_decode"):
    monkeypatch.setattr(coder, function, add)
  with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
    getattr(Coder(nnx.Module()), name)(X)
  assert asked == [("cpu", {})]


def test_settings_of_jit_are_passed_on():
  program = jitted(lambda x, *, factor: x * factor, static_argnames="factor")
  np.testing.assert_array_equal(program(X, factor=3), 3 * X)
