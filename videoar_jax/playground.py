"""Serves a page on which a trained model makes clips while you watch, and a run's progress.

python -m videoar_jax.playground --workdir=runs/quickstart
"""

import argparse
import sys

from videoar_jax.experiment.command_line import (
  Parser,
  add_device_flags,
  device_settings,
  print_result,
)


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for user errors."""
  parser = Parser(prog="python -m videoar_jax.playground", description=__doc__)
  parser.add_argument(
    "--workdir",
    required=True,
    default=argparse.SUPPRESS,
    help="workdir of a run, which the second tab shows while it trains; or a model's folder",
  )
  parser.add_argument(
    "--model",
    default=argparse.SUPPRESS,
    help="another workdir, checkpoint or model's folder to make clips with, such as while the "
    "run has no generator yet; default: that of --workdir",
  )
  parser.add_argument("--host", default="127.0.0.1", help="address to serve on; 0.0.0.0 for all")
  parser.add_argument("--port", type=int, default=7860, help="port to serve on; 0 for any")
  parser.add_argument(
    "--text_features",
    default=argparse.SUPPRESS,
    help="folder of the text encoder, for a model trained on features",
  )
  add_device_flags(parser)
  options = parser.parse_args(argv)
  return print_result(lambda: _run(options))


def _run(options: argparse.Namespace) -> str:
  """Serves until it is interrupted; returns the last line.

  Raises:
    ImportError: gradio is missing.
    ValueError, FileNotFoundError: there is no model, or the port cannot be used.
  """
  # Imports JAX, which `--help` does not need.
  from videoar_jax.page import server
  from videoar_jax.runtime.compilation_cache import use_compilation_cache
  from videoar_jax.runtime.log_files import quiet_libraries

  quiet_libraries()
  server.check_installed()
  view = server.find_view(options.workdir)
  listener = server.open_port(options.host, options.port)
  use_compilation_cache()
  studio, title = server.load_studio(
    getattr(options, "model", options.workdir),
    **device_settings(options),
    text_features=getattr(options, "text_features", None),
  )
  print("compiling; later starts take seconds", flush=True)
  studio.warm_up()
  print(f"{server.address(listener)} (Ctrl-C ends it)", flush=True)
  server.serve(studio, view, title, listener)
  return "the page has ended"


if __name__ == "__main__":
  sys.exit(main())
