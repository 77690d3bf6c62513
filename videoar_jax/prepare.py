"""Prepares videos and images for training: short clips of a bounded size, in shards.

  python -m videoar_jax.prepare FOLDER --out=SHARDS
  python -m videoar_jax.prepare clips.jsonl --filter="score > 5" --out=SHARDS

Then train with --config.data.source=shards --config.data.path=SHARDS. Captions come from a folder
(lists, text files, otherwise the folders' names) or from an index (.jsonl, .parquet), whose other
fields are kept. The same command resumes after the last complete shard.
"""

import dataclasses
import os
import sys
from pathlib import Path

from videoar_jax.data.prepare import Settings, prepare
from videoar_jax.experiment.command_line import Parser, check_out, print_result


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for user errors."""
  parser = Parser(prog="python -m videoar_jax.prepare", description=__doc__)
  parser.add_argument("input", metavar="INPUT", help="folder of videos and images, or an index")
  parser.add_argument("--out", required=True, type=Path, help="folder for the shards")
  parser.add_argument("--filter", help="keeps these entries of an index, as data.filter")
  processes = os.cpu_count() or 1
  parser.add_argument("--num_processes", type=int, default=processes, help="parallel processes")
  texts = {
    "clip_s": "seconds of a clip; longer videos are split",
    "min_s": "seconds of the shortest clip to keep",
    "short_side": "maximum of the shorter side in pixels",
    "frame_rate": "frames per second; default: each file's own",
    "keyframe_every": "frames between key frames: fewer mean faster reading and larger files",
    "quality": "constant rate factor of H.264: 0 is lossless, 51 is worst",
    "files_per_shard": "files in a shard",
  }
  for field in dataclasses.fields(Settings):
    kind = int if field.type is int else float
    parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=texts[field.name])
  options = parser.parse_args(argv)

  def run() -> str:
    check_out(options.out)
    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(options, name) for name in names})
    return prepare(options.input, options.out, settings, options.num_processes, options.filter)

  return print_result(run, uses_jax=False)


if __name__ == "__main__":
  sys.exit(main())
