"""Evaluates a trained run on test clips.

  python -m videoar_jax.evaluate --workdir=runs/quickstart --suite=reconstruction --out=evaluation

encodes and decodes test clips, prints a table, and writes reconstruction.json, reconstruction.mp4
(original | reconstruction) and reconstruction.png. With --suite=generation it generates clips for
the captions of test clips, and writes generation.json, generation.mp4 (original | generated),
generation.png, and drift.png for clips four times as long as in training; or, with --protocol, what
papers report on UCF-101. LPIPS and FVD need converted weights: see `python -m videoar_jax.convert
--help`. With --suite=vbench it writes the clips that VBench's evaluator takes, and resumes; then
--read=RESULTS.json prints the scores that VBench found. See docs/evaluation.md.
"""

import argparse
import pathlib
import sys

from videoar_jax.evals.protocols import PROTOCOLS
from videoar_jax.experiment.command_line import (
  Parser,
  add_device_flags,
  check_out,
  print_result,
)
from videoar_jax.interop import weights


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for user errors."""
  options = _parser().parse_args(argv)
  return print_result(lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> str:
  """Runs a suite; returns the files that it wrote, one per line."""
  _check(options)
  out = pathlib.Path(options.out)
  check_out(out)
  from videoar_jax.parallel import processes

  processes.start(options.distributed)
  # JAX reads environment variables when imported.
  from videoar_jax.evals import suites
  from videoar_jax.runtime.compilation_cache import use_compilation_cache
  from videoar_jax.runtime.log_files import quiet_libraries

  quiet_libraries()
  use_compilation_cache()
  text, write = suites.SUITES[options.suite](options)
  files = []
  if processes.is_first():
    print(text)
    files = write(out)
  processes.wait_for_all("the evaluation is written")
  return "\n".join(map(str, files))


def _parser() -> argparse.ArgumentParser:
  parser = Parser(
    prog="python -m videoar_jax.evaluate",
    description=__doc__,
  )
  add = parser.add_argument
  # Instead of None, which --help would show as the default.
  unset = argparse.SUPPRESS
  add(
    "--workdir",
    "--model",
    default=unset,
    help="workdir of a run, one of its checkpoints, or folder of a converted model or tokenizer",
  )
  add(
    "--suite",
    required=True,
    default=unset,
    choices=("generation", "reconstruction", "vbench"),
    help="what to measure",
  )
  add(
    "--data",
    default=unset,
    help='"sprites", or a folder of videos, whose test split is used; default: the run\'s data',
  )
  add(
    "--num_clips",
    type=int,
    default=unset,
    help="number of clips; default: 256, the least that FVD takes, or the protocol's; with fewer, "
    "a protocol's scores are not comparable",
  )
  add(
    "--protocol",
    default="own",
    choices=("own", *PROTOCOLS),
    help="for --suite=generation: how clips are compared, see docs/evaluation.md",
  )
  add(
    "--split_file",
    default=unset,
    help="UCF-101's trainlist01.txt, with testlist01.txt and classInd.txt beside it; default: as "
    "in the run's config",
  )
  add("--num_frames", type=int, default=unset, help="of a clip; default: the run's")
  add(
    "--resolution",
    default=unset,
    help="of a clip in pixels, as 64 or HEIGHTxWIDTH; default: as in the run's config",
  )
  add("--frame_rate", type=float, default=unset, help="frames per second; default: the run's")
  add(
    "--clips_per_file",
    type=int,
    default=unset,
    help="clips per file, such as 100 for few long videos; they may overlap; default: as in the "
    "run's config",
  )
  for name in ("lpips", "i3d"):
    add(
      f"--{name}", default=unset, help=f"converted weights; default: {weights.default_path(name)}"
    )
  add(
    "--num_long_clips",
    type=int,
    default=32,
    help="for --suite=generation: number of clips of four times the length; 0 for none",
  )
  add(
    "--text_features",
    default=unset,
    help="for --suite=generation: file of the captions' features, or folder of their text encoder, "
    "for a model trained on features; default: as in the run's config",
  )
  long = parser.add_mutually_exclusive_group()
  long.add_argument(
    "--window",
    type=int,
    default=unset,
    help="for long clips: generate one sequence, in which a frame sees this many earlier latent "
    "frames",
  )
  long.add_argument(
    "--overlap_frames",
    type=int,
    default=unset,
    help="for long clips: last frames from which the next window starts; default: half a clip",
  )
  vbench = parser.add_argument_group("VBench", "for --suite=vbench")
  vbench.add_argument(
    "--dimensions",
    default=unset,
    help="dimensions to make clips for, joined by commas; default: all",
  )
  vbench.add_argument(
    "--vbench_info",
    default=unset,
    help="VBench_full_info.json; default: that of the installed package vbench",
  )
  vbench.add_argument("--seed", type=int, default=0, help="random seed of the clips")
  vbench.add_argument(
    "--read", default=unset, help="VBench's own results, ..._eval_results.json, to print"
  )
  add_device_flags(parser)
  add(
    "--distributed",
    action="store_true",
    help="this is one of several processes that share --mesh, see docs/distributed.md",
  )
  add("--out", default="evaluation", help="folder for the files; created if missing")
  return parser


def _check(options: argparse.Namespace) -> None:
  """Checks flags that need no model.

  Raises:
    ValueError: names the flag and the fix.
  """
  for name in ("dimensions", "vbench_info", "read"):
    if hasattr(options, name) and options.suite != "vbench":
      raise ValueError(f"--{name} is for --suite=vbench; remove it")
  if options.protocol != "own":
    if options.suite != "generation":
      raise ValueError(f"--protocol={options.protocol} is for --suite=generation; remove it")
    fixed = ("num_frames", "frame_rate", "clips_per_file", "window", "overlap_frames")
    for name in fixed:
      if hasattr(options, name):
        raise ValueError(f"--{name}: --protocol={options.protocol} fixes the clips; remove it")
  if not hasattr(options, "workdir") and not hasattr(options, "read"):
    raise ValueError("--workdir is missing; name the workdir of a run, or the folder of a model")
  if getattr(options, "num_clips", 1) < 1:
    raise ValueError(f"--num_clips={options.num_clips} must be at least 1")
  if not 0 <= options.seed < 2**32:
    raise ValueError(f"--seed={options.seed} must be in [0, 2^32)")


if __name__ == "__main__":
  sys.exit(main())
