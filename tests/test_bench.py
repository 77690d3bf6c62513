"""Counted arithmetic against the program's own, and the table."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from videoar_jax import bench
from videoar_jax.tokenizer.autoencoder import AutoencoderConfig, abstract_params, autoencoder_of
from videoar_jax.tokenizer.flops import decoder_flops, encoder_flops

CONFIG = AutoencoderConfig(
  num_bits=4,
  base_channels=4,
  multipliers=(1, 2, 2),
  num_encoder_blocks=1,
  num_decoder_blocks=2,
  strides=((1, 2), (2, 2)),
  num_groups=2,
  patch_size=2,
)


def convolutions(jaxpr) -> int:
  """Returns the operations of all convolutions in a program."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "conv_general_dilated":
      kernel = equation.invars[1].aval.shape
      total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel[:-1])
    for value in equation.params.values():
      if hasattr(value, "jaxpr"):
        total += convolutions(value.jaxpr)
  return total


@pytest.mark.parametrize("num_frames", [1, 3, 9])
def test_flops_are_those_of_the_program(num_frames):
  """On CPU the program skips the zero frames before a clip, as the count does."""
  size = (16, 24)

  def encode(params, video):
    return autoencoder_of(CONFIG, params).encoder(video)

  def decode(params, latents):
    return autoencoder_of(CONFIG, params).decoder(latents)

  video = jax.ShapeDtypeStruct((1, num_frames, *size, 3), jnp.float32)
  latents = jax.ShapeDtypeStruct((1, *CONFIG.latent_shape(num_frames, size), 4), jnp.float32)
  params = abstract_params(CONFIG)
  counted = convolutions(jax.make_jaxpr(encode)(params, video).jaxpr)
  assert encoder_flops(CONFIG, num_frames, size) == counted > 0
  counted = convolutions(jax.make_jaxpr(decode)(params, latents).jaxpr)
  assert decoder_flops(CONFIG, num_frames, size) == counted > 0


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--resolution=256x"], "HEIGHTxWIDTH"),
    (["--resolution=250x256"], "multiple of the tokenizer's stride 16"),
    (["--num_frames=4"], "1 + 4 k"),
    (["--repeats=0"], "--repeats=0"),
    (["--tokenizer=nowhere"], "nowhere does not exist"),
  ],
)
def test_bad_flags_are_named(flags, said, capsys):
  assert bench.main(["tokenizer", *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_flops_of_generation_are_those_of_its_matrices():
  """Each weight of a matrix serves each token once; attention sees what the layout shows."""
  from videoar_jax.videoar.layout import Layout
  from videoar_jax.videoar.model import Generator, GeneratorConfig

  config, layout = GeneratorConfig(3, 16, 4, 2, 6, 20, 5, 7), Layout(2, 3, ((1, 1), (2, 2)))
  make = lambda key: Generator(nnx.Rngs(params=key), config, layout)  # noqa: E731
  blocks = jax.eval_shape(make, jax.random.key(0)).blocks
  matrices = sum(math.prod(x.shape) for x in jax.tree.leaves(blocks) if len(x.shape) == 3)
  # Text sees 1 and 2 tokens; frame t sees the text, 5 t tokens before, and 1 or all 5 of its own.
  pairs = 3 + sum(1 * (2 + 5 * t + 1) + 4 * (2 + 5 * t + 5) for t in range(3))
  expected = 2 * matrices * layout.length + 3 * 4 * pairs * 4 * 6
  assert bench.generator_flops(config, layout) == expected


def test_sizes_are_those_of_the_configs():
  from configs.common import generator_size

  for name, values in bench.SIZES.items():
    fields = ("depth", "width", "num_heads", "num_kv_heads", "head_width", "mlp_width")
    assert tuple(generator_size(name)[field] for field in fields) == values


def test_sample_table(monkeypatch, capsys):
  """Of a network that is smaller still."""
  monkeypatch.setitem(bench.SIZES, "small", (1, 8, 1, 1, 8, 8))
  assert bench.main(["sample", "--repeats=1", "--batch_size=2", "--past=final"]) == 0
  lines = capsys.readouterr().out.splitlines()
  # A step for the prompt, one for each scale, and one for each frame that others see.
  assert "907 tokens in 35 steps, batches of 2" in lines[0]
  assert "GFLOP, 0.00 GiB of weights" in lines[-2]
  assert float(lines[-1].split()[-1]) > 1  # Nothing is faster than its floor.
  assert bench.main(["sample", "--batch_size=0"]) == 2
  assert "--batch_size=0 must be at least 1" in capsys.readouterr().err
