"""Measures speed, beside the machine's own limit.

  python -m videoar_jax.bench tokenizer --num_frames=1 --resolution=256 --num_bits=32

Without --tokenizer it is a random network of the paper's size. The limit is the rate of a large
matrix product, measured between the other measurements, on the same device.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

from videoar_jax.command_line import Parser, parse_resolution, print_result


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for what the user can mend."""
  parser = Parser(
    prog="python -m videoar_jax.bench",
    description=__doc__,
  )
  commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
  text = "time to encode and to decode a clip"
  command = commands.add_parser("tokenizer", help=text, description=text)
  command.add_argument(
    "--tokenizer",
    default=argparse.SUPPRESS,
    help="workdir, checkpoint or converted tokenizer to measure",
  )
  command.add_argument("--num_bits", type=int, default=32, help="of the random network")
  command.add_argument("--num_frames", type=int, default=17, help="frames of a clip")
  command.add_argument("--resolution", default="256", help="in pixels, as 256 or HEIGHTxWIDTH")
  command.add_argument("--batch_size", type=int, default=1, help="clips at a time")
  command.add_argument("--repeats", type=int, default=5, help="measurements; the median counts")
  options = parser.parse_args(argv)
  return print_result(lambda: tokenizer_table(options))


def tokenizer_table(options: argparse.Namespace) -> str:
  """Measures a tokenizer; returns the table.

  Raises:
    ValueError: a flag is impossible, or there is no tokenizer.
  """
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from videoar_jax.load import load_tokenizer
  from videoar_jax.nn.layers import count_parameters
  from videoar_jax.tokenizer.autoencoder import Autoencoder, AutoencoderConfig
  from videoar_jax.tokenizer.flops import decoder_flops, encoder_flops

  resolution = parse_resolution(options.resolution)
  for name in ("batch_size", "repeats", "num_frames"):
    if getattr(options, name) < 1:
      raise ValueError(f"--{name}={getattr(options, name)} must be at least 1")
  if hasattr(options, "tokenizer"):
    module = load_tokenizer(options.tokenizer).autoencoder
  else:
    config = AutoencoderConfig(num_bits=options.num_bits)
    module = jax.jit(lambda key: Autoencoder(nnx.Rngs(params=key), config))(jax.random.key(0))
  config = module.config
  b, f = options.batch_size, options.num_frames
  latent_shape = config.latent_shape(f, resolution)
  video = jax.random.uniform(jax.random.key(1), (b, f, *resolution, 3), minval=-1.0)
  latents = jax.random.normal(jax.random.key(2), (b, *latent_shape, config.num_bits))

  side = 2048
  matrix = jax.random.normal(jax.random.key(3), (side, side))
  product = 2 * side**3 / _seconds(jnp.dot, matrix, matrix, repeats=options.repeats)
  # Jitted once each; the module is an argument, so that its weights are no constants.
  encode = _seconds(lambda m, x: m.encoder(x), module, video, repeats=options.repeats)
  decode = _seconds(lambda m, x: m.decoder(x), module, latents, repeats=options.repeats)
  product = max(product, 2 * side**3 / _seconds(jnp.dot, matrix, matrix, repeats=options.repeats))

  device = jax.devices()[0]
  lines = [
    f"{f} frames of {resolution[0]}x{resolution[1]}, batches of {b}, float32, on "
    f"one device, {device.device_kind}",
    f"{count_parameters(module):,} parameters, {config.num_bits} bits, latent "
    f"{'x'.join(map(str, latent_shape))}",
    f"a matrix product of {side} a side: {product / 1e9:,.0f} GFLOP/s",
    "",
    "          s a clip      pixels/s   GFLOP a clip   GFLOP/s  of the limit",
  ]
  flops = (encoder_flops(config, f, resolution), decoder_flops(config, f, resolution))
  parts = {
    "encode": (encode / b, flops[0]),
    "decode": (decode / b, flops[1]),
    "both": ((encode + decode) / b, sum(flops)),
  }
  for name, (seconds, operations) in parts.items():
    rate, pixels = operations / seconds, f * resolution[0] * resolution[1] / seconds
    lines.append(
      f"{name:8}{seconds:10.3f}{pixels:14,.0f}{operations / 1e9:15.1f}{rate / 1e9:10,.0f}"
      f"{rate / product:14.0%}"
    )
  return "\n".join(lines)


def _seconds(function: Callable, *arguments, repeats: int) -> float:
  """Returns the median time of a call, compiled before."""
  import jax

  compiled = jax.jit(function).lower(*arguments).compile()
  jax.block_until_ready(compiled(*arguments))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    times.append(time.perf_counter() - start)
  return statistics.median(times)


if __name__ == "__main__":
  sys.exit(main())
