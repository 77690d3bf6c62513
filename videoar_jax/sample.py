"""Generates clips from prompts with a trained model, or continues an image or a video.

  python -m videoar_jax.sample --workdir=runs/quickstart \\
    --prompt="a large red circle moves left" --num_samples=4 --out=samples
"""

import argparse
import dataclasses
import pathlib
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from videoar_jax.data.conditioning import read_image, read_last_frames, read_video
from videoar_jax.data.pipeline import DataConfig
from videoar_jax.data.sources.folder import class_names
from videoar_jax.evals.sample_files import Out, file_stems, write_frames
from videoar_jax.experiment import data_listing
from videoar_jax.experiment.command_line import (
  Parser,
  add_device_flags,
  check_out,
  device_settings,
  parse_resolution,
  print_result,
)
from videoar_jax.experiment.fields import attribute_docs, fields_of
from videoar_jax.experiment.load import find_run, find_stage, load_model
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.models.base import ClipwiseFamily, Family
from videoar_jax.models.families import FAMILIES
from videoar_jax.models.request import check_overlap
from videoar_jax.models.shots import sample_shots, sample_story
from videoar_jax.runtime.compilation_cache import use_compilation_cache
from videoar_jax.runtime.log_files import quiet_libraries
from videoar_jax.text.prompts import read_prompts


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for user errors."""
  options = _parser().parse_args(argv)
  return print_result(lambda: _run(options))


def _run(options: argparse.Namespace) -> str:
  """Samples; returns the files that it wrote, one per line.

  Raises:
    ValueError, FileNotFoundError: there is no model, or it does not support the request.
    OSError: a file cannot be written.
  """
  check_out(pathlib.Path(options.out))
  quiet_libraries()
  features = getattr(options, "text_features", None)
  run, stage = find_stage(options.workdir, "generator", features)
  prompts = _check(options, run, stage)
  use_compilation_cache()
  resolution = getattr(options, "resolution", None)
  model = load_model(
    options.workdir,
    **device_settings(options),
    text_features=features,
    resolution=None if resolution is None else parse_resolution(resolution),
  )
  settings = _settings(options, model, prompts, run, stage.data)
  files = []
  out = Out(pathlib.Path(options.out), stage.data.frame_rate)
  for names, texts, clips in _clips(options, model, prompts, settings):
    files += out.write(names, texts, clips)
  return "\n".join(str(file) for file in [*files, out.write_sheet()])


def _parser() -> argparse.ArgumentParser:
  parser = Parser(
    prog="python -m videoar_jax.sample",
    description=__doc__,
  )
  add = parser.add_argument
  # Instead of None, which --help would show as the default.
  unset = argparse.SUPPRESS
  add(
    "--workdir",
    "--model",
    required=True,
    default=unset,
    help="workdir of the run that trained the model, or a model's folder from `convert`",
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument(
    "--prompt",
    default=unset,
    action="append",
    help="text prompt; can be repeated",
  )
  what.add_argument("--prompts_file", default=unset, help="UTF-8 text file, one prompt per line")
  what.add_argument(
    "--class_id",
    type=int,
    default=unset,
    action="append",
    help="index of a class, from 0: in text.classes, or among the sorted folders of the run's "
    "data; can be repeated",
  )
  conditioning = parser.add_mutually_exclusive_group()
  conditioning.add_argument("--image", default=unset, help="image that clips start with")
  conditioning.add_argument(
    "--video", default=unset, help="video that clips start with, read at the model's frame rate"
  )
  add(
    "--resize",
    action="store_true",
    help="fit --image or --video to the model: resize, centre-crop, drop the last frames",
  )
  add("--num_samples", type=int, default=4, help="clips per prompt")
  add("--out", default="samples", help="folder for the files; created if missing")
  add("--seed", type=int, default=0, help="random seed")
  add(
    "--num_frames",
    type=int,
    default=unset,
    help="frames of a clip, including given ones, 1 + 4 k (for the usual tokenizer); default: as "
    "many as in training",
  )
  add(
    "--resolution",
    default=unset,
    help="of a clip in pixels, as 64 or HEIGHTxWIDTH, for a model trained on several; default: "
    "that of its stage's data",
  )
  longer = parser.add_mutually_exclusive_group()
  longer.add_argument(
    "--overlap_frames",
    type=int,
    default=unset,
    help="for more frames than in training, and --multi_shot: each window starts from this many "
    "last frames, encoded again",
  )
  longer.add_argument(
    "--stream", action="store_true", help="write frames as png files as soon as they are ready"
  )
  add(
    "--multi_shot",
    action="store_true",
    help="the prompts are shots of one video: each continues from the last --overlap_frames (1 "
    "if not set) frames of the previous shot, with equally many new frames",
  )
  add(
    "--interactive",
    action="store_true",
    help="the prompts are clips of one video, each of which goes on from the whole clip before and "
    "the very first frame, for InfinityStar's interactive model; the first one goes on from the "
    "last frames of --video, if it is given",
  )
  add(
    "--text_features",
    default=unset,
    help="file of the prompts' features, or folder of their text encoder, for a model trained on "
    "features",
  )
  add_device_flags(parser)
  _add_settings(parser)
  return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
  """Adds a flag for each setting of any family; which are valid depends on the run."""
  known = set()
  for name, family in FAMILIES.items():
    group = parser.add_argument_group(f"settings of {name}", "default: as in the run's config")
    texts = attribute_docs(family.sampling)
    for field in dataclasses.fields(family.sampling):
      if field.name not in known:
        # A text where families differ: which of them it is for is not known yet.
        kinds = {_kind_of(x, field.name) for x in FAMILIES.values() if _has(x, field.name)}
        kind = kinds.pop() if len(kinds) == 1 else str
        kind = kind if isinstance(kind, type) else str  # Sections are parsed when errors name them.
        # argparse interprets percent signs.
        text = texts.get(field.name, "").replace("%", "%%")
        group.add_argument(f"--{field.name}", type=kind, default=argparse.SUPPRESS, help=text)
      known.add(field.name)


def _has(family: Family, name: str) -> bool:
  return name in fields_of(family.sampling)


def _kind_of(family: Family, name: str) -> Callable[[str], Any]:
  """Returns what makes a family's setting of text: int, float, str, or a section's `parse`."""
  hint = typing.get_type_hints(family.sampling)[name]
  if dataclasses.is_dataclass(hint):
    return hint.parse
  return next(kind for kind in (int, float, str) if hint is kind or kind in typing.get_args(hint))


def _settings_of(options: argparse.Namespace) -> dict[str, Any]:
  """Returns the settings that flags set."""
  names = {name for family in FAMILIES.values() for name in fields_of(family.sampling)}
  return {name: value for name, value in vars(options).items() if name in names}


def _check_family(options: argparse.Namespace, family: Family) -> None:
  """Gives flags the types of a family's settings.

  Raises:
    ValueError: a flag belongs to another family, or its value is invalid.
  """
  for name in _settings_of(options).keys() - fields_of(family.sampling).keys():
    own = next(key for key, other in FAMILIES.items() if other is family)
    owner = next(key for key, other in FAMILIES.items() if _has(other, name))
    raise ValueError(f"--{name} is a setting of {owner}, but the run's family is {own}; remove it")
  for name, value in _settings_of(options).items():
    kind = _kind_of(family, name)
    try:
      setattr(options, name, kind(value))
    except ValueError as error:
      text = f"{name}={value} is not a number" if isinstance(kind, type) else error
      raise ValueError(f"--{text}") from None
  try:
    family.sampling(**_settings_of(options))
  except ValueError as error:
    raise ValueError(f"--{error}") from error


def _check(options: argparse.Namespace, run: RunConfig, stage: StageConfig) -> list[str]:
  """Checks flags before the model is loaded, which takes seconds; returns the prompts.

  Raises:
    ValueError: names the flag and the fix.
  """
  if options.num_samples < 1:
    raise ValueError(f"--num_samples={options.num_samples} must be at least 1")
  if not 0 <= options.seed < 2**32:
    raise ValueError(f"--seed={options.seed} must be in [0, 2^32)")
  _check_family(options, run.family)
  if options.resize and not (hasattr(options, "image") or hasattr(options, "video")):
    raise ValueError("--resize: there is nothing to resize; add --image or --video")
  chosen = [f"--{name}" for name in ("multi_shot", "interactive", "stream") if vars(options)[name]]
  if len(chosen) > 1:
    raise ValueError(f"{' and '.join(chosen)} exclude each other; leave one out")
  for name in ("num_frames", "overlap_frames"):
    if options.interactive and hasattr(options, name):
      raise ValueError(f"--{name}: clips of --interactive have a length of their own; remove it")
  if hasattr(options, "overlap_frames") and isinstance(run.family, ClipwiseFamily):
    try:
      num_frames, stride = stage.data.num_frames, run.tokenizer.temporal_stride
      fits = run.family.overlaps(run, num_frames)
      check_overlap(options.overlap_frames, num_frames, stride, fits)
    except ValueError as error:
      raise ValueError(f"--{error}") from None
  if hasattr(options, "class_id"):
    return [_class_name(options.workdir, run, stage, number) for number in options.class_id]
  if hasattr(options, "prompts_file"):
    return read_prompts(options.prompts_file)
  return options.prompt


def _class_name(workdir: str, run: RunConfig, stage: StageConfig, number: int) -> str:
  """Returns the prompt of a class: a name in the config, or a folder of the data.

  Raises:
    ValueError: there are no classes, or not that many.
  """
  data = stage.data
  names = list(run.text.classes) or data_listing.class_names(find_run(workdir)[0], run, data)
  if not names and data.source != "folder":
    raise ValueError(f"--class_id: the run in {workdir} has no classes; use --prompt")
  if not names:
    folder = pathlib.Path(data.path).expanduser()
    if not folder.is_dir():
      raise ValueError(
        f"--class_id: {folder}, whose folders are the classes, is missing; use --prompt"
      )
    names = class_names(folder, data.split_file)
  if not 0 <= number < len(names):
    raise ValueError(f"--class_id={number}: the run in {workdir} has {len(names)} classes, from 0")
  return names[number]


def _settings(
  options: argparse.Namespace, model, prompts: list[str], run: RunConfig, data: DataConfig
) -> dict:
  """Returns the keyword arguments of `Model.sample`, checked before the first clip is generated.

  Raises:
    ValueError: the model does not support the request.
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
  for flag, method, what in (
    ("stream", "stream", "makes images"),
    ("multi_shot", "extend", "makes images"),
    ("interactive", "interact", "has no interactive mode"),
  ):
    if getattr(options, flag) and not hasattr(model, method):
      raise ValueError(f"--{flag}: this model {what}; leave it out")
  settings = _settings_of(options)
  if not hasattr(model.text_encoder, "text_encoder"):  # Else settings add words to prompts.
    for prompt in prompts:
      model.text_encoder.encode(prompt)
  if hasattr(options, "overlap_frames"):
    settings["overlap_frames"] = options.overlap_frames
  return settings | _conditioning(options, model, num_frames, run, data)


def _clips(
  options: argparse.Namespace, model, prompts: list[str], settings: dict
) -> Iterator[tuple[list[str], list[str], UInt8[np.ndarray, "n f H W 3"]]]:
  """Yields names, descriptions and clips, one batch at a time.

  Clip i of a prompt depends only on the prompt, the seed and i.
  """
  num_frames, out = getattr(options, "num_frames", None), pathlib.Path(options.out)
  stems = file_stems(prompts, out, options.seed, options.num_samples)
  if options.stream or options.multi_shot or options.interactive:
    groups = [[prompt] for prompt in prompts] if options.stream else [prompts]
    for group, stem in zip(groups, stems, strict=False):
      names = [f"{stem}_{options.seed}_{i}" for i in range(options.num_samples)]
      if options.stream:
        frames = model.stream(group * options.num_samples, num_frames, options.seed, **settings)
        clips = write_frames([out / name for name in names], frames)
      else:
        videos = (group, options.num_samples)
        if options.interactive:
          clips = sample_story(model, *videos, options.seed, **settings)
        else:
          clips = sample_shots(model, *videos, num_frames, options.seed, **settings)
      yield names, [f"{' | '.join(group)}   #{i}" for i in range(options.num_samples)], clips
    return
  wanted = [
    (prompt, stem, i)
    for prompt, stem in zip(prompts, stems, strict=True)
    for i in range(options.num_samples)
  ]
  size = model.batch_size
  for batch in (wanted[i : i + size] for i in range(0, len(wanted), size)):
    texts, numbers = [prompt for prompt, *_ in batch], [number for *_, number in batch]
    clips = model.sample(texts, num_frames, options.seed, sample_ids=numbers, **settings)
    yield (
      [f"{stem}_{options.seed}_{number}" for _, stem, number in batch],
      [f"{prompt}   #{number}" for prompt, _, number in batch],
      clips,
    )


def _conditioning(
  options, model, num_frames: int | None, run: RunConfig, data: DataConfig
) -> dict[str, np.ndarray]:
  """Reads the image or the video that clips start with.

  Raises:
    ValueError: it cannot be read, or does not fit; names both sizes.
  """
  how = {"is_resized": options.resize, "background": data.background}
  if hasattr(options, "image"):
    return {"image": read_image(options.image, model.resolution, **how)}
  if hasattr(options, "video") and options.interactive:
    shape, num_frames = (model.resolution, data.frame_rate), model.clip_frames
    return {"video": read_last_frames(options.video, *shape, num_frames=num_frames, **how)}
  if hasattr(options, "video"):
    # With overlap_frames, the first window of trained length has to hold the given frames.
    longest = (
      model.num_frames if hasattr(options, "overlap_frames") else num_frames or model.num_frames
    )
    stride = model.tokenizer.config.temporal_stride
    lengths = range(1, max(1, longest - stride) + 1, stride)
    if isinstance(run.family, ClipwiseFamily):
      lengths = run.family.overlaps(run, longest) or (1,)
    video = read_video(
      options.video,
      model.resolution,
      data.frame_rate,
      lengths=lengths,
      **how,
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


if __name__ == "__main__":
  sys.exit(main())
