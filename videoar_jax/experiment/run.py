"""A run: one config in one workdir, from the first stage to the last."""

import fcntl
import functools
import importlib.metadata
import itertools
import json
import logging
import math
import os
import pathlib
import platform
import re
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from videoar_jax.data.bad_samples import write_bad_samples
from videoar_jax.data.pipeline import READING_FIELDS, DataConfig, make_source
from videoar_jax.experiment import parse
from videoar_jax.experiment.diff import differing_fields
from videoar_jax.experiment.schema import StageConfig
from videoar_jax.experiment.stages import Stages
from videoar_jax.models.videoar.network import check_heads
from videoar_jax.nn.layers import count_parameters
from videoar_jax.parallel import processes
from videoar_jax.parallel.mesh import LOGICAL_AXIS_RULES, make_mesh, num_batch_shards, process_shard
from videoar_jax.text.tokenizers import TextEncoder
from videoar_jax.train.checkpoint import Damaged
from videoar_jax.train.config import FREE_FIELDS
from videoar_jax.train.overview import count_by_module

log = logging.getLogger(__name__)

_locks: dict = {}  # Files that are held open, by path.

# Fields that may change while a run goes on: where it runs, how fast it reads, what it does beside
# its steps. Sections of data are those of the run, of stages, and of parts of mixtures.
_FREE = re.compile(
  r"config\.((stage\.\w+\.)?mesh\.\w+"
  rf"|(stage\.\w+\.)?(data|mixture\.\w+)\.({'|'.join(READING_FIELDS)})"
  rf"|stage\.\w+\.loop\.({'|'.join(FREE_FIELDS)}))"
)

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")


class Run:
  """Opens a workdir for a config.

  Args:
    config: from a config file.
    workdir: made if it is not there.
  Attributes:
    stages: what trains.
    train_source, test_source: clips.
    is_new: nothing was trained in this workdir before.
  Raises:
    ValueError: the config is wrong, or the workdir belongs to another one.
  """

  def __init__(self, config: ConfigDict, workdir: pathlib.Path):
    quiet_libraries()
    run = parse.finalize(config)
    changes = _check_same_config(config, workdir)
    self.workdir = workdir
    use_compilation_cache()
    self.stages = Stages(run, workdir, make_mesh(run.mesh))
    _check_batches(self.stages)
    _check_mixtures(self.stages)
    # Sources are opened before anything is written: a wrong folder leaves no workdir behind. Those
    # of later stages too: what is wrong with them should not show after days.
    self._opened: dict = {}
    self.train_source = self._source(run.data)
    self.test_source = self._source(run.data, "test")
    for stage in run.stages:
      if not self.stages.is_finished(stage):
        self._sources_of(stage)
    self.stages.check_inflation()
    self.stages.check_starts()
    self.stages.check_frozen()
    for cache in filter(self.stages.is_needed, run.caches):
      self.stages.check_cache(cache, self._source(cache.data))
    self.is_new = all(self.stages.latest_step(stage) == 0 for stage in run.stages)
    if processes.is_first():
      workdir.mkdir(parents=True, exist_ok=True)
      _lock(workdir)
      start_log(workdir / "log.txt")
      parse.save_config(config, workdir / "config.json")
      _write_facts(self.stages)
    else:
      start_errors_log()
    _check_shared(workdir)
    for line in changes:
      log.info("another config than before: %s", line)
    for file, reason in getattr(self.train_source, "skipped", []):
      log.warning("skipped %s: %s", file, reason)

  @property
  def is_finished(self) -> bool:
    """Whether all stages are."""
    return all(map(self._is_finished, self.stages.run.stages))

  def _is_finished(self, stage: StageConfig) -> bool:
    """Says whether the first process finds a stage finished; others may see late what it wrote."""
    return bool(processes.broadcast(self.stages.is_finished(stage)))

  def train(self, only: str | None = None) -> bool:
    """Trains what is not finished; returns whether there was anything to train.

    Samples that cannot be used are listed in `bad_samples.jsonl`, each as soon as it is found.

    Args:
      only: the stage to train, and no other; None for all.
    Raises:
      Preempted: a signal came; what was trained is saved.
      ValueError: there is no such stage, or one before it is not finished.
    """
    # Each process reads other samples, and has a file of its own.
    process = jax.process_index()
    name = f"bad_samples.{process}.jsonl" if process else "bad_samples.jsonl"
    write_bad_samples(self.workdir / name, self._opened.values())
    while True:
      if only is not None:
        self._check_only(only)
      try:
        return self._train(only)
      except Damaged as damaged:
        log.error("%s, and then the stages after it", damaged)

  def _check_only(self, only: str) -> None:
    """Raises ValueError if a stage cannot be trained by itself; says which has to come first."""
    stages = {stage.name: stage for stage in self.stages.run.stages}
    if only not in stages:
      raise ValueError(f"--stage={only} is not a stage; they are {', '.join(stages)}")
    for name, stage in itertools.takewhile(lambda pair: pair[0] != only, stages.items()):
      if not self._is_finished(stage):
        raise ValueError(f"--stage={only} starts from stage {name}; finish --stage={name} first")

  def _train(self, only: str | None) -> bool:
    has_trained = False
    for stage in self.stages.run.stages:
      if only is not None and stage.name != only:
        continue
      if self._is_finished(stage):
        log.info("stage %s: finished before, %d steps", stage.name, stage.loop.num_steps)
      else:
        # What the last report said is no longer so.
        if processes.is_first():
          (self.workdir / "report.md").unlink(missing_ok=True)
        self.stages.on_mesh_of(stage).train(stage, *self._sources_of(stage))
        has_trained = True
      self._encode_after(stage)
    return has_trained

  def _encode_after(self, stage: StageConfig) -> None:
    """Makes the caches that follow a stage."""
    for cache in self.stages.run.caches:
      if cache.after == stage.name and processes.broadcast(self.stages.is_needed(cache)):
        self.stages.encode(cache, self._source(cache.data))

  def _sources_of(self, stage: StageConfig) -> tuple[list, Any]:
    """Opens what a stage is trained on, and the clips to show."""
    return [self._source(data) for data in stage.source_data], self._source(stage.data, "test")

  def _source(self, data: DataConfig, split: str = "train"):
    """Opens a data set, once.

    Raises:
      ValueError: there is none, or a caption is not one of the text encoder's.
    """
    if (data, split) not in self._opened:
      source = make_source(data, split)
      _check_captions(source, self.stages.run.text.encoder)
      self._opened[data, split] = source
    return self._opened[data, split]


def _check_mixtures(stages: Stages) -> None:
  """Checks that a mesh that was changed leaves the batches of a stage that has begun as they were.

  Raises:
    ValueError: it does not: its order of clips could not go on.
  """
  path = stages.workdir / "run.json"
  if not path.exists():
    return
  facts = json.loads(path.read_text())
  for stage in stages.run.stages:
    # Runs that began when all stages had one mesh say just that.
    mesh = facts["meshes"][stage.name] if "meshes" in facts else facts["mesh"]
    before = math.prod(mesh[axis] for axis in LOGICAL_AXIS_RULES["batch"])
    now = num_batch_shards(stages.on_mesh_of(stage).mesh)
    shapes = [shape for part in stage.mixture for shape in part.shapes]
    size_of = functools.partial(stages.run.batch_size_of, stage)
    parts = stage.loop.grad_accum_steps
    if (
      any(size_of(shape, before * parts) != size_of(shape, now * parts) for shape in shapes)
      and 0 < stages.latest_step(stage) < stage.loop.num_steps
    ):
      raise ValueError(
        f"stage.{stage.name}.mixture began with mesh.slice x mesh.data x mesh.fsdp = {before}, and "
        f"its batches would be others with {now}; keep the product until the stage ends"
      )


def _check_batches(stages: Stages) -> None:
  run = stages.run
  for stage in run.stages:
    mesh = stages.on_mesh_of(stage).mesh
    ways = num_batch_shards(mesh)
    process_shard(mesh)  # Raises where processes would share some samples and not others.
    if stage.kind == "generator":
      check_heads(run.generator, mesh)
    sizes, parts = {"loop": stage.loop.batch_size}, stage.loop.grad_accum_steps
    if stage.images.share > 0:
      sizes["images"] = stage.images.batch_size
    for section in (name for name, size in sizes.items() if size % (ways * parts)):
      in_parts = f" in {parts} grad_accum_steps" if parts > 1 else ""
      raise ValueError(
        f"stage.{stage.name}.{section}.batch_size={sizes[section]} does not divide over the "
        f"{ways} devices of mesh.slice x mesh.data x mesh.fsdp{in_parts}; take a multiple of "
        f"{ways * parts}, or make another axis of the mesh larger"
      )
  ways = num_batch_shards(stages.mesh)
  for cache in run.caches:
    if cache.config.batch_size % ways:
      raise ValueError(
        f"stage.{cache.name}.batch_size={cache.config.batch_size} does not divide over the {ways} "
        f"devices of mesh.slice x mesh.data x mesh.fsdp; take a multiple of {ways}, or "
        "make another axis of the mesh larger"
      )


def _check_captions(source, encoder: TextEncoder) -> None:
  for caption in source.longest_captions():
    encoder.encode(caption)


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, where the user named no place of their own."""
  if jax.config.jax_compilation_cache_dir is None:
    try:
      root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    except RuntimeError:  # No home, as in some containers.
      return
    jax.config.update("jax_compilation_cache_dir", str(root / "videoar_jax" / "jax"))


def quiet_libraries() -> None:
  """Keeps what libraries tell of their own doings off the terminal."""
  # They write to the root logger, and give it a handler of their own where it has none.
  logging.getLogger().addHandler(logging.NullHandler())
  for name in ("absl", "jax"):
    logging.getLogger(name).setLevel(logging.ERROR)


def start_log(path: pathlib.Path) -> None:
  """Sends the package's log to the terminal and to a file, which grows with every run."""
  root = logging.getLogger("videoar_jax")
  root.setLevel(logging.DEBUG)
  root.propagate = False
  for handler in root.handlers[:]:
    root.removeHandler(handler)
    handler.close()
  terminal, file = logging.StreamHandler(sys.stdout), logging.FileHandler(path)
  terminal.setLevel(logging.INFO)
  terminal.addFilter(lambda record: not hasattr(record, "is_for_file"))  # Long tables are.
  terminal.setFormatter(logging.Formatter("%(message)s"))
  file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
  root.addHandler(terminal)
  root.addHandler(file)


def start_errors_log() -> None:
  """Sends errors of the package's log to the terminal, each with the name of this process."""
  root = logging.getLogger("videoar_jax")
  root.setLevel(logging.ERROR)
  root.propagate = False
  terminal = logging.StreamHandler(sys.stderr)
  terminal.setFormatter(logging.Formatter(f"{processes.name()}: %(message)s"))
  root.handlers[:] = [terminal]


def _check_shared(workdir: pathlib.Path) -> None:
  """Raises ValueError unless all processes see the same workdir."""
  if jax.process_count() == 1:
    return
  sign = workdir / "shared"
  if processes.is_first():
    sign.touch()
  processes.wait_for_all("the workdir is made")
  is_shared = sign.exists()
  processes.wait_for_all("the workdir is seen")
  if not is_shared:
    raise ValueError(
      f"--workdir={workdir} is not the same folder for {processes.name()} as for process 0; name "
      "one in a file system that all hosts share"
    )
  if processes.is_first():
    sign.unlink()


def _lock(workdir: pathlib.Path) -> None:
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


def _check_same_config(config: ConfigDict, workdir: pathlib.Path) -> list[str]:
  """Returns how a workdir's config differs from what a run is given, in fields that may.

  Raises:
    ValueError: it differs in others, or the workdir is none.
  """
  path = workdir / "config.json"
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"--workdir={workdir} is a file; name a folder")
  if not path.exists():
    return []
  lines = [f"config.{line}" for line in differing_fields(parse.load_config(path), config.to_dict())]
  different = [line for line in lines if not _FREE.fullmatch(line.partition(":")[0])]
  if different:
    text = "\n  ".join(different)
    raise ValueError(
      f"--workdir={workdir} was made by another config (there -> now):\n  {text}\n"
      "Name another workdir, or set these fields back. Nothing was changed"
    )
  return lines


def _write_facts(stages: Stages) -> None:
  """Writes what the run found: versions, devices, numbers of parameters."""
  run = stages.run
  facts = {
    "command": sys.argv,
    "python": platform.python_version(),
    "machine": platform.platform(),
    "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    "devices": [str(device) for device in jax.devices()],
    "processes": jax.process_count(),
    "meshes": {
      stage.name: dict(stages.on_mesh_of(stage).mesh.shape) for stage in stages.run.stages
    },
    "parameters": {
      stage.name: count_parameters(stages.module_template(stage).shapes)
      for stage in stages.run.stages
    },
    "parameters_by_module": {
      stage.name: count_by_module(stages.module_template(stage).shapes)
      for stage in stages.run.stages
    },
    "latent_shape": run.tokenizer.latent_shape(run.data.num_frames, run.data.resolution),
    "schedule": run.schedule,
  }
  if run.generator is not None:
    facts["sequence_length"] = run.layout_of(run.data).length
  path = stages.workdir / "run.json"
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(facts, indent=2) + "\n")
  partial.replace(path)
