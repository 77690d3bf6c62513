"""References of `bench all`: they agree with what they check, and see what is wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.evals.speed_programs import (
  config_of_size,
  relative_error,
  sample_clips,
  teacher_forced_logits,
  without_zeros,
)
from videoar_jax.experiment.parse import finalize
from videoar_jax.models.families import FAMILIES
from videoar_jax.nn.quantized import with_dtype

SMALLEST = {"num_layers": 1, "d_model": 8, "num_heads": 1, "num_kv_heads": 1}
SMALLEST |= {"head_dim": 8, "mlp_dim": 8}


@pytest.fixture(scope="module")
def sampled():
  """A run, its stage, a network whose head is not zero, its text, and a clip of it."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(FAMILIES["videoar"].sizes, "tiny", SMALLEST)
    values = config_of_size("tiny")
  values["data"]["num_frames"] = 9  # Three latent frames.
  run = finalize(values)
  stage = run.generator_stages[-1]
  model = without_zeros(run.family.make_module(run)(jax.random.key(0)))
  # Larger, so that an input that differs shows.
  model.head.kernel[...] = 10 * model.head.kernel[...]
  text = jnp.ones((1, 1), jnp.int32)
  program = jax.jit(functools.partial(sample_clips, run, stage))
  return run, stage, model, text, program(model, text, jnp.zeros((), jnp.int32))


@pytest.fixture(scope="module")
def reference(sampled):
  """Returns the logits of given bits, of the network that is not rounded."""
  run, stage, model, text, _ = sampled
  program = jax.jit(functools.partial(teacher_forced_logits, run, stage))
  return lambda bits: program(model, text, bits)


def test_logits_of_cached_decoding_are_those_of_one_pass(sampled, reference):
  clip = sampled[-1]
  assert clip.logits.shape == (1, 3, 130, 48) and float(jnp.std(clip.logits)) > 0.1
  assert relative_error(clip.logits, reference(clip.bits)) < 1e-5


def test_logits_of_other_bits_differ(sampled, reference):
  clip = sampled[-1]
  bits = [1 - clip.bits[0], *clip.bits[1:]]
  assert relative_error(clip.logits, reference(bits)) > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rounded_weights_show_in_the_error(sampled, reference, dtype):
  run, stage, model, text, _ = sampled
  program = jax.jit(functools.partial(sample_clips, run, stage))
  clip = program(with_dtype(model, dtype), text, jnp.zeros((), jnp.int32))
  assert 1e-3 < relative_error(clip.logits, reference(clip.bits)) < 0.1


def test_samples_are_those_of_the_family(sampled):
  run, stage, model, text, clip = sampled
  program = jax.jit(functools.partial(run.family.sample_latents, run, stage))
  latents = program(model, text, jnp.zeros((), jnp.int32))
  # At random logits a few bits change with the order of sums.
  assert np.mean(np.asarray(latents == clip.quantized)) > 0.99


def test_relative_error():
  found, reference = {"a": jnp.array([3.0, 4.0]), "b": jnp.zeros(2)}, {"a": jnp.zeros(2)}
  reference["b"] = jnp.array([6.0, 8.0])
  assert relative_error(found, reference) == pytest.approx(np.sqrt(125) / 10)
  assert relative_error(reference, reference) == 0
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), found)
  assert relative_error(rounded, found) == 0  # Norms are of float32.


def test_only_zeros_are_filled():
  params = without_zeros({"a": jnp.zeros((64, 64)), "b": jnp.arange(3.0)})
  assert float(jnp.std(params["a"])) == pytest.approx(0.02, rel=0.1)
  assert (params["b"] == jnp.arange(3.0)).all()
