"""Generates clips from prompts with a trained model, or goes on from an image or a video.

  python -m videoar_jax.sample --workdir=runs/quickstart \\
    --prompt="a large red circle moves left" --num_samples=4 --out=samples
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

from videoar_jax.experiment.command_line import Parser, check_out, parse_resolution, print_result

_SHEET_ROWS = 64  # Of the first clips; more would be no picture.


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for what the user can mend."""
  options = _parser().parse_args(argv)
  return print_result(lambda: _run(options))


def _run(options: argparse.Namespace) -> str:
  """Samples; returns the files that it wrote, a line each.

  Raises:
    ValueError, FileNotFoundError: there is no model, or it cannot do what is asked.
    OSError: a file cannot be written.
  """
  prompts = _check(options)
  import videoar_jax
  from videoar_jax.experiment.load import find_stage
  from videoar_jax.runtime.compilation_cache import use_compilation_cache

  features = getattr(options, "text_features", None)
  frame_rate = find_stage(options.workdir, "generator", features)[1].data.frame_rate
  use_compilation_cache()
  resolution = getattr(options, "resolution", None)
  model = videoar_jax.load_model(
    options.workdir,
    dtype=options.dtype,
    text_features=features,
    resolution=None if resolution is None else parse_resolution(resolution),
  )
  settings = _settings(options, model, prompts, frame_rate)
  files = []
  out = Out(pathlib.Path(options.out), frame_rate)
  for names, texts, clips in _clips(options, model, prompts, settings):
    files += out.write(names, texts, clips)
  return "\n".join(str(file) for file in [*files, out.write_sheet()])


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
    help="instead, the number of a class, from 0: of text.classes, or of the folders of the run's "
    "data by name; can be repeated",
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
  add(
    "--resolution",
    default=unset,
    help="of a clip in pixels, as 64 or HEIGHTxWIDTH, for a model that was trained on several; "
    "default: that of its stage's data",
  )
  longer = parser.add_mutually_exclusive_group()
  longer.add_argument(
    "--overlap_frames",
    type=int,
    default=unset,
    help="for more frames than in training, and --multi_shot: encode so many last frames again "
    "and continue from them",
  )
  longer.add_argument(
    "--stream", action="store_true", help="write frames as png files as soon as they are ready"
  )
  add(
    "--multi_shot",
    action="store_true",
    help="the prompts are shots of one video: each continues from the last --overlap_frames (1 "
    "if not set) of the one before it, with as many frames again",
  )
  add(
    "--window",
    type=int,
    default=unset,
    help="earlier latent frames that a frame sees, for more frames than in training, too; default: "
    "as in training",
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
  if options.multi_shot and options.stream:
    raise ValueError("--multi_shot and --stream exclude each other; leave one out")
  check_out(pathlib.Path(options.out))
  if hasattr(options, "class_id"):
    features = getattr(options, "text_features", None)
    return [_class_name(options.workdir, number, features) for number in options.class_id]
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


def _class_name(workdir: str, number: int, text_features: str | None) -> str:
  """Returns the prompt of a class: a name of the config, or a folder of the data.

  Raises:
    ValueError: there are no classes, or none of that number.
  """
  from videoar_jax.data.sources.folder import class_names
  from videoar_jax.experiment.load import find_stage

  run, stage = find_stage(workdir, "generator", text_features)
  names, data = list(run.text.classes), stage.data
  if not names and data.source != "folder":
    raise ValueError(f"--class_id: the run in {workdir} knows no classes; use --prompt")
  if not names:
    folder = pathlib.Path(data.path).expanduser()
    if not folder.is_dir():
      raise ValueError(
        f"--class_id: {folder}, whose folders are the classes, is gone; use --prompt"
      )
    names = class_names(folder, data.split_file)
  if not 0 <= number < len(names):
    raise ValueError(f"--class_id={number}: the run in {workdir} has {len(names)} classes, from 0")
  return names[number]


def _check_guidance(guidance: str) -> None:
  """Checks a setting, but for the shape of a table, which the model knows."""
  from videoar_jax.models.videoar.guidance import guidance_table

  if guidance.endswith(".json"):
    try:
      json.loads(pathlib.Path(guidance).read_text())
    except OSError as error:
      raise ValueError(f"--guidance={guidance} cannot be read ({error.strerror})") from error
    except ValueError as error:
      raise ValueError(f"--guidance={guidance} is not valid JSON ({error})") from error
  else:
    guidance_table(guidance, 1, 1)


def _settings(options: argparse.Namespace, model, prompts: list[str], frame_rate: float) -> dict:
  """Returns what `Model.sample` is called with, checked before time is spent on the first clip.

  Raises:
    ValueError: the model cannot do what is asked.
  """
  num_frames = getattr(options, "num_frames", None)
  _check_frames(num_frames, model.tokenizer.config.temporal_stride)
  if (
    hasattr(options, "overlap_frames")
    and (num_frames or 0) <= model.num_frames
    and not options.multi_shot
  ):
    raise ValueError(
      f"--overlap_frames={options.overlap_frames} is for clips longer than the trained "
      f"{model.num_frames} frames, or --multi_shot; set --num_frames, or leave it out"
    )
  for prompt in prompts:
    model.text_encoder.encode(prompt)
  names = ("guidance", "temperature", "top_p", "window", "overlap_frames")
  settings = {name: getattr(options, name) for name in names if hasattr(options, name)}
  return settings | _given(options, model, num_frames, frame_rate)


def _clips(
  options: argparse.Namespace, model, prompts: list[str], settings: dict
) -> Iterator[tuple[list[str], list[str], UInt8[np.ndarray, "n f H W 3"]]]:
  """Yields names, descriptions and clips, a batch at a time.

  Clip i of a prompt is a function of the prompt, the seed and i, whatever else is asked for.
  """
  from videoar_jax.models.videoar.request import BATCH_SIZE

  num_frames, stems = getattr(options, "num_frames", None), _stems(prompts)
  if options.stream or options.multi_shot:
    groups = [prompts] if options.multi_shot else [[prompt] for prompt in prompts]
    for group, stem in zip(groups, stems, strict=False):
      names = [f"{stem}_{options.seed}_{i}" for i in range(options.num_samples)]
      if options.stream:
        frames = model.stream(group * options.num_samples, num_frames, options.seed, **settings)
        clips = _write_frames([pathlib.Path(options.out) / name for name in names], frames)
      else:
        clips = _shots(options, model, group, settings)
      yield names, [f"{' | '.join(group)}   #{i}" for i in range(options.num_samples)], clips
    return
  wanted = [
    (prompt, stem, i)
    for prompt, stem in zip(prompts, stems, strict=True)
    for i in range(options.num_samples)
  ]
  for batch in (wanted[i : i + BATCH_SIZE] for i in range(0, len(wanted), BATCH_SIZE)):
    texts, numbers = [prompt for prompt, *_ in batch], [number for *_, number in batch]
    clips = model.sample(texts, num_frames, options.seed, sample_ids=numbers, **settings)
    yield (
      [f"{stem}_{options.seed}_{number}" for _, stem, number in batch],
      [f"{prompt}   #{number}" for prompt, _, number in batch],
      clips,
    )


def _shots(options: argparse.Namespace, model, prompts: list[str], settings: dict) -> np.ndarray:
  """Returns clips of one shot after the other, each going on from the last frames before it."""
  first, *more = ([prompt] * options.num_samples for prompt in prompts)
  num_frames, overlap_frames = (
    getattr(options, "num_frames", None),
    settings.pop("overlap_frames", 1),
  )
  clips = model.sample(first, num_frames, options.seed, **settings)
  settings = {name: settings[name] for name in settings if name not in ("image", "video")}
  added = clips.shape[1] - 1
  for texts in more:
    length = clips.shape[1] + added
    clips = model.extend(
      clips, texts, length, options.seed, overlap_frames=overlap_frames, **settings
    )
  return clips


def _given(options, model, num_frames: int | None, frame_rate: float) -> dict[str, np.ndarray]:
  """Reads the image or the video to begin with.

  Raises:
    ValueError: it cannot be read, or does not fit; names both sizes.
  """
  from videoar_jax.data.conditioning import read_image, read_video

  if hasattr(options, "image"):
    image = read_image(options.image, model.resolution, is_resized=options.resize)
    return {"image": image}
  if hasattr(options, "video"):
    stride = model.tokenizer.config.temporal_stride
    # With another length than the trained one, the first window is to hold them all the same.
    longest = (
      model.num_frames if hasattr(options, "overlap_frames") else num_frames or model.num_frames
    )
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


def _check_frames(num_frames: int | None, stride: int) -> None:
  if num_frames is None or (num_frames >= 1 and (num_frames - 1) % stride == 0):
    return
  below = 1 + max(0, (num_frames - 1) // stride) * stride
  raise ValueError(
    f"--num_frames={num_frames} is not 1 + {stride} k; take {below} or {below + stride}"
  )


def _write_frames(
  folders: list[pathlib.Path], parts: Iterable[UInt8[np.ndarray, "n f H W 3"]]
) -> UInt8[np.ndarray, "n f H W 3"]:
  """Writes the frames of clips as they come, a folder each; returns them together.

  Raises:
    OSError: a file cannot be written.
  """
  from PIL import Image

  from videoar_jax.evals.media import write_png

  for folder in folders:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9]*.png"):
      old.unlink()  # Of a longer clip, they would follow on this one's.
  clips, at = [], 0
  for part in parts:
    for folder, frames in zip(folders, part, strict=True):
      for number, frame in enumerate(frames, start=at):
        write_png(folder / f"{number:05}.png", Image.fromarray(frame))
    at += part.shape[1]
    clips.append(part)
  return np.concatenate(clips, axis=1)


class Out:
  """A folder of clips; each file appears in it once it is whole."""

  def __init__(self, folder: pathlib.Path, frame_rate: float):
    self.folder, self.frame_rate = folder, frame_rate
    self._shown: list[np.ndarray] = []
    self._texts: list[str] = []

  def write(self, names: list[str], texts: list[str], clips: np.ndarray) -> list[pathlib.Path]:
    """Writes clips, and keeps the first ones for the sheet; returns the files.

    Raises:
      OSError: a file cannot be written.
    """
    from videoar_jax.evals.media import write_mp4

    self.folder.mkdir(parents=True, exist_ok=True)
    files = [self.folder / f"{name}.mp4" for name in names]
    for file, clip in zip(files, clips, strict=True):
      write_mp4(file, clip, self.frame_rate)
    num = _SHEET_ROWS - len(self._shown)
    self._shown += list(clips[:num])
    self._texts += texts[:num]
    return files

  def write_sheet(self) -> pathlib.Path:
    """Writes a picture of the first clips' frames, a row each; returns the file."""
    from videoar_jax.evals.media import contact_sheet, write_png

    path = self.folder / "contact_sheet.png"
    write_png(path, contact_sheet(np.stack(self._shown), self._texts))
    return path


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
