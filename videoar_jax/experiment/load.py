"""Loads trained tokenizers and models."""

import logging
import os
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment import file_copies, parse
from videoar_jax.experiment.checkpoints import StageCheckpoints
from videoar_jax.experiment.command_line import check_local
from videoar_jax.experiment.model_folder import is_model, load_values
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.interop import hub
from videoar_jax.models.base import Sampler
from videoar_jax.nn.conv import without_zero_taps
from videoar_jax.nn.quantized import check_dtype
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.tokenizers.base import Tokenizer, TokenizerFamily
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.files import saved_family

log = logging.getLogger(__name__)


def converted_family(path: str | os.PathLike) -> TokenizerFamily | None:
  """Returns the family of the converted tokenizer in a folder; None if it holds none.

  Raises:
    ValueError: its description is damaged, or names a family that is unknown.
  """
  folder = _folder(path)
  family = next((family for family in TOKENIZERS.values() if family.is_converted(folder)), None)
  name = saved_family(folder) if family is None else None
  if name is not None:
    raise ValueError(
      f"{path} holds a tokenizer of the family {name!r}, which is unknown; families are "
      f"{', '.join(TOKENIZERS)}"
    )
  return family


def load_tokenizer(path: str | os.PathLike, *, mesh: MeshConfig | None = None) -> Tokenizer:
  """Loads a tokenizer that a run trained, or that `python -m videoar_jax.convert` made.

  It computes in the type that the run's config names, `tokenizer_dtype`; without a run in float32.
  Its kernels lack taps of earlier frames that are zero, so they may be shorter than in training.

  Args:
    path: a workdir, a checkpoint in one (`WORKDIR/tokenizer/checkpoints/680`; a generator's
      checkpoint stands for the tokenizer that it was trained with), or a folder with a converted
      tokenizer, here or on the hub (`hf://OWNER/NAME/tokenizer`, see `hub`).
    mesh: devices that hold it, and share batches that are split over them; None for one device.
  Raises:
    FileNotFoundError: the path is none of these, or the run has no tokenizer checkpoint yet.
    ValueError: the converted tokenizer is damaged, or there is a mesh for it, or the devices do not
      fit.
  """
  family = converted_family(path)
  if family is not None and mesh is not None:
    raise ValueError(f"{path} is a converted tokenizer, which runs on one device; name no mesh")
  if family is not None:
    return family.load_converted(_folder(path))
  # A tokenizer needs no text: files of the text encoder may be missing.
  devices = None if mesh is None else make_mesh(mesh)
  stages, wanted, step = _open(path, devices, needs_text=False)
  run = stages.run
  stage = None if run.frozen_tokenizer is not None else _stage(run, "tokenizer", wanted)
  data = run.data if stage is None else stage.data
  step = step if stage is not None and stage.name == wanted else None
  module = _tokenizer_module(stages, stage, step)
  return run.tokenizer_family.make_tokenizer(module, data.resolution)


def load_model(
  path: str | os.PathLike,
  *,
  mesh: MeshConfig | Mesh | None = None,
  dtype: str = "float32",
  batch_size: int | None = None,
  text_features: str | None = None,
  resolution: tuple[int, int] | None = None,
) -> Sampler:
  """Loads the generator that a run trained, with its tokenizer.

  Args:
    path: a workdir, a checkpoint in one (`WORKDIR/generator/checkpoints/2400`), or the folder of a
      model from `python -m videoar_jax.convert`, here or on the hub (`hf://OWNER/NAME`, see `hub`).
    mesh: devices that share the work; each reads its part of the parameters. None for one device.
    dtype: of the generator's weights and cache, "float32" or "bfloat16"; or "int8", of its layers'
      weights, see `nn.quantized`.
    batch_size: clips that are made together, a multiple of the mesh's slice x data x fsdp; None for
      about 16.
    text_features: file of the prompts' features, or folder of their text encoder, for a model that
      was trained on features; None for what it was trained with, see `text.tokenizer`.
    resolution: (H, W) of the clips to make, as one of a mixture's shapes; None for that of the
      stage's `data`.
  Raises:
    FileNotFoundError: there is no run, or it has no checkpoint of a generator yet.
    ValueError: the devices do not fit, the checkpoint is a tokenizer's or of a network of another
      size, its weights are int8 already, or the network cannot make clips of that resolution.
  """
  check_dtype(dtype)
  devices = make_mesh(mesh) if isinstance(mesh, MeshConfig) else mesh
  stages, wanted, step = _open(path, devices, text_features)
  if devices is not None:
    stages.run.family.check_mesh(stages.run, devices)
  stage = _stage(stages.run, "generator", wanted)
  tokenizer = _tokenizer_module(stages, stages.stage_before(stage, "tokenizer"), None)
  return stages.run.family.make_model(
    stages.run,
    stage,
    _module(stages, stage, step, is_split=True, dtype=jnp.dtype(dtype)),
    tokenizer,
    resolution=resolution,
    mesh=devices,
    dtype=jnp.dtype(dtype),
    batch_size=batch_size,
  )


def find_run(
  path: str | os.PathLike, text_features: str | None = None, *, needs_text: bool = True
) -> tuple[pathlib.Path, RunConfig]:
  """Returns the workdir of a path, and the config of its run.

  Args:
    path: the workdir, or a path in it, or a model's folder, here or on the hub.
    text_features: see `load_model`.
    needs_text: whether to keep the config's text encoder.
  Raises:
    FileNotFoundError: there is no run.
    ValueError: `text_features` is set, but the run was not trained on features; or what is on the
      hub is no model, or cannot be downloaded.
  """
  if not hub.is_hub(path):
    check_local(path, "--workdir")
  elif not is_model(hub.local(path)):
    raise ValueError(
      f"{path} holds no model of this package, which has a file model.json; convert it first: "
      "`python -m videoar_jax.convert --help`"
    )
  path = _absolute(path)
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist; train with --workdir={path} first")
  for workdir in (path, *path.parents):
    if (workdir / "config.json").is_file():
      if is_model(workdir):
        config = load_values(workdir)
      else:
        config = parse.load_config(workdir / "config.json")
      if text_features is not None:
        config = _with_features(config, text_features)
      if not needs_text:
        config = config | {"text": {}}
      config = file_copies.with_copies(config, workdir, is_training=False)
      return workdir, parse.finalize(config)
  raise FileNotFoundError(
    f"{path} is neither a workdir nor a checkpoint in one: no config.json in it or above it"
  )


def find_stage(
  path: str | os.PathLike, kind: str, text_features: str | None = None
) -> tuple[RunConfig, StageConfig]:
  """Returns a run, and the stage whose tokenizer or generator `load_*` loads from a path.

  Args:
    path: a workdir, or a checkpoint in one.
    kind: "tokenizer" or "generator".
    text_features: see `load_model`.
  Raises:
    FileNotFoundError: there is no run, or it has no stage of that kind.
    ValueError: `kind` is "generator", but the checkpoint is a tokenizer's.
  """
  workdir, run = find_run(path, text_features, needs_text=kind == "generator")
  return run, _stage(run, kind, _named_in(path, workdir)[0])


def tokenizer_data(path: str | os.PathLike) -> DataConfig:
  """Returns the clips that a run's tokenizer was trained on; those of the run, if it is frozen.

  Raises:
    FileNotFoundError: there is no run, or it has no tokenizer.
  """
  _, run = find_run(path, needs_text=False)
  return run.data if run.frozen_tokenizer else find_stage(path, "tokenizer")[1].data


def _with_features(config: dict, path: str) -> dict:
  text = config.get("text", {})
  tokenizer = text.get("tokenizer", "bytes")
  if tokenizer in ("bytes", "words", "classes") or hub.without_revision(tokenizer).endswith(
    ".json"
  ):
    raise ValueError(
      f"text_features={path!r}: the run was trained with text.tokenizer={tokenizer!r}, not on "
      "features of text"
    )
  return config | {"text": text | {"tokenizer": path}}


def _open(
  path: str | os.PathLike,
  mesh: Mesh | None = None,
  text_features: str | None = None,
  *,
  needs_text: bool = True,
) -> tuple[StageCheckpoints, str | None, int | None]:
  """Returns the run of a path, and the stage and step that the path names, if any."""
  workdir, run = find_run(path, text_features, needs_text=needs_text)
  if mesh is None:
    mesh = make_mesh(MeshConfig(data=1), devices=jax.local_devices()[:1])
  return StageCheckpoints(run, workdir, mesh), *_named_in(path, workdir)


def _folder(path: str | os.PathLike) -> pathlib.Path:
  """Returns a path here; what is on the hub is downloaded."""
  return pathlib.Path(hub.local(path)).expanduser()


def _absolute(path: str | os.PathLike) -> pathlib.Path:
  return _folder(path).absolute()


def _named_in(path: str | os.PathLike, workdir: pathlib.Path) -> tuple[str | None, int | None]:
  """Returns the stage and step that a path in a workdir names, if any."""
  parts = _absolute(path).relative_to(workdir).parts
  step = int(parts[2]) if len(parts) > 2 and parts[2].isdigit() else None
  return parts[0] if parts else None, step


def generator_stage(
  path: str | os.PathLike, workdir: pathlib.Path, run: RunConfig
) -> tuple[StageConfig, int | None]:
  """Returns the generator stage that a path in a workdir names, by default the last, and the step.

  Raises:
    FileNotFoundError: the run has none.
    ValueError: the path is of a tokenizer.
  """
  wanted, step = _named_in(path, workdir)
  return _stage(run, "generator", wanted), step


def describe_checkpoint(path: str | os.PathLike) -> str:
  """Returns the name of a generator, and the step of its checkpoint, as `RUN/generator at 2400`.

  Raises:
    FileNotFoundError, ValueError: as `load_model`.
  """
  workdir, run = find_run(path)
  stage, step = generator_stage(path, workdir, run)
  mesh = make_mesh(MeshConfig(data=1), devices=jax.local_devices()[:1])
  step = StageCheckpoints(run, workdir, mesh).latest_step(stage) if step is None else step
  return f"{hub.origin(path) or workdir}/{stage.name} at {step}"


def _stage(run: RunConfig, kind: str, name: str | None) -> StageConfig:
  """Returns the stage of a kind to load for the name of any stage; None is the last one."""
  named = next((other for other in run.stages if other.name == name), None)
  stages = [other for other in run.stages if other.kind == kind]
  if not stages:
    names = ", ".join(other.name for other in run.stages)
    raise FileNotFoundError(f"the run trains no {kind}; its stages are {names}")
  if named is None:
    return stages[-1]
  if named.kind == kind:
    return named
  if kind == "generator":
    raise ValueError(
      f"stage {name!r} trains a tokenizer, which generates nothing; name the workdir, or a "
      f"checkpoint of {' or '.join(other.name for other in stages)}"
    )
  return [other for other in stages if run.stages.index(other) < run.stages.index(named)][-1]


def _tokenizer_module(
  stages: StageCheckpoints, stage: StageConfig | None, step: int | None
) -> nnx.Module:
  """Returns the tokenizer that a stage trained; the run's frozen one, if it has that."""
  if stages.run.frozen_tokenizer is None:
    module = _module(stages, stage, step)
    module = jax.tree.map(lambda x: x.astype(stages.run.tokenizer_dtype), module)
  else:
    template, params = stages.frozen_tokenizer()
    module = template.module(params)
  return without_zero_taps(module)


def _module(
  stages: StageCheckpoints,
  stage: StageConfig,
  step: int | None,
  *,
  is_split: bool = False,
  dtype=None,
) -> nnx.Module:
  try:
    template, params = stages.load_params(stage, step, is_split=is_split, dtype=dtype)
  except ValueError as error:
    if is_model(stages.workdir):
      raise
    # Further sentences of the message are about the library's settings.
    reason = str(error).partition(". ")[0]
    raise ValueError(
      f"the checkpoint of stage {stage.name!r} is of another network than "
      f"{stages.workdir / 'config.json'} describes, or does not split over the devices: {reason}"
    ) from error
  at = step or stages.latest_step(stage)
  if at < stage.loop.num_steps:
    log.warning("stage %s is at step %d of %d", stage.name, at, stage.loop.num_steps)
  return template.module(params)
