"""Exports what a run trained as a folder that needs nothing else; see `model_folder`."""

import os
import pathlib
import tempfile

import jax
import ml_dtypes  # noqa: F401  # Registers bfloat16 with numpy.
import numpy as np

from videoar_jax.experiment import file_copies, load, model_folder, parse, paths
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.experiment.stages import Stages
from videoar_jax.interop import hub
from videoar_jax.nn.layers import merge_adapters
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.tokenizers.files import Saved, save_tokenizer
from videoar_jax.train.state import flatten


def export_model(path: str | os.PathLike, out: str | os.PathLike, dtype: str = "float32") -> int:
  """Writes the (averaged) weights of a run's last generator stage with all that they need.

  Adapters are merged into the weights that they belong to.

  Args:
    path: the workdir, or a checkpoint of a generator in it.
    out: new folder.
    dtype: of the generator's weights, "float32", "float16" or "bfloat16".
  Returns:
    The number of the generator's parameters.
  Raises:
    FileNotFoundError: there is no run, or it has no checkpoint of a generator yet.
    ValueError: the folder is not empty.
    OSError: it cannot be written.
  """
  workdir, run = load.find_run(path)
  stage, step = load.generator_stage(path, workdir, run)
  values = parse.load_config(workdir / "config.json")
  stages = Stages(run, workdir, make_mesh(MeshConfig(data=1), devices=jax.local_devices()[:1]))
  _, params = stages.load_params(stage, step)
  flat = merge_adapters(flatten(params))
  kind = np.dtype(dtype)
  weights = model_folder.Weights(
    {name: (leaf.shape, kind) for name, leaf in flat.items()}, lambda name: np.asarray(flat[name])
  )
  name = hub.origin(workdir) or workdir.name
  source = f"{name}, stage {stage.name}, {step or stages.latest_step(stage):,} steps"
  values = shared_values(values, run, stage)
  with tempfile.TemporaryDirectory(dir=_parent(out)) as folder:
    parts = text_parts(run, values, pathlib.Path(folder))
    parts[model_folder.TOKENIZER] = _tokenizer(stages, stage, pathlib.Path(folder), source)
    model_folder.write(out, values, source, weights, parts)
  return weights.num_parameters


def export_weights(
  path: str | os.PathLike, stage: str, out: str | os.PathLike, *, has_merged_adapters: bool = False
) -> int:
  """Writes the (averaged) weights of a run's stage as safetensors; returns their number.

  Args:
    path: the workdir.
    stage: name of the stage.
    out: the file.
    has_merged_adapters: add adapters to the kernels that they belong to.
  Raises:
    FileNotFoundError: there is no run, or the stage has no checkpoint.
    ValueError: the run has no such stage.
    OSError: the file cannot be written.
  """
  workdir, run = load.find_run(path)
  stages = {other.name: other for other in run.stages}
  if stage not in stages:
    raise ValueError(f"--stage={stage} is not in the run; it has {', '.join(stages)}")
  mesh = make_mesh(MeshConfig(data=1), devices=jax.local_devices()[:1])
  return Stages(run, workdir, mesh).export_params(
    stages[stage], pathlib.Path(out), has_merged_adapters=has_merged_adapters
  )


# What says where clips are, which a shared model does not.
_FILES = ("source", "path", "filter", "split_file", "stored_frame_rate")


def shared_values(values: dict, run: RunConfig, stage: StageConfig) -> dict:
  """Returns the config of a model: the generator's stages, the exported one last, without data.

  The other stages stay, since a network may be made for the longest clips of all.

  Args:
    values: the config of the run.
    run: the run.
    stage: whose network it is.
  """
  others = [other.name for other in run.generator_stages if other != stage]
  names = (*others, stage.name)
  data = values["data"]
  if data["source"] != "sprites":
    # There is no such folder: who evaluates names one.
    data = data | dict.fromkeys(_FILES) | {"source": "folder", "path": "data"}
  generator = values["generator"]
  if "lora_rank" in generator:
    generator = generator | {"lora_rank": 0}
  return values | {
    "data": data,
    "generator": generator,
    "stages": names,
    "stage": {name: _shared_stage(values["stage"][name]) for name in names},
  }


def _shared_stage(section: dict) -> dict:
  unset = dict.fromkeys(_FILES)
  parts = {name: part | unset for name, part in section["mixture"].items()}
  return section | {"init": {}, "data": section["data"] | unset, "mixture": parts}


def _parent(out: str | os.PathLike) -> pathlib.Path:
  """Returns the folder, made if needed, that a new folder will be in."""
  parent = pathlib.Path(out).expanduser().absolute().parent
  parent.mkdir(parents=True, exist_ok=True)
  return parent


def _tokenizer(
  stages: Stages, stage: StageConfig, folder: pathlib.Path, source: str
) -> pathlib.Path:
  """Returns the folder of a run's tokenizer, which is made if the run trained it."""
  run = stages.run
  if run.frozen_tokenizer is not None:
    return run.frozen_tokenizer
  path = folder / model_folder.TOKENIZER
  saved = Saved(run.tokenizer_family.name, run.tokenizer, source)
  # As trained, whatever the type that it codes clips in.
  _, params = stages.hand_over(stages.stage_before(stage, "tokenizer"))
  save_tokenizer(path, saved, params)
  return path


def text_parts(run: RunConfig, values: dict, folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the files of a run's text encoder and guidance, by their names in a model's folder.

  Args:
    run: the run.
    values: its config.
    folder: for files that are made.
  """
  parts = {}
  if values["text"]["tokenizer"] not in paths.NAMED_TOKENIZERS:
    parts |= file_copies.text_parts(run.text, model_folder.TEXT_ENCODER, folder)
  guidance = getattr(run.sampling, "guidance", None)
  if isinstance(guidance, str) and guidance.endswith(".json"):
    parts[model_folder.GUIDANCE] = pathlib.Path(guidance)
  return parts
