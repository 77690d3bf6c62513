"""Measures speed, compared with the device's measured limits.

  python -m videoar_jax.bench tokenizer --num_frames=1 --resolution=256 --num_bits=32
  python -m videoar_jax.bench sample --size=l --batch_size=4
  python -m videoar_jax.bench train --size=small
  python -m videoar_jax.bench train --config=configs/quickstart.py
  python -m videoar_jax.bench data --config=configs/quickstart.py --step_s=0.5
  python -m videoar_jax.bench all --out=speed --minutes=8

`tokenizer` measures a random network of the paper's size, or that of --tokenizer. `train` measures
the training step of a generator on latents: of a named size with clips of 17x128x128 pixels, or of
a config. The limit is the rate of large matrix products, measured in between, on the same device
with the same type. For `sample`, it includes reading the weights in each step, at the rate of
reading a large array. `data` reads the clips of a config's stage. `all` measures one device in a
few minutes, the most important first: limits, a training step, sampling in each type of weights,
attention by every backend, and the tokenizer, each with its error relative to float32. The table is
also in DIR/bench.md and DIR/bench.json, after every measurement.
"""

import argparse
import sys

from videoar_jax.evals import speed, speed_all
from videoar_jax.experiment.command_line import Parser, print_result
from videoar_jax.models.families import FAMILIES
from videoar_jax.nn.quantized import DTYPES
from videoar_jax.runtime.compilation_cache import use_compilation_cache

SIZES = FAMILIES["videoar"].sizes


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for user errors."""
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
  command.add_argument("--batch_size", type=int, default=1, help="clips per batch")
  command.add_argument("--repeats", type=int, default=5, help="measurements; reports the median")
  command.set_defaults(run=speed.tokenizer_table)
  text = "time to generate a clip's latents, with guidance"
  command = commands.add_parser("sample", help=text, description=text)
  _add_generator(command, batch_size=1, dtypes=DTYPES)
  command.set_defaults(run=speed.sample_table)
  text = "time of a generator's training step, and of its parts"
  command = commands.add_parser("train", help=text, description=text)
  _add_generator(command, batch_size=4, dtypes=DTYPES[:2])
  command.set_defaults(run=speed.training_table)
  text = "rate of reading clips by number of threads, and how long a run would wait for them"
  command = commands.add_parser("data", help=text, description=text)
  command.add_argument(
    "--config",
    required=True,
    default=argparse.SUPPRESS,
    help="config file, with its argument, whose clips are read",
  )
  command.add_argument("--stage", help="stage whose clips are read; default: the last one")
  command.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement")
  command.add_argument("--threads", type=int, nargs="+", default=[0, 1, 2, 4], help="to compare")
  command.add_argument(
    "--step_s",
    type=float,
    default=argparse.SUPPRESS,
    help="seconds of a training step; adds the share of time that a run waits to the table",
  )
  command.set_defaults(run=speed.data_table)
  text = "all that matters for speed on one device, in one table"
  command = commands.add_parser("all", help=text, description=text)
  command.add_argument(
    "--out", required=True, default=argparse.SUPPRESS, help="folder of bench.md and bench.json"
  )
  command.add_argument(
    "--minutes", type=float, default=8.0, help="time limit; what does not fit is skipped"
  )
  command.add_argument(
    "--size", default="l", help=f"of a network for 17x128x128 pixels: {', '.join(SIZES)}"
  )
  command.add_argument("--train_batch", type=int, default=32, help="clips of a training step")
  command.add_argument(
    "--sample_batches", type=int, nargs="+", default=[1, 64], help="clips that are sampled together"
  )
  command.add_argument(
    "--tokenizer_batch", type=int, default=8, help="clips that are encoded or decoded together"
  )
  command.set_defaults(run=_all_table)
  options = parser.parse_args(argv)
  return print_result(lambda: options.run(options))


def _all_table(options: argparse.Namespace) -> str:
  # A second run on a machine has more time for measurements.
  use_compilation_cache()
  return speed_all.all_table(options)


def _add_generator(
  command: argparse.ArgumentParser, *, batch_size: int, dtypes: tuple[str, ...]
) -> None:
  """Adds the flags for the generator and its measurement."""
  what = command.add_mutually_exclusive_group(required=True)
  what.add_argument(
    "--config",
    default=argparse.SUPPRESS,
    help="config file, with its argument, as configs/quickstart.py:size=small",
  )
  what.add_argument(
    "--size", choices=SIZES, default=argparse.SUPPRESS, help="of a network for 17x128x128 pixels"
  )
  command.add_argument(
    "--dtype",
    choices=dtypes,
    default=argparse.SUPPRESS,
    help="of activations, and for `sample` of weights; default: the config's, or float32",
  )
  command.add_argument("--batch_size", type=int, default=batch_size, help="clips per batch")
  command.add_argument("--repeats", type=int, default=5, help="measurements; reports the median")


if __name__ == "__main__":
  sys.exit(main())
