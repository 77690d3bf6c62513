"""The suites of `python -m videoar_jax.evaluate`, each from its flags to a table and files."""

import argparse
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.data.sources.base import EncodedSource
from videoar_jax.evals import generation, published, reconstruction, scores, vbench, vbench_export
from videoar_jax.evals.cost import cost_of
from videoar_jax.evals.fvd import own_protocol
from videoar_jax.evals.metric_networks import load_i3d, load_networks
from videoar_jax.evals.protocols import NO_INCEPTION_SCORE, PROTOCOLS
from videoar_jax.experiment import load
from videoar_jax.experiment.command_line import device_settings
from videoar_jax.experiment.data_flags import changed_data, data_of_flags, open_source
from videoar_jax.experiment.schema import RunConfig
from videoar_jax.experiment.validate import check_captions
from videoar_jax.interop import hub
from videoar_jax.models.base import ClipShape
from videoar_jax.parallel.mesh import make_mesh, num_batch_shards

_NUM_CLIPS = 256  # By default, unless a protocol says otherwise.

# What a suite prints, and what writes its files into a folder and returns them.
Outcome = tuple[str, Callable[[pathlib.Path], list[pathlib.Path]]]


def measure_reconstruction(options: argparse.Namespace) -> Outcome:
  """Evaluates the tokenizer.

  Raises:
    ValueError, OSError: there is no tokenizer, or it does not support the request.
  """
  started = time.perf_counter()
  if load.converted_family(options.workdir) is not None:
    data = data_of_flags(options)
  else:
    data = changed_data(options, load.tokenizer_data(options.workdir))
  devices = device_settings(options)
  mesh, size = _reconstruction_devices(devices)
  tokenizer = load.load_tokenizer(options.workdir, mesh=devices["mesh"])
  source = open_source(data, tokenizer)
  num_clips = min(_num_clips(options), len(source))
  params, missing = load_networks({"lpips": "lpips", "i3d": "rfvd"}, data, num_clips, vars(options))
  found = reconstruction.measure(
    tokenizer,
    source,
    num_clips,
    lpips_params=params.get("lpips"),
    i3d_params=params.get("i3d"),
    batch_size=size,
    mesh=mesh,
  )
  result = {
    "workdir": _origin(options),
    "data": _facts(data, source, num_clips),
    "tokenizer_dtype": tokenizer.dtype.name,
    **found.scores(),
    "not_measured": missing,
    "seconds": time.perf_counter() - started,
  }
  text = _note(options, data, num_clips) + reconstruction.table(result)
  return text, functools.partial(reconstruction.write, result=result, measured=found)


def _reconstruction_devices(settings: dict) -> tuple:
  """Returns the mesh and the batch size of `reconstruction.measure`.

  Raises:
    ValueError: a flag is for generators, or the devices cannot share the batch.
  """
  if settings["dtype"] != "float32":
    raise ValueError(
      "--dtype is of the generator; tokenizers are measured in the run's tokenizer_dtype; remove it"
    )
  if settings["mesh"] is None:
    return None, settings["batch_size"]
  mesh = make_mesh(settings["mesh"])
  shards, size = num_batch_shards(mesh), settings["batch_size"]
  size = -(-scores.BATCH_SIZE // shards) * shards if size is None else size
  if size % shards:
    raise ValueError(
      f"--batch_size={size} does not divide over the {shards} shards of --mesh; take a multiple"
    )
  return mesh, size


def measure_generation(options: argparse.Namespace) -> Outcome:
  """Evaluates the generator, by a protocol.

  Raises:
    ValueError, OSError: there is no generator, or it does not support the request.
  """
  started = time.perf_counter()
  _check_generation(options)
  if options.protocol != "own":
    return _measure_published(options, started)
  run, data, model = _load(options)
  source = open_source(data, model.tokenizer)
  check_captions(source, model.text_encoder)
  num_clips = min(_num_clips(options), len(source))
  params, missing = load_networks({"i3d": "gfvd"}, data, num_clips, vars(options))
  long_clips, reason = _long_clips(options, data, model)
  found = generation.measure(
    model,
    EncodedSource(source, model.text_encoder.encode),  # Cuts captions that are too long.
    num_clips,
    num_frames=data.num_frames,
    oracle=scores.oracle_of(data),
    i3d_params=params.get("i3d"),
    long_clips=long_clips,
  )
  result = {
    "workdir": _origin(options),
    "protocol": own_protocol(data.num_frames, data.frame_rate, num_clips),
    "data": _facts(data, source, num_clips),
    **found.scores(),
    "cost": cost_of(
      model,
      run,
      ClipShape(data.num_frames, data.resolution),
      seconds_a_clip=found.seconds_a_clip,
      steps_a_clip=found.steps_a_clip,
    ),
    "not_measured": missing | ({"drift": reason} if reason else {}),
    "seconds": time.perf_counter() - started,
  }
  if result["prompts"] and data.num_objects == 1:
    result["prompts"]["chance"] = scores.CHANCE
  text = _note(options, data, num_clips) + generation.table(result)
  return text, functools.partial(generation.write, result=result, measured=found)


def _measure_published(options: argparse.Namespace, started: float) -> Outcome:
  """Evaluates the generator by a published protocol.

  Raises:
    ValueError, OSError: there is no generator, there are too few clips, or weights are missing.
  """
  protocol = PROTOCOLS[options.protocol]
  params = load_i3d(vars(options))
  run, data, model = _load(options)
  if data.source != "folder":
    raise ValueError(
      f"--protocol={protocol.name} compares videos of UCF-101, but the run's data are "
      f"{data.source}; add --data=FOLDER and --split_file=LISTS/trainlist01.txt"
    )
  num_clips = getattr(options, "num_clips", protocol.num_clips)
  found = published.measure(
    model,
    protocol,
    data.path,
    data.split_file,
    num_clips,
    params,
    is_shared=hasattr(options, "mesh"),
  )
  result = {
    "workdir": _origin(options),
    "protocol": published.describe(protocol, num_clips),
    "data": {
      "path": data.path,
      "split_file": data.split_file,
      "num_clips": num_clips,
      "num_frames": protocol.num_frames,
      "frame_rate": protocol.frame_rate / protocol.stride,
      "resolution": model.resolution,
    },
    **found.scores(),
    "cost": cost_of(
      model,
      run,
      ClipShape(published.check_model(protocol, model), model.resolution),
      seconds_a_clip=found.seconds_a_clip,
      steps_a_clip=found.steps_a_clip,
    ),
    "notes": published.notes_on(protocol, data.frame_rate),
    "not_measured": {"inception_score": NO_INCEPTION_SCORE},
    "seconds": time.perf_counter() - started,
  }
  return published.table(result), functools.partial(published.write, result=result, measured=found)


def make_vbench_clips(options: argparse.Namespace) -> Outcome:
  """Makes the clips that VBench wants, and says how to score them; or reads its results.

  Raises:
    ValueError, OSError: there is no generator, a dimension is unknown, a prompt is too long, the
      folder has other clips, or results are of another version.
  """
  out = pathlib.Path(options.out)
  if hasattr(options, "read"):
    result = vbench.read_report(options.read, out)
    return vbench.table(result), functools.partial(vbench.write_report, result=result)
  path = vbench.find_info(getattr(options, "vbench_info", None))
  info = vbench.read_info(path)
  dimensions = vbench.parse_dimensions(getattr(options, "dimensions", None), info)
  clips = vbench.clips_of(info, dimensions)
  run, data, model = _load(options)
  shape = ClipShape(model.num_frames, model.resolution)
  made_with = {
    "model": load.describe_checkpoint(options.workdir),
    "seed": options.seed,
    "prompts": vbench.fingerprint(info),
    "num_frames": shape.num_frames,
    "resolution": list(shape.resolution),
    "frame_rate": data.frame_rate,
    "sampling": dataclasses.asdict(run.sampling),
    "dtype": options.dtype,
  }
  seconds = vbench_export.export(
    *(model, clips, out, data.frame_rate, made_with),
    seed=options.seed,
    is_shared=hasattr(options, "mesh"),
  )
  cost = None
  if seconds is not None:
    steps = model.num_steps() if hasattr(model, "num_steps") else None
    cost = cost_of(model, run, shape, seconds_a_clip=seconds, steps_a_clip=steps)
  text = (
    f"{len(clips)} clips for {len(dimensions)} dimensions; to score them where VBench is "
    f"installed:\n{vbench.command(out, dimensions, path)}"
  )
  return text, functools.partial(vbench_export.write_cost, cost=cost)


def _load(options: argparse.Namespace) -> tuple[RunConfig, DataConfig, object]:
  """Returns a generator's run, its clips with the flags' changes, and the model.

  Raises:
    ValueError, OSError: there is no generator, or a flag does not suit it.
  """
  features = getattr(options, "text_features", None)
  run, stage = load.find_stage(options.workdir, "generator", features)
  data = changed_data(options, stage.data)
  model = load.load_model(
    options.workdir,
    **device_settings(options),
    text_features=features,
    resolution=data.resolution,
  )
  return run, data, model


def _check_generation(options: argparse.Namespace) -> None:
  """Checks flags before a model is loaded.

  Raises:
    ValueError: names the flag and the fix.
  """
  if load.converted_family(options.workdir) is not None:
    raise ValueError(
      f"--workdir={options.workdir} is a converted tokenizer, which generates nothing; name a run "
      "with a generator, or use --suite=reconstruction"
    )
  if hasattr(options, "lpips"):
    raise ValueError("--lpips compares a clip with its reconstruction; remove it")
  if options.num_long_clips < 0:
    raise ValueError(f"--num_long_clips={options.num_long_clips} must be 0 or more")


def _long_clips(options: argparse.Namespace, data: DataConfig, model):
  """Returns the long clips to measure, or None and the reason."""
  if model.num_frames == 1:
    return None, "the model was trained on single frames"
  if options.num_long_clips == 0:
    return None, "--num_long_clips=0"
  settings = None
  for name in ("window", "overlap_frames"):
    if hasattr(options, name):
      settings = {name: getattr(options, name)}
  return generation.long_clips_of(model, data, options.num_long_clips, settings), None


def _num_clips(options: argparse.Namespace) -> int:
  return getattr(options, "num_clips", _NUM_CLIPS)


def _note(options: argparse.Namespace, data: DataConfig, num_clips: int) -> str:
  """Returns a line that says if a source has fewer clips than were asked for."""
  wanted = _num_clips(options)
  if num_clips == wanted:
    return ""
  return f"note: {wanted} clips were asked for, {data.path} has no more\n"


def _facts(data: DataConfig, source, num_clips: int) -> dict:
  has_test_split = getattr(source, "has_test_split", True)
  return dataclasses.asdict(data) | {"num_clips": num_clips, "has_test_split": has_test_split}


def _origin(options: argparse.Namespace) -> str:
  return hub.origin(options.workdir) or str(options.workdir)


SUITES: dict[str, Callable[[argparse.Namespace], Outcome]] = {
  "generation": measure_generation,
  "reconstruction": measure_reconstruction,
  "vbench": make_vbench_clips,
}
