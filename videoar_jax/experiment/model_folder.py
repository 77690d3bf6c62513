"""A trained model as a folder that needs nothing else, to share or to start from.

  DIR/config.json             of a run that only trains the generator; paths are relative to DIR
  DIR/model.json              where it is from; size and SHA-256 of each file
  DIR/generator.safetensors   weights
  DIR/tokenizer/              a converted tokenizer
  DIR/text_encoder/           or text_encoder.json, text_encoder.safetensors: see `text.tokenizer`
  DIR/guidance.json           of `sampling.guidance`, where that is a table

Commands take it as `--model=DIR`, and stages start from it with `init.from=DIR`.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from videoar_jax.experiment import parse, paths
from videoar_jax.experiment.defaults import complete
from videoar_jax.interop import hub, tensors
from videoar_jax.interop import weights as weight_files
from videoar_jax.interop.atomic import replacing
from videoar_jax.interop.strict_json import write_json
from videoar_jax.interop.tensor_files import TensorFiles
from videoar_jax.text.encoders.files import encoder_files
from videoar_jax.tokenizers.files import check_new
from videoar_jax.train.state import flatten, unflatten

FILE, CONFIG, WEIGHTS = "model.json", "config.json", "generator.safetensors"
TOKENIZER, TEXT_ENCODER, GUIDANCE = "tokenizer", "text_encoder", "guidance.json"
STAGE = "generator"  # Of models from elsewhere, which no stage trained.

Kinds = Mapping[str, tuple[tuple[int, ...], np.dtype]]


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights to write, which are made one at a time.

  Attributes:
    kinds: shape and type of each parameter, by its name in files.
    make: returns a parameter by name.
  """

  kinds: Kinds
  make: Callable[[str], np.ndarray]

  @property
  def num_parameters(self) -> int:
    """How many numbers they are."""
    return sum(math.prod(shape) for shape, _ in self.kinds.values())


def is_model(folder: str | os.PathLike) -> bool:
  """Returns whether a folder holds a model."""
  return (pathlib.Path(folder) / FILE).is_file()


def weights_of(path: str | os.PathLike) -> pathlib.Path:
  """Returns the file of a generator's weights: the path itself, or that in a model's folder."""
  path = pathlib.Path(path).expanduser()
  return path / WEIGHTS if is_model(path) else path


def load_values(folder: pathlib.Path) -> dict:
  """Returns a model's config, complete, with absolute paths.

  Raises:
    ValueError: a file is missing, or has another size than when the folder was made.
  """
  try:
    sizes = {
      name: facts["bytes"]
      for name, facts in json.loads((folder / FILE).read_text())["files"].items()
    }
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{folder / FILE} is damaged ({error!r}); convert the model again") from error
  for name, size in sizes.items():
    file = folder / name
    found = file.stat().st_size if file.is_file() else None
    if found != size:
      what = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
      raise ValueError(f"{file} {what}; copy or convert the model again")
  return paths.absolute(parse.load_config(folder / CONFIG), folder)


def fine_tuning_config(folder: str | os.PathLike) -> ConfigDict:
  """Returns the config of a run that starts from a model: its network, tokenizer and prompts.

  The stage is called "generator"; data, loss and loop are left to set.

  Args:
    folder: of the model, here or on the hub, which the config then names by its commit.
  Raises:
    ValueError: there is no model, or it is damaged, or cannot be downloaded.
  """
  folder = pathlib.Path(hub.local(folder)).expanduser()
  if not is_model(folder):
    raise ValueError(f"{folder} is no model's folder; make one: `python -m videoar_jax.convert`")
  values = load_values(folder)
  text = values["text"]
  values["text"] = text | {"tokenizer": hub.origin(text["tokenizer"]) or text["tokenizer"]}
  if (frozen := values["frozen_tokenizer"]) is not None:
    values["frozen_tokenizer"] = hub.origin(frozen) or frozen
  path = hub.origin(folder) or str(folder.absolute())
  stage = {"kind": "generator", "init": {"from": path}}
  kept = ("family", "text", "generator", "sampling", "frozen_tokenizer", "tokenizer_dtype")
  data = {name: values["data"][name] for name in ("num_frames", "resolution", "frame_rate")}
  return complete(
    {name: values[name] for name in kept}
    | {"data": data, "stages": (STAGE,), "stage": {STAGE: stage}}
  )


def write(
  folder: str | os.PathLike,
  values: dict,
  source: str,
  weights: Weights,
  parts: Mapping[str, pathlib.Path],
) -> None:
  """Writes a model atomically.

  Args:
    folder: new or empty.
    values: config of a run that only trains the generator; paths of the parts are set here.
    source: where the model is from, for display.
    weights: of the generator.
    parts: files and folders to copy, by their names in the folder: `TOKENIZER`, `GUIDANCE`, and
      one that begins with `TEXT_ENCODER`.
  Raises:
    ValueError: the folder is not empty, or the config is wrong.
    OSError: it cannot be written.
  """
  folder = pathlib.Path(folder).expanduser().absolute()
  check_new(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  values = values | {"frozen_tokenizer": TOKENIZER, "tokenizer": {}}
  for name in parts:
    if name.startswith(TEXT_ENCODER):
      tokenizer = pathlib.PurePath(name).parts[0]
      values = values | {"text": values["text"] | {"tokenizer": tokenizer}}
    if name == GUIDANCE:
      values = values | {"sampling": values["sampling"] | {"guidance": name}}
  with replacing(folder) as partial:
    partial.mkdir()
    for name, path in parts.items():
      (partial / name).parent.mkdir(exist_ok=True)
      (shutil.copytree if path.is_dir() else shutil.copyfile)(path, partial / name)
    parse.save_config(values, partial / CONFIG)
    hashes = {WEIGHTS: tensors.write_each(partial / WEIGHTS, weights.kinds, weights.make)}
    files = sorted(file for file in partial.rglob("*") if file.is_file())
    names = {file.relative_to(partial).as_posix(): file for file in files}
    facts = {
      name: {"bytes": file.stat().st_size, "sha256": hashes.get(name) or sha256(file)}
      for name, file in names.items()
    }
    write_json(partial / FILE, {"source": source, "files": facts})


def text_encoder_parts(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the files of a pretrained text encoder, by their places in a model's folder.

  Args:
    folder: of the encoder; its tokenizer may be in `../tokenizer`, as in pipelines.
  """
  return {f"{TEXT_ENCODER}/{file.name}": file for file in encoder_files(folder)}


def text_encoder_of(parts: Mapping[str, pathlib.Path]) -> pathlib.Path | None:
  """Returns the file or folder that is the text encoder among parts; None if there is none."""
  for name, path in parts.items():
    if name.startswith(TEXT_ENCODER):
      return path.parent if "/" in name else path
  return None


def sha256(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def check_hashes(folder: pathlib.Path) -> int:
  """Reads all files of a model; returns their number.

  Raises:
    ValueError: one is not as it was when the folder was made.
  """
  load_values(folder)
  files = json.loads((folder / FILE).read_text())["files"]
  for name, facts in files.items():
    if sha256(folder / name) != facts["sha256"]:
      raise ValueError(f"{folder / name} has changed since the folder was made; copy it again")
  return len(files)


def load_params(folder: pathlib.Path, abstract: dict, dtype: np.dtype | None = None) -> dict:
  """Reads a model's weights, each device only its own shards.

  Args:
    folder: of the model.
    abstract: shapes with shardings.
    dtype: of the parameters; None for the type that they are stored in, and so for int8, as rounded
      weights are made of those.
  Raises:
    ValueError: they are of another network, or there is too little memory.
  """
  files = TensorFiles(folder / WEIGHTS)
  wanted = flatten(abstract)
  shapes = {name: leaf.shape for name, leaf in wanted.items()}
  if shapes != files.shapes:
    other = sorted(shapes.items() ^ files.shapes.items())
    raise ValueError(
      f"{folder / WEIGHTS} is not of the network that {CONFIG} describes: {other[0][0]} differs"
    )
  _check_memory(folder, sum(map(math.prod, shapes.values())), dtype, files.num_bytes)
  dtype = None if dtype == np.int8 else dtype
  return unflatten({name: _array(files.reader(name), leaf, dtype) for name, leaf in wanted.items()})


def load_initial(
  path: str | os.PathLike, abstract: dict, *, may_lack: bool = False
) -> dict[str, jax.Array]:
  """Reads weights to train from, each device only its own shards.

  Args:
    path: of a file, or of a model's folder.
    abstract: shapes with shardings.
    may_lack: some may be missing, but not all.
  Returns:
    float32 parameters by name, those that there are.
  Raises:
    ValueError: there are none, or they are damaged, or of another network.
  """
  file, wanted = weights_of(path), flatten(abstract)
  shapes = {name: leaf.shape for name, leaf in wanted.items()}
  names = weight_files.check_file(file, shapes, may_lack=may_lack)
  reader, float32 = TensorFiles(file).reader, np.dtype(np.float32)
  return {name: _array(reader(own), wanted[name], float32) for name, own in names.items()}


def _array(read: Callable, leaf: jax.ShapeDtypeStruct, dtype: np.dtype | None) -> jax.Array:
  """Returns an array of a shape and a sharding, given a function from slices to their values."""
  # JAX counts this as an implicit transfer, as in `rules.place`.
  with jax.transfer_guard_host_to_device("allow"):
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda index: np.asarray(read(index), dtype)
    )


def _check_memory(
  folder: pathlib.Path, num_parameters: int, dtype: np.dtype | None, num_stored: int
) -> None:
  """Raises ValueError if a model on the CPU needs more memory than there is.

  Args:
    folder: of the model.
    num_parameters: of its generator.
    dtype: that they will have; None for that in which they are stored.
    num_stored: bytes of the file.
  """
  if jax.default_backend() != "cpu":
    return
  free = available_bytes()
  needed = 0 if dtype is None else num_parameters * dtype.itemsize
  if dtype is None or dtype == np.int8:
    needed += num_stored
  if free is None or needed <= free:
    return
  kind = "as they are stored" if dtype is None else f"in {dtype.name}"
  kind += " beside those that are stored" if dtype == np.int8 else ""
  raise ValueError(
    f"{folder} needs {needed / 2**30:.1f} GiB of memory for its weights {kind}, "
    f"{2 * num_parameters / 2**30:.1f} GiB in bfloat16, but {free / 2**30:.1f} GiB are free; take "
    "--dtype=bfloat16, a smaller model, or more memory"
  )


def available_bytes() -> int | None:
  """Returns how much memory programs can still take; None if the system does not tell."""
  try:
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
  except OSError:
    return None
  found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
  return int(found[0]) * 1024 if found else None
