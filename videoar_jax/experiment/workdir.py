"""A run's folder: for one config and one run at a time, shared by all processes."""

import fcntl
import importlib.metadata
import json
import logging
import pathlib
import platform
import re
import sys

import jax
from ml_collections import ConfigDict

from videoar_jax.data.pipeline import READING_FIELDS
from videoar_jax.experiment import data_listing, file_copies, parse, paths
from videoar_jax.experiment.checkpoints import StageCheckpoints
from videoar_jax.experiment.defaults import complete, inherited
from videoar_jax.experiment.diff import differing_fields
from videoar_jax.experiment.model_folder import is_model
from videoar_jax.interop import hub
from videoar_jax.interop.strict_json import write_json
from videoar_jax.nn.layers import count_parameters
from videoar_jax.parallel import processes
from videoar_jax.train.config import FREE_FIELDS
from videoar_jax.train.overview import count_by_module

log = logging.getLogger(__name__)

_locks: dict = {}  # Open lock files, by path.

# Fields that may change when a run resumes: where it runs, how fast it reads, what it does besides
# training steps, where a cache is, whose index is checked. Data sections are those of the run, of
# stages, and of parts of mixtures.
_FREE = re.compile(
  r"config\.((stage\.\w+\.)?mesh\.\w+"
  rf"|(stage\.\w+\.)?(data|mixture\.\w+)\.({'|'.join(READING_FIELDS)})"
  rf"|stage\.\w+\.loop\.({'|'.join(FREE_FIELDS)})"
  rf"|(report|sampling)\.\w+|{paths.CACHE})"
)
_DATA = re.compile(rf"config\.{paths.DATA}")
_INIT = re.compile(r"config\.stage\.(\w+)\.init\.from")

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")


def check_shared(workdir: pathlib.Path) -> None:
  """Raises ValueError unless all processes see the same workdir."""
  if jax.process_count() == 1:
    return
  sign = workdir / "shared"
  if processes.is_first():
    sign.touch()
  processes.wait_for_all("the workdir is created")
  is_shared = sign.exists()
  processes.wait_for_all("the workdir is seen")
  if not is_shared:
    raise ValueError(
      f"--workdir={workdir} is not the same folder for {processes.name()} as for process 0; name "
      "one in a file system that all hosts share"
    )
  if processes.is_first():
    sign.unlink()


def lock(workdir: pathlib.Path) -> None:
  """Keeps other processes out of a workdir until this one ends.

  Raises:
    ValueError: another run is in it.
  """
  path = (workdir / "lock").resolve()
  if path in _locks:
    return
  file = path.open("a")
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.close()
    raise ValueError(
      f"--workdir={workdir} is in use by another run; wait for it, end it, or name another workdir"
    ) from None
  except OSError as error:
    log.warning("%s: the file system has no locks (%s); do not start a second run", workdir, error)
  _locks[path] = file


def check_same_config(config: ConfigDict, workdir: pathlib.Path) -> list[str]:
  """Returns the differences between a workdir's config and a new one, in fields that may change.

  Raises:
    ValueError: other fields differ, or the workdir is not a folder.
  """
  path = workdir / "config.json"
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"--workdir={workdir} is a file; name a folder")
  if is_model(workdir):
    raise ValueError(
      f"--workdir={workdir} is a model's folder; name another workdir, and start from the model "
      f"with config.stage.NAME.init.from={workdir}"
    )
  if not path.exists():
    return []
  there, now = (
    _without_repeats(paths.resolved(values))
    for values in (parse.load_config(path), complete(config).to_dict())
  )
  lines = [f"config.{x}" for x in differing_fields(there, now)]
  different = [line for line in lines if not _may_change(line.partition(":")[0], workdir)]
  if different:
    text = "\n  ".join(different)
    raise ValueError(
      f"--workdir={workdir} was made with another config (there -> now):\n  {text}\n"
      "Name another workdir, or restore these fields. Nothing was changed"
    )
  return lines


def _may_change(field: str, workdir: pathlib.Path) -> bool:
  """Returns whether a field may have another value when a run resumes."""
  if field == "config.frozen_tokenizer":
    return (workdir / file_copies.FOLDER / file_copies.TOKENIZER_FOLDER).is_dir()  # Likewise.
  if field == "config.text.tokenizer":
    return file_copies.has_text(workdir)  # Then the files are compared.
  if _DATA.fullmatch(field):
    return (workdir / data_listing.FILE).is_file()  # So are the samples.
  if init := _INIT.fullmatch(field):
    # A stage that has begun does not need its initial weights any more.
    return any((workdir / init[1] / "checkpoints").glob("[0-9]*"))
  return _FREE.fullmatch(field) is not None


def _without_repeats(values: dict) -> dict:
  """Returns a config without the values of stages and mixtures that equal inherited ones.

  So a stage that repeats a value and one that inherits it do not differ.
  """
  data, stages = values["data"], {}
  for name, section in values["stage"].items():
    stage = dict(section)
    own = inherited(data, section["data"])
    stage["data"] = _differing(section["data"], data)
    if "mesh" in section:
      stage["mesh"] = _differing(section["mesh"], values["mesh"])
    if "mixture" in section:
      stage["mixture"] = {part: _differing(x, own) for part, x in section["mixture"].items()}
    stages[name] = stage
  return values | {"stage": stages}


def _differing(section: dict, around: dict) -> dict:
  """Returns a section with None for each field that equals the one of the parent section."""
  return {
    name: None if name in around and value == around[name] else value
    for name, value in section.items()
  }


def write_facts(stages: StageCheckpoints) -> None:
  """Writes `run.json`: versions, devices, numbers of parameters, commits of what is on the hub."""
  run, path = stages.run, stages.workdir / "run.json"
  shapes = {stage.name: stages.module_template(stage).shapes for stage in run.stages}
  facts = {
    "command": sys.argv,
    "python": platform.python_version(),
    "machine": platform.platform(),
    "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    "devices": [str(device) for device in jax.devices()],
    "processes": jax.process_count(),
    "meshes": {stage.name: dict(stages.on_mesh_of(stage).mesh.shape) for stage in run.stages},
    "parameters": {name: count_parameters(tree) for name, tree in shapes.items()},
    "parameters_by_module": {name: count_by_module(tree) for name, tree in shapes.items()},
    "latent_shape": run.tokenizer.latent_shape(run.data.num_frames, run.data.resolution),
  }
  if run.generator is not None:
    facts |= run.family.describe(run)
  # Those that the run began with count: a stage that resumes does not ask for its `init.from`.
  has_begun = any(stages.latest_step(stage) for stage in run.stages)
  facts["hub"] = hub.commits() | (_known_commits(path) if has_begun else {})
  write_json(path, facts)


def _known_commits(path: pathlib.Path) -> dict[str, str]:
  """Returns the commits in a `run.json`; none if it is missing or damaged."""
  try:
    return dict(json.loads(path.read_text()).get("hub", {}))
  except (OSError, ValueError, TypeError, AttributeError):
    return {}
