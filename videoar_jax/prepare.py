"""Prepares videos and images for training: short clips of a bounded size, in shards.

  python -m videoar_jax.prepare FOLDER --out=SHARDS
  python -m videoar_jax.prepare clips.jsonl --filter="score > 5" --out=SHARDS
  python -m videoar_jax.prepare "gs://bucket/*/*.mp4" --out=gs://bucket/shards --runner=dataflow ...

Then train with --config.data.source=shards --config.data.path=SHARDS. Captions come from a folder
(lists, text files, otherwise the folders' names) or from an index (.jsonl, .parquet), whose other
fields are kept. The same command resumes with the shards that are missing.

With --runner=direct, dataflow, flink, spark, or another runner of Apache Beam, further flags are
Beam's, as --NAME=VALUE.
"""

import argparse
import dataclasses
import logging
import os
import re
import sys
from pathlib import Path

from videoar_jax.data.clip_encoding import Settings
from videoar_jax.data.media.colour import Colour
from videoar_jax.data.prepare import Runner, local_runner, prepare
from videoar_jax.data.sources import index, remote
from videoar_jax.experiment.command_line import Parser, check_out, print_result


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for user errors."""
  parser = Parser(prog="python -m videoar_jax.prepare", description=__doc__)
  help = "folder of videos and images, an index, or a quoted pattern of files; may be a URL"
  parser.add_argument("input", metavar="INPUT", help=help)
  parser.add_argument("--out", required=True, help="folder or URL for the shards")
  parser.add_argument("--filter", help="keeps these entries of an index, as data.filter")
  parser.add_argument("--runner", default="local", help="what does the work: local, or Beam's")
  help = "parallel processes of --runner=local; default: one a core"
  parser.add_argument("--num_processes", type=int, help=help)
  texts = {
    "clip_s": "seconds of a clip; longer videos are split",
    "min_s": "seconds of the shortest clip to keep",
    "short_side": "maximum of the shorter side in pixels",
    "frame_rate": "frames per second; default: each file's own",
    "keyframe_every": "frames between key frames: fewer mean faster reading and larger files",
    "quality": "constant rate factor of H.264: 0 is lossless, 51 is worst",
    "files_per_shard": "files in a shard",
    "background": "colour behind transparent pixels, as RED,GREEN,BLUE",
  }
  for field in dataclasses.fields(Settings):
    kind = {int: int, Colour: _colour}.get(field.type, float)
    parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=texts[field.name])
  options, others = parser.parse_known_args(argv)
  if others and options.runner == "local":
    parser.error(f"unrecognized arguments: {' '.join(others)}")

  def run() -> str:
    if not remote.is_url(options.out):
      check_out(Path(options.out).expanduser())
    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(options, name) for name in names})
    runner = _make_runner(options, others)
    return prepare(options.input, options.out, settings, runner, options.filter)

  return print_result(run, uses_jax=False)


def _colour(text: str) -> Colour:
  parts = re.fullmatch(r" *(\d+) *, *(\d+) *, *(\d+) *", text)
  values = tuple(map(int, parts.groups())) if parts else ()
  if not parts or max(values) > 255:
    raise argparse.ArgumentTypeError(f"{text!r} is not RED,GREEN,BLUE, each 0 to 255")
  return values


def _make_runner(options: argparse.Namespace, flags: list[str]) -> Runner:
  name = options.runner
  if name == "local":
    given = options.num_processes
    return local_runner((os.cpu_count() or 1) if given is None else given)
  if options.num_processes is not None:
    raise ValueError(
      f"--num_processes is for --runner=local; --runner={name} has flags of its own, such as "
      "--direct_num_workers or --max_num_workers"
    )
  if name.lower().startswith("dataflow"):
    _check_is_reachable(options)
  try:
    from videoar_jax.data.beam import beam_runner  # Not all installations have it.
  except ModuleNotFoundError as error:
    if error.name != "apache_beam":
      raise
    raise ValueError(
      f"--runner={name} needs Apache Beam: pip install -e '.[beam]'; --runner=local "
      "needs no more than this machine"
    ) from error
  if not name.lower().startswith("direct"):
    logging.basicConfig(level=logging.INFO)  # Tells the job's address and progress.
  return beam_runner(name, flags)


def _check_is_reachable(options: argparse.Namespace) -> None:
  # An index is read here, and may have URLs.
  places = {"--out": options.out}
  if not options.input.endswith(index.EXTENSIONS):
    places["INPUT"] = options.input
  for name, place in places.items():
    if not remote.is_url(place):
      raise ValueError(
        f"{name}={place} is on this machine, which workers of --runner={options.runner} cannot "
        "reach; name a URL such as gs://bucket/folder"
      )


if __name__ == "__main__":
  sys.exit(main())
