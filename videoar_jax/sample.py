"""Generates clips from prompts with a trained model.

  python -m videoar_jax.sample --workdir=runs/quickstart \\
    --prompt="a large red circle moves left" --num_samples=4 --out=samples
"""

import argparse
import json
import math
import pathlib
import shutil
import sys
import tempfile

import numpy as np

from videoar_jax.command_line import Parser, check_out, print_result


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for what the user can mend."""
  options = _parser().parse_args(argv)
  return print_result(lambda: _run(options))


def _run(options: argparse.Namespace) -> str:
  """Samples; returns the files that it wrote, a line each."""
  _check(options)
  clips, frame_rate = _sample(options)
  return "\n".join(str(file) for file in _write(options, clips, frame_rate))


def _parser() -> argparse.ArgumentParser:
  parser = Parser(
    prog="python -m videoar_jax.sample",
    description=__doc__,
  )
  add = parser.add_argument
  # Without a default of None, since that would be shown as one.
  unset = argparse.SUPPRESS
  add("--workdir", required=True, default=unset, help="of the run that trained the model")
  add(
    "--prompt",
    required=True,
    default=unset,
    action="append",
    help="what to show; give it again for more prompts",
  )
  add("--num_samples", type=int, default=4, help="clips of each prompt")
  add("--out", default="samples", help="folder for the files; it is made if it is not there")
  add("--seed", type=int, default=0, help="other seeds give other clips")
  add(
    "--num_frames",
    type=int,
    default=unset,
    help="frames of a clip, 1 + 4 k (for the usual tokenizer); default: as many as in training",
  )
  add(
    "--guidance",
    default=unset,
    help="how strongly to follow the prompt: a number, constant:NUMBER, ucf101, t2v, or a .json "
    "file with a table [latent frame, scale]; default: as in the run's config",
  )
  add(
    "--temperature",
    type=float,
    default=unset,
    help="of the draws; 0 takes the likelier value of each bit; default: as in the run's config",
  )
  add(
    "--top_p",
    type=float,
    default=unset,
    help="drop a bit's value of probability <= 1 - top_p; default: as in the run's config",
  )
  return parser


def _check(options: argparse.Namespace) -> None:
  """Checks what needs no model, before seconds are spent on loading one.

  Raises:
    ValueError: names the flag and the mend.
  """
  if options.num_samples < 1:
    raise ValueError(f"--num_samples={options.num_samples} must be at least 1")
  if not 0 <= options.seed < 2**32:
    raise ValueError(f"--seed={options.seed} must be in [0, 2^32)")
  temperature = getattr(options, "temperature", 1.0)
  if not (math.isfinite(temperature) and temperature >= 0):
    raise ValueError(f"--temperature={temperature} must be a number, 0 or more")
  if not 0 < getattr(options, "top_p", 1.0) <= 1:
    raise ValueError(f"--top_p={options.top_p} must be in (0, 1]")
  if hasattr(options, "guidance"):
    _check_guidance(options.guidance)
  check_out(pathlib.Path(options.out))


def _check_guidance(guidance: str) -> None:
  """Checks a setting, but for the shape of a table, which the model knows."""
  from videoar_jax.videoar.guidance import guidance_table

  if guidance.endswith(".json"):
    try:
      json.loads(pathlib.Path(guidance).read_text())
    except OSError as error:
      raise ValueError(f"--guidance={guidance} cannot be read ({error.strerror})") from error
    except ValueError as error:
      raise ValueError(f"--guidance={guidance} is not valid JSON ({error})") from error
  else:
    guidance_table(guidance, 1, 1)


def _sample(options: argparse.Namespace) -> tuple[np.ndarray, float]:
  """Returns clips [prompt, sample, f, H, W, 3] and their frame rate.

  A prompt's clips do not depend on what else is asked for: each prompt starts from the seed.

  Raises:
    ValueError, FileNotFoundError: there is no model, or it cannot do what is asked.
  """
  import videoar_jax
  from videoar_jax.train.run import use_compilation_cache

  frame_rate = _frame_rate(pathlib.Path(options.workdir))
  use_compilation_cache()
  model = videoar_jax.load_model(options.workdir)
  num_frames = getattr(options, "num_frames", None)
  _check_frames(num_frames, model.tokenizer.config.temporal_stride)
  for prompt in options.prompt:
    model.text_encoder.encode(prompt)  # All of them, before time is spent on the first.
  names = ("guidance", "temperature", "top_p")
  settings = {name: getattr(options, name) for name in names if hasattr(options, name)}
  clips = [
    model.sample([prompt] * options.num_samples, num_frames, options.seed, **settings)
    for prompt in options.prompt
  ]
  return np.stack(clips), frame_rate


def _frame_rate(path: pathlib.Path) -> float:
  """Returns the frame rate of the run that a workdir, or a checkpoint in it, belongs to."""
  from videoar_jax.load import find_run

  return find_run(path)[1].data.frame_rate


def _check_frames(num_frames: int | None, stride: int) -> None:
  if num_frames is None or (num_frames >= 1 and (num_frames - 1) % stride == 0):
    return
  below = 1 + max(0, (num_frames - 1) // stride) * stride
  raise ValueError(
    f"--num_frames={num_frames} is not 1 + {stride} k; take {below} or {below + stride}"
  )


def _write(options: argparse.Namespace, clips: np.ndarray, frame_rate: float) -> list[pathlib.Path]:
  """Writes a file for each clip and a sheet of all; either all of them or none.

  Raises:
    OSError: a file cannot be written.
  """
  from videoar_jax.evals.media import contact_sheet, write_mp4, write_png

  out = pathlib.Path(options.out)
  out.mkdir(parents=True, exist_ok=True)
  # On the same disk as the folder, so that each file can be moved in one step.
  partial = pathlib.Path(tempfile.mkdtemp(prefix=".partial_", dir=out))
  try:
    names = []
    for stem, samples in zip(_stems(options.prompt), clips, strict=True):
      for i, clip in enumerate(samples):
        names.append(f"{stem}_{options.seed}_{i}.mp4")
        write_mp4(partial / names[-1], clip, frame_rate)
    names.append("contact_sheet.png")
    lines = [f"{prompt}   #{i}" for prompt in options.prompt for i in range(options.num_samples)]
    write_png(partial / names[-1], contact_sheet(clips.reshape(-1, *clips.shape[2:]), lines))
    return [(partial / name).replace(out / name) for name in names]
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _stems(prompts: list[str]) -> list[str]:
  """Returns a file name for each prompt; those that would share one are numbered."""
  from videoar_jax.evals.media import slug

  stems: list[str] = []
  for prompt in prompts:
    stem, number = slug(prompt), 2
    while stem in stems:
      stem, number = f"{slug(prompt)}-{number}", number + 1
    stems.append(stem)
  return stems


if __name__ == "__main__":
  sys.exit(main())
