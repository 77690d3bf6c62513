"""Evaluates a trained run on test clips.

  python -m videoar_jax.evaluate --workdir=runs/quickstart --suite=reconstruction --out=evaluation

encodes and decodes test clips, prints a table, and writes reconstruction.json, reconstruction.mp4
(original | reconstruction) and reconstruction.png. With --suite=generation it generates clips for
the captions of test clips, and writes generation.json, generation.mp4 (original | generated),
generation.png, and drift.png for clips four times as long as in training. LPIPS and FVD need
converted weights: see `python -m videoar_jax.convert --help`.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import re
import sys
import time

from videoar_jax.experiment.command_line import (
  Parser,
  add_device_flags,
  check_out,
  device_settings,
  parse_resolution,
  print_result,
)
from videoar_jax.interop import hub, weights

# Fields of the run's own data that other sources may refuse; most are of training clips alone.
_OTHER_DATA = {
  **{"split_file": None, "filter": None, "stored_frame_rate": None, "frame_rates": ()},
  **{"is_flipped": False, "is_randomly_cropped": False},
  **{"p_drop_caption": 0.0, "p_short_caption": 0.0},
}


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for user errors."""
  options = _parser().parse_args(argv)
  return print_result(lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> str:
  """Runs a suite; returns the files that it wrote, one per line."""
  if options.num_clips < 1:
    raise ValueError(f"--num_clips={options.num_clips} must be at least 1")
  check_out(pathlib.Path(options.out))
  from videoar_jax.parallel import processes

  processes.start(options.distributed)
  result, found, table, write = SUITES[options.suite](options)
  files = []
  if processes.is_first():
    data = result["data"]
    if data["num_clips"] < options.num_clips:
      print(f"note: {options.num_clips} clips were asked for, {data['path']} has no more")
    print(table(result))
    files = write(pathlib.Path(options.out), result, found)
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
    required=True,
    default=unset,
    help="workdir of a run, one of its checkpoints, or folder of a converted model or tokenizer",
  )
  add("--suite", required=True, default=unset, choices=sorted(SUITES), help="what to measure")
  add(
    "--data",
    default=unset,
    help='"sprites", or a folder of videos, whose test split is used; default: the run\'s data',
  )
  add("--num_clips", type=int, default=256, help="number of clips; FVD needs at least 256")
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
  add_device_flags(parser)
  add(
    "--distributed",
    action="store_true",
    help="this is one of several processes that share --mesh, see docs/distributed.md",
  )
  add("--out", default="evaluation", help="folder for the files; created if missing")
  return parser


def _reconstruction(options: argparse.Namespace) -> tuple:
  """Evaluates the tokenizer; returns the result, what to show, and how to print and write both.

  Raises:
    ValueError, OSError: there is no tokenizer, or it does not support the request.
  """
  started = time.perf_counter()
  from videoar_jax.evals.metric_networks import load_networks
  from videoar_jax.evals.reconstruction import measure, table, write
  from videoar_jax.experiment.load import converted_family, load_tokenizer, tokenizer_data
  from videoar_jax.runtime.compilation_cache import use_compilation_cache
  from videoar_jax.runtime.log_files import quiet_libraries

  quiet_libraries()
  if converted_family(options.workdir) is not None:
    data = _data_of_flags(options)
  else:
    data = _data(options, tokenizer_data(options.workdir))
  use_compilation_cache()
  devices = device_settings(options)
  mesh, size = _reconstruction_devices(devices)
  tokenizer = load_tokenizer(options.workdir, mesh=devices["mesh"])
  source = _source(data, tokenizer)
  num_clips = min(options.num_clips, len(source))
  params, missing = load_networks({"lpips": "lpips", "i3d": "rfvd"}, data, num_clips, vars(options))
  found = measure(
    tokenizer,
    source,
    num_clips,
    lpips_params=params.get("lpips"),
    i3d_params=params.get("i3d"),
    batch_size=size,
    mesh=mesh,
  )
  result = {
    "workdir": hub.origin(options.workdir) or str(options.workdir),
    "data": dataclasses.asdict(data)
    | {"num_clips": num_clips, "has_test_split": getattr(source, "has_test_split", True)},
    **found.scores(),
    "not_measured": missing,
    "seconds": time.perf_counter() - started,
  }
  return result, found, table, write


def _reconstruction_devices(settings: dict) -> tuple:
  """Returns the mesh and the batch size of `reconstruction.measure`.

  Raises:
    ValueError: a flag is for generators, or the devices cannot share the batch.
  """
  from videoar_jax.evals.scores import BATCH_SIZE
  from videoar_jax.parallel.mesh import make_mesh, num_batch_shards

  if settings["dtype"] != "float32":
    raise ValueError("--dtype is of the generator; tokenizers are measured in float32; remove it")
  if settings["mesh"] is None:
    return None, settings["batch_size"]
  mesh = make_mesh(settings["mesh"])
  shards, size = num_batch_shards(mesh), settings["batch_size"]
  size = -(-BATCH_SIZE // shards) * shards if size is None else size
  if size % shards:
    raise ValueError(
      f"--batch_size={size} does not divide over the {shards} shards of --mesh; take a multiple"
    )
  return mesh, size


def _generation(options: argparse.Namespace) -> tuple:
  """Evaluates the generator; returns the same as `_reconstruction`.

  Raises:
    ValueError, OSError: there is no generator, or it does not support the request.
  """
  started = time.perf_counter()
  _check_generation(options)
  from videoar_jax.data.sources.base import EncodedSource
  from videoar_jax.evals import scores
  from videoar_jax.evals.generation import measure, table, write
  from videoar_jax.evals.metric_networks import load_networks
  from videoar_jax.experiment.load import find_stage, load_model
  from videoar_jax.experiment.validate import check_captions
  from videoar_jax.runtime.compilation_cache import use_compilation_cache
  from videoar_jax.runtime.log_files import quiet_libraries

  quiet_libraries()
  features = getattr(options, "text_features", None)
  data = _data(options, find_stage(options.workdir, "generator", features)[1].data)
  use_compilation_cache()
  model = load_model(
    options.workdir,
    **device_settings(options),
    text_features=features,
    resolution=data.resolution,
  )
  source = _source(data, model.tokenizer)
  check_captions(source, model.text_encoder)
  num_clips = min(options.num_clips, len(source))
  params, missing = load_networks({"i3d": "gfvd"}, data, num_clips, vars(options))
  long_clips, reason = _long_clips(options, data, model)
  found = measure(
    model,
    EncodedSource(source, model.text_encoder.encode),  # Cuts captions that are too long.
    num_clips,
    num_frames=data.num_frames,
    oracle=scores.oracle_of(data),
    i3d_params=params.get("i3d"),
    long_clips=long_clips,
  )
  result = {
    "workdir": hub.origin(options.workdir) or str(options.workdir),
    "data": dataclasses.asdict(data)
    | {"num_clips": num_clips, "has_test_split": getattr(source, "has_test_split", True)},
    **found.scores(),
    "not_measured": missing | ({"drift": reason} if reason else {}),
    "seconds": time.perf_counter() - started,
  }
  if result["prompts"] and data.num_objects == 1:
    result["prompts"]["chance"] = scores.CHANCE
  return result, found, table, write


def _check_generation(options: argparse.Namespace) -> None:
  """Checks flags before a model is loaded.

  Raises:
    ValueError: names the flag and the fix.
  """
  from videoar_jax.experiment.load import converted_family

  if converted_family(options.workdir) is not None:
    raise ValueError(
      f"--workdir={options.workdir} is a converted tokenizer, which generates nothing; name a run "
      "with a generator, or use --suite=reconstruction"
    )
  if hasattr(options, "lpips"):
    raise ValueError("--lpips compares a clip with its reconstruction; remove it")
  if options.num_long_clips < 0:
    raise ValueError(f"--num_long_clips={options.num_long_clips} must be 0 or more")


def _long_clips(options: argparse.Namespace, data, model):
  """Returns the long clips to measure, or None and the reason."""
  from videoar_jax.evals.generation import long_clips_of

  if model.num_frames == 1:
    return None, "the model was trained on single frames"
  if options.num_long_clips == 0:
    return None, "--num_long_clips=0"
  settings = None
  for name in ("window", "overlap_frames"):
    if hasattr(options, name):
      settings = {name: getattr(options, name)}
  return long_clips_of(model, data, options.num_long_clips, settings), None


def _data_of_flags(options: argparse.Namespace):
  """Returns a data section from flags alone.

  Raises:
    ValueError: a flag is missing or wrong.
  """
  from videoar_jax.data.pipeline import DataConfig

  missing = [n for n in ("data", "num_frames", "resolution") if not hasattr(options, n)]
  if missing:
    flags = ", ".join(f"--{name}" for name in missing)
    what = f"{options.workdir} is a converted tokenizer, which has no data settings"
    raise ValueError(f"{what}: add {flags}")
  return _data(options, DataConfig())


def _data(options: argparse.Namespace, data):
  """Returns the run's data section with the flags' changes.

  Raises:
    ValueError: a flag is wrong.
  """
  changes = {}
  for name in ("num_frames", "frame_rate", "clips_per_file"):
    if hasattr(options, name):
      changes[name] = getattr(options, name)
  if hasattr(options, "resolution"):
    changes["resolution"] = parse_resolution(options.resolution)
  if getattr(options, "data", None) == "sprites":
    changes |= _OTHER_DATA | {"source": "sprites", "path": None}
  elif hasattr(options, "data"):
    if not pathlib.Path(options.data).expanduser().is_dir():
      raise ValueError(f"--data={options.data} is not a folder; name one of videos, or sprites")
    changes |= _OTHER_DATA | {"source": "folder", "path": options.data}
  with _flag_names():
    return dataclasses.replace(data, **changes)


def _source(data, tokenizer):
  """Opens the test clips.

  Raises:
    ValueError: there are none, or the tokenizer cannot encode clips of this size.
  """
  from videoar_jax.data.pipeline import make_source

  with _flag_names():
    tokenizer.config.latent_shape(data.num_frames, data.resolution)
  return make_source(data, "test")


@contextlib.contextmanager
def _flag_names():
  """Replaces config fields in error messages by the flags of the same names."""
  try:
    yield
  except ValueError as error:
    names = r"\bdata\.(num_frames|resolution|frame_rate|clips_per_file)\b"
    text = re.sub(names, r"--\1", str(error))
    raise ValueError(text) from error


SUITES = {"generation": _generation, "reconstruction": _reconstruction}


if __name__ == "__main__":
  sys.exit(main())
