"""Settings of the compiler, and the programs that take them."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tasks import Task
from type_checks import stand_in

from videoar_jax.experiment import token_cache
from videoar_jax.parallel import compiler, programs
from videoar_jax.parallel.compiler import jitted
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.parallel.programs import Program
from videoar_jax.tokenizers.base import TokenizerFamily
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
  """Records who asks for options; those returned do not exist."""
  found = []

  def options(platform, **settings):
    found.append((platform, settings))
    return {"no_such_option": 1}

  for module in (compiler, programs, trainer, token_cache):
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


# Programs of modules, made when these are imported, and whether they decode scale by scale.
DECODING = ("start", "write_frame", "decode_frame", "begin_frame", "decode_scale", "end_frame")
MADE = {
  "models.videoar.stepper": dict.fromkeys(DECODING, True),
  "models.infinity_star.programs": dict.fromkeys(
    ("prompts_of", "read_prompts", "read_latents", "_run_scale", "<lambda>", "_score_clips"), False
  ),
  "tokenizers.coder": dict.fromkeys(("_encode", "_decode", "_encode_clip", "_decode_clip"), False),
  "tokenizers.bsq.tokenizer": {"quantize": False},
  "tokenizers.kl.coders": {"_encode_by_frame": False, "_decode_by_frame": False},
  "tokenizers.star.tokenizer": {"_moments_chunk": False, "_latents_of": False},
  "models.videoar.sampler": {"score": False},
  "models.nova.sampler": {"_score_clips": False},
  "models.infinity.sampler": {"_score_images": False},
}


@pytest.mark.parametrize("name", MADE)
def test_programs_of_modules_take_the_options(monkeypatch, name):
  """The module's code is run again, apart, with a `jitted` that notes what it is given."""
  importlib.import_module(f"videoar_jax.{name}")  # What it imports is imported as it is.
  made = {}

  def note(function, *, is_decoding=False, **settings):
    made[function.__name__] = is_decoding
    return function

  monkeypatch.setattr(compiler, "jitted", note)
  spec = importlib.util.find_spec(f"videoar_jax.{name}")
  spec.loader.exec_module(importlib.util.module_from_spec(spec))
  assert made == MADE[name]


def test_settings_of_jit_are_passed_on():
  """Of sums, the axis is static; the argument's memory is used again."""
  program = jitted(lambda x, *, axis: x + x.sum(axis), static_argnames="axis", donate_argnums=0)
  x = jnp.asarray(X)
  np.testing.assert_array_equal(program(x, axis=0), X + X.sum(0))
  assert x.is_deleted()


def test_programs_can_be_parts_of_others():
  """JAX refuses options there; these are not None outside of tests."""
  jax.config.update("jax_disable_most_optimizations", False)
  try:
    assert compiler.compiler_options("cpu") is not None
    program = jitted(add)
    np.testing.assert_array_equal(program(X), X + 1)
    np.testing.assert_array_equal(jax.jit(program)(X), X + 1)
    np.testing.assert_array_equal(jax.grad(lambda x: program(x).sum())(X), np.ones_like(X))
  finally:
    jax.config.update("jax_disable_most_optimizations", True)
