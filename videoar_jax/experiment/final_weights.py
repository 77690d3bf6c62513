"""The weights of a finished run in one file, which loads faster than its checkpoints.

  WORKDIR/model.safetensors   parameters by STAGE/NAME: the last generator stage, and its tokenizer
  WORKDIR/weights.json        hash of the file; step, part and hash of the checkpoint of each stage

They are copies: what does not fit the checkpoints is not used, and may be removed.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from videoar_jax.experiment.model_folder import sha256
from videoar_jax.interop import tensors
from videoar_jax.interop.strict_json import write_json
from videoar_jax.train.state import flatten, unflatten

log = logging.getLogger(__name__)

WEIGHTS, FACTS = "model.safetensors", "weights.json"
_MAX_READ = 2**16  # Smaller files of a checkpoint are hashed; of others, the size counts.


@dataclasses.dataclass(frozen=True)
class Origin:
  """What weights were copied from.

  Attributes:
    step: of the checkpoint.
    part: "params", or "ema" for their average.
    checkpoint: hash of its small files and of the sizes of all.
  """

  step: int
  part: str
  checkpoint: str


def origin_of(checkpoints: pathlib.Path, step: int, part: str) -> Origin:
  """Describes a checkpoint.

  Args:
    checkpoints: folder of a stage's checkpoints.
    step, part: see `Origin`.
  """
  digest = hashlib.sha256()
  folder = checkpoints / str(step)
  for file in sorted(path for path in folder.rglob("*") if path.is_file()):
    size = file.stat().st_size
    digest.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
    digest.update(file.read_bytes() if size < _MAX_READ else b"")
  return Origin(step, part, digest.hexdigest())


def write(workdir: pathlib.Path, stages: Mapping[str, tuple[Origin, dict]]) -> None:
  """Writes weights, the facts last, so that a half-written pair is not used.

  Args:
    workdir: of the run.
    stages: origin and parameters of each stage.
  Raises:
    OSError: they cannot be written.
  """
  remove(workdir)
  flat = {
    f"{stage}/{name}": leaf
    for stage, (_, params) in stages.items()
    for name, leaf in flatten(params).items()
  }
  kinds = {name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in flat.items()}
  path = workdir / WEIGHTS
  digest = tensors.write_each(path, kinds, lambda name: np.asarray(flat[name]))
  facts = {
    "bytes": path.stat().st_size,
    "sha256": digest,
    "stages": {stage: dataclasses.asdict(origin) for stage, (origin, _) in stages.items()},
  }
  write_json(workdir / FACTS, facts)


def remove(workdir: pathlib.Path) -> None:
  """Removes the weights, which training is about to change."""
  for name in (FACTS, WEIGHTS):
    (workdir / name).unlink(missing_ok=True)


def are_of(workdir: pathlib.Path, stages: Mapping[str, Origin]) -> bool:
  """Returns whether the weights are there, and copies of these checkpoints."""
  try:
    return (workdir / WEIGHTS).is_file() and _origins(workdir) == stages
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return False


def load(workdir: pathlib.Path, stage: str, origin: Origin, abstract: dict) -> dict | None:
  """Returns a stage's parameters; None if they are not there, or not copies of a checkpoint.

  What is there and is not used is logged.

  Args:
    workdir: of the run.
    stage: name of the stage.
    origin: of the checkpoint that is wanted.
    abstract: shapes with shardings.
  """
  if not (workdir / FACTS).is_file():
    return None
  try:
    found = _origins(workdir).get(stage)
    if found is None:  # Of an earlier stage than those that are kept.
      return None
    if found != origin:
      raise ValueError(f"is of step {found.step} of another checkpoint of stage {stage}")
    _check_file(workdir)
    return _read(workdir / WEIGHTS, stage, abstract)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    text = str(error) if isinstance(error, ValueError) else f"is damaged: {error!r}"
    log.warning("%s %s; reading the checkpoint of step %d", workdir / WEIGHTS, text, origin.step)
    return None


def _origins(workdir: pathlib.Path) -> dict[str, Origin]:
  stages = json.loads((workdir / FACTS).read_text())["stages"]
  return {name: Origin(**facts) for name, facts in stages.items()}


def _check_file(workdir: pathlib.Path) -> None:
  """Raises ValueError if the file is not the one that was written."""
  path, facts = workdir / WEIGHTS, json.loads((workdir / FACTS).read_text())
  status = path.stat()
  if status.st_size != facts["bytes"]:
    raise ValueError(f"has {status.st_size:,} bytes instead of {facts['bytes']:,}")
  if _hash(path, status.st_mtime_ns, status.st_size) != facts["sha256"]:
    raise ValueError("has changed since it was written")


@functools.lru_cache(maxsize=1)
def _hash(path: pathlib.Path, mtime_ns: int, size: int) -> str:
  """Returns a file's SHA-256, once for all stages that are read from it."""
  return sha256(path)


def _read(path: pathlib.Path, stage: str, abstract: dict) -> dict:
  """Returns a stage's parameters; the file is mapped, and each device reads its own shards."""
  reader, wanted = tensors.open_file(path), flatten(abstract)
  prefix = f"{stage}/"
  names = {name.removeprefix(prefix) for name in list(reader.keys()) if name.startswith(prefix)}
  slices = {name: reader.get_slice(prefix + name) for name in names & wanted.keys()}
  other = sorted(names ^ wanted.keys()) or [
    name for name, leaf in wanted.items() if tuple(slices[name].get_shape()) != leaf.shape
  ]
  if other:
    raise ValueError(f"is of another network than the config describes: {other[0]} differs")

  def make(name: str, leaf) -> jax.Array:
    def read(index):
      return slices[name][index] if leaf.shape else reader.get_tensor(prefix + name)

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)

  return unflatten({name: make(name, leaf) for name, leaf in wanted.items()})
