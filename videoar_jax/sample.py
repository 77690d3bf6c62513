"""Generates clips from prompts with a trained model, or goes on from an image or a video.

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
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8

from videoar_jax.command_line import Parser, check_out, print_result


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for what the user can mend."""
  options = _parser().parse_args(argv)
  return print_result(lambda: _run(options))


def _run(options: argparse.Namespace) -> str:
  """Samples; returns the files that it wrote, a line each."""
  prompts = _check(options)
  clips, frame_rate = _sample(options, prompts)
  return "\n".join(str(file) for file in _write(options, prompts, clips, frame_rate))


def _parser() -> argparse.ArgumentParser:
  parser = Parser(
    prog="python -m videoar_jax.sample",
    description=__doc__,
  )
  add = parser.add_argument
  # Without a default of None, since that would be shown as one.
  unset = argparse.SUPPRESS
  add("--workdir", required=True, default=unset, help="of the run that trained the model")
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument(
    "--prompt",
    default=unset,
    action="append",
    help="what to show; give it again for more prompts",
  )
  what.add_argument("--prompts_file", default=unset, help="UTF-8 text, a prompt a line")
  what.add_argument(
    "--class_id",
    type=int,
    default=unset,
    action="append",
    help="instead, the number of a folder of the run's data, from 0 by name; can be repeated",
  )
  given = parser.add_mutually_exclusive_group()
  given.add_argument("--image", default=unset, help="picture that clips begin with")
  given.add_argument(
    "--video", default=unset, help="video that clips begin with, read at the model's frame rate"
  )
  add(
    "--resize",
    action="store_true",
    help="make --image or --video fit: resize, crop around the centre, leave last frames out",
  )
  add("--num_samples", type=int, default=4, help="clips of each prompt")
  add("--out", default="samples", help="folder for the files; it is made if it is not there")
  add("--seed", type=int, default=0, help="other seeds give other clips")
  add(
    "--num_frames",
    type=int,
    default=unset,
    help="frames of a clip, given ones included, 1 + 4 k (for the usual tokenizer); default: as "
    "many as in training",
  )
  longer = parser.add_mutually_exclusive_group()
  longer.add_argument(
    "--reencode",
    type=int,
    default=unset,
    help="for more frames than in training: encode so many last frames anew and go on from them; "
    "default: decode on in one sequence",
  )
  longer.add_argument(
    "--stream", action="store_true", help="write frames as png files as soon as they are ready"
  )
  add(
    "--window",
    type=int,
    default=unset,
    help="earlier latent frames that a frame sees; default: as in training",
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
  add(
    "--text_features",
    default=unset,
    help="file of the prompts' features, for a model that was trained on such",
  )
  add(
    "--dtype",
    choices=("float32", "bfloat16"),
    default="float32",
    help="of the generator's weights and cache",
  )
  return parser


def _check(options: argparse.Namespace) -> list[str]:
  """Checks what needs no model, before seconds are spent on loading one; returns the prompts.

  Raises:
    ValueError: names the flag and the mend.
  """
  if options.num_samples < 1:
    raise ValueError(f"--num_samples={options.num_samples} must be at least 1")
  if not 0 <= options.seed < 2**32:
    raise ValueError(f"--seed={options.seed} must be in [0, 2^32)")
  if getattr(options, "window", 1) < 1:
    raise ValueError(f"--window={options.window} must be at least 1")
  temperature = getattr(options, "temperature", 1.0)
  if not (math.isfinite(temperature) and temperature >= 0):
    raise ValueError(f"--temperature={temperature} must be a number, 0 or more")
  if not 0 < getattr(options, "top_p", 1.0) <= 1:
    raise ValueError(f"--top_p={options.top_p} must be in (0, 1]")
  if hasattr(options, "guidance"):
    _check_guidance(options.guidance)
  if options.resize and not (hasattr(options, "image") or hasattr(options, "video")):
    raise ValueError("--resize: there is nothing to resize; give --image or --video")
  check_out(pathlib.Path(options.out))
  if hasattr(options, "class_id"):
    return [_class_name(options.workdir, number) for number in options.class_id]
  if hasattr(options, "prompts_file"):
    return _read_prompts(options.prompts_file)
  return options.prompt


def _read_prompts(path: str) -> list[str]:
  """Reads a file of prompts, a line each.

  Raises:
    ValueError: names the file, the line and the mend.
  """
  try:
    lines = pathlib.Path(path).read_bytes().splitlines()
  except OSError as error:
    raise ValueError(f"--prompts_file={path} cannot be read ({error.strerror})") from error
  if not lines:
    raise ValueError(f"--prompts_file={path} is empty; write a prompt a line")
  prompts = []
  for number, line in enumerate(lines, start=1):
    try:
      prompts.append(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
    except UnicodeDecodeError as error:
      where = f"--prompts_file={path}, line {number}"
      raise ValueError(f"{where}: byte {error.start + 1} is not UTF-8; save it as such") from None
    if not prompts[-1]:
      raise ValueError(f"--prompts_file={path}, line {number} is empty; remove it")
  return prompts


def _class_name(workdir: str, number: int) -> str:
  """Returns the caption of a class: a folder of the data that a run was trained on."""
  from videoar_jax.load import find_run

  data = find_run(workdir)[1].data
  if data.source != "folder":
    raise ValueError(f"--class_id: the run in {workdir} knows no classes; use --prompt")
  folder = pathlib.Path(data.path)
  if not folder.is_dir():
    raise ValueError(f"--class_id: {folder}, whose folders are the classes, is gone; use --prompt")
  names = sorted(path.name for path in folder.iterdir() if path.is_dir())
  if not 0 <= number < len(names):
    raise ValueError(f"--class_id={number}: there are {len(names)} folders in {folder}, from 0")
  return names[number]


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


def _sample(
  options: argparse.Namespace, prompts: list[str]
) -> tuple[UInt8[np.ndarray, "p n f H W 3"], float]:
  """Returns clips of each prompt and their frame rate.

  A prompt's clips do not depend on what else is asked for: each prompt starts from the seed.

  Raises:
    ValueError, FileNotFoundError: there is no model, or it cannot do what is asked.
  """
  import videoar_jax
  from videoar_jax.train.run import use_compilation_cache

  features = getattr(options, "text_features", None)
  frame_rate = _frame_rate(pathlib.Path(options.workdir), features)
  use_compilation_cache()
  model = videoar_jax.load_model(options.workdir, dtype=options.dtype, text_features=features)
  num_frames = getattr(options, "num_frames", None)
  _check_frames(num_frames, model.tokenizer.config.temporal_stride)
  for prompt in prompts:
    model.text_encoder.encode(prompt)  # All of them, before time is spent on the first.
  names = ("guidance", "temperature", "top_p", "window", "reencode")
  settings = {name: getattr(options, name) for name in names if hasattr(options, name)}
  settings |= _given(options, model, num_frames, frame_rate)
  clips = []
  for prompt, stem in zip(prompts, _stems(prompts), strict=True):
    batch = [prompt] * options.num_samples
    if options.stream:
      frames = model.stream(batch, num_frames, options.seed, **settings)
      clips.append(_write_frames(options, stem, frames))
    else:
      clips.append(model.sample(batch, num_frames, options.seed, **settings))
  return np.stack(clips), frame_rate


def _given(options, model, num_frames: int | None, frame_rate: float) -> dict[str, np.ndarray]:
  """Reads the image or the video to begin with.

  Raises:
    ValueError: it cannot be read, or does not fit; names both sizes.
  """
  from videoar_jax.data.given import read_image, read_video

  if hasattr(options, "image"):
    image = read_image(options.image, model.resolution, is_resized=options.resize)
    return {"image": image}
  if hasattr(options, "video"):
    stride = model.tokenizer.config.temporal_stride
    # With another length than the trained one, the first window is to hold them all the same.
    longest = model.num_frames if hasattr(options, "reencode") else num_frames or model.num_frames
    video = read_video(
      options.video,
      model.resolution,
      frame_rate,
      stride=stride,
      max_frames=max(1, longest - stride),
      is_resized=options.resize,
    )
    return {"video": video}
  return {}


def _frame_rate(path: pathlib.Path, text_features: str | None) -> float:
  """Returns the frame rate of the run that a workdir, or a checkpoint in it, belongs to."""
  from videoar_jax.load import find_run

  return find_run(path, text_features)[1].data.frame_rate


def _check_frames(num_frames: int | None, stride: int) -> None:
  if num_frames is None or (num_frames >= 1 and (num_frames - 1) % stride == 0):
    return
  below = 1 + max(0, (num_frames - 1) // stride) * stride
  raise ValueError(
    f"--num_frames={num_frames} is not 1 + {stride} k; take {below} or {below + stride}"
  )


def _write_frames(
  options: argparse.Namespace, stem: str, parts: Iterable[UInt8[np.ndarray, "n f H W 3"]]
) -> UInt8[np.ndarray, "n f H W 3"]:
  """Writes the frames of a prompt's clips as they come, a folder each; returns them together.

  Raises:
    OSError: a file cannot be written.
  """
  from PIL import Image

  from videoar_jax.evals.media import write_png

  clips, at = [], 0
  for part in parts:
    for i, frames in enumerate(part):
      folder = pathlib.Path(options.out) / f"{stem}_{options.seed}_{i}"
      folder.mkdir(parents=True, exist_ok=True)
      for number, frame in enumerate(frames, start=at):
        write_png(folder / f"{number:05}.png", Image.fromarray(frame))
    at += part.shape[1]
    clips.append(part)
  return np.concatenate(clips, axis=1)


def _write(
  options: argparse.Namespace, prompts: list[str], clips: np.ndarray, frame_rate: float
) -> list[pathlib.Path]:
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
    for stem, samples in zip(_stems(prompts), clips, strict=True):
      for i, clip in enumerate(samples):
        names.append(f"{stem}_{options.seed}_{i}.mp4")
        write_mp4(partial / names[-1], clip, frame_rate)
    names.append("contact_sheet.png")
    lines = [f"{prompt}   #{i}" for prompt in prompts for i in range(options.num_samples)]
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
