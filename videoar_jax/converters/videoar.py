"""Converts weights of VideoAR by other code, whose tensors a table maps to the parameters here.

No weights of VideoAR are public: the table is written once they are, see docs/weights.md.
"""

import json
import pathlib
import tempfile
from typing import Any

from ml_collections import ConfigDict

from videoar_jax.converters.checkpoints import name_of, read_tensors
from videoar_jax.converters.models import Parts, weights_of
from videoar_jax.experiment import model_folder, parse
from videoar_jax.experiment.defaults import complete
from videoar_jax.experiment.exporting import shared_values, text_parts
from videoar_jax.experiment.schema import RunConfig
from videoar_jax.interop.strict_json import write_json
from videoar_jax.interop.tensor_files import shapes_of
from videoar_jax.interop.tensor_map import (
  MappedTensors,
  Shapes,
  TensorMap,
  listing,
  template_entry,
)
from videoar_jax.models.families import FAMILIES
from videoar_jax.tokenizers.files import Saved, check_new, save_tokenizer, saved_family
from videoar_jax.train.state import Template, flatten, unflatten

_GENERATOR, _TOKENIZER = "generator", "tokenizer"  # Sections of a table.
_STACKED = "blocks."  # Parameters that have a leading layer axis.


def convert_videoar(
  config: ConfigDict,
  checkpoint: pathlib.Path,
  out: pathlib.Path,
  table: pathlib.Path,
  *,
  tokenizer: pathlib.Path | None = None,
  dtype: str | None = None,
) -> str:
  """Converts weights; returns a summary.

  Args:
    config: of a run that would train such a model; its data is not read.
    checkpoint: a file, or a folder of shards.
    out: new folder.
    table: JSON file with a table for the generator, and maybe one for the tokenizer.
    tokenizer: checkpoint of the tokenizer, or a converted one; None if the table's tokenizer is in
      `checkpoint`, or for none.
    dtype: of the generator's weights; None for that of the checkpoint.
  Raises:
    ValueError, OSError: names the file or the flag, and the reason; nothing was written.
  """
  check_new(out)
  values, tables = _complete(config), _read_tables(table)
  is_converted = tokenizer is not None and saved_family(tokenizer) is not None
  if is_converted:
    values = values | {"frozen_tokenizer": str(tokenizer), "tokenizer": {}}
    values["stages"] = [x for x in values["stages"] if values["stage"][x]["kind"] == "generator"]
  elif tokenizer is not None and _TOKENIZER not in tables:
    raise ValueError(f"--map={table} has no section {_TOKENIZER} for --tokenizer={tokenizer}")
  run = parse.finalize(values)
  stage = run.generator_stages[-1]
  generator = _mapped(tables[_GENERATOR], checkpoint, _shapes(run, _GENERATOR))
  source = f"VideoAR, from {name_of(checkpoint)}"
  shared = shared_values(values, run, stage)
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    if is_converted:
      part = Parts({model_folder.TOKENIZER: tokenizer}, [])
    elif _TOKENIZER in tables:
      path = folder / model_folder.TOKENIZER
      mapped = _mapped(tables[_TOKENIZER], tokenizer or checkpoint, _shapes(run, _TOKENIZER))
      saved = Saved(run.tokenizer_family.name, run.tokenizer, source)
      save_tokenizer(path, saved, unflatten(mapped.read_all()))
      part = Parts({model_folder.TOKENIZER: path}, [])
    else:
      line = f"missing: tokenizer; name one by --tokenizer, or add {_TOKENIZER} to {table}"
      part = Parts({}, [line])
    weights = weights_of(generator, dtype)
    files = text_parts(run, shared, folder) | part.files
    model_folder.write(out, shared, source, weights, files)
  return "\n".join([f"{out}: {weights.num_parameters:,} parameters", *part.missing])


def write_template(
  config: ConfigDict, path: pathlib.Path, checkpoint: pathlib.Path | None = None
) -> str:
  """Writes a table to edit, with an entry for each parameter; returns a summary.

  Args:
    config: of a run that would train such a model.
    path: JSON file to write.
    checkpoint: whose tensors to list; None for none.
  Raises:
    ValueError, OSError: the config is wrong, the file is there already, or it cannot be written.
  """
  if path.exists():
    raise ValueError(f"--template={path} is there already; name a new file")
  run, tables = parse.finalize(_complete(config)), {}
  for section in (_GENERATOR, _TOKENIZER):
    shapes = _shapes(run, section)
    entries = [
      template_entry(name, shape, is_stacked=section == _GENERATOR and name.startswith(_STACKED))
      for name, shape in shapes.items()
    ]
    tables[section] = {"ignore": [], "tensors": entries}
  # Before anything is written: it may be damaged.
  lines = [] if checkpoint is None else listing(shapes_of(read_tensors(checkpoint)[0]))
  write_json(path, tables)
  num = sum(len(section["tensors"]) for section in tables.values())
  head = f"{path}: {num} parameters; edit what each is made of, then name the file by --map"
  return "\n".join([head, *(f"  {line}" for line in lines)])


def _complete(config: ConfigDict) -> dict[str, Any]:
  """Returns a config with all fields; raises ValueError if it trains no VideoAR."""
  values = complete(config).to_dict()
  kinds = [values["stage"][name]["kind"] for name in values["stages"] if name in values["stage"]]
  if FAMILIES.get(values["family"]) is not FAMILIES["videoar"] or "generator" not in kinds:
    raise ValueError("--config trains no generator of the family videoar; name one that does")
  return values


def _shapes(run: RunConfig, section: str) -> Shapes:
  """Returns the shapes of the parameters of a run's generator or tokenizer."""
  make = (
    run.family.make_module(run)
    if section == _GENERATOR
    else run.tokenizer_family.make_module(run.tokenizer)
  )
  return {name: tuple(leaf.shape) for name, leaf in flatten(Template.of(make).shapes).items()}


def _read_tables(path: pathlib.Path) -> dict[str, TensorMap]:
  """Reads the tables of a file, by section.

  Raises:
    ValueError: it is no JSON file, or something in it is wrong. OSError: it cannot be read.
  """
  try:
    values = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"--map={path} is no JSON file ({error})") from error
  sections = (_GENERATOR, _TOKENIZER)
  if not isinstance(values, dict) or _GENERATOR not in values or values.keys() - set(sections):
    raise ValueError(f"--map={path} must have a section {_GENERATOR}, and maybe {_TOKENIZER}")
  return {name: TensorMap.parse(table, f"{path}: {name}") for name, table in values.items()}


def _mapped(table: TensorMap, checkpoint: pathlib.Path, shapes: Shapes) -> MappedTensors:
  """Opens a checkpoint and checks it against a table.

  Raises:
    ValueError, OSError: the checkpoint is damaged, lacks the part that the table names, or differs.
  """
  found, _ = read_tensors(checkpoint, parts=[table.part] if table.part else ())
  try:
    return table.apply(found, shapes)
  except ValueError as error:
    raise ValueError(f"{checkpoint}: {error}") from error
