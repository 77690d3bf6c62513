"""Which clips a command reads: a run's `data` section, with the changes that flags make."""

import argparse
import contextlib
import dataclasses
import pathlib
import re

from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.experiment.command_line import parse_resolution

# Fields of the run's own data that other sources may refuse; most are of training clips alone.
_OTHER_DATA = {
  **{"split_file": None, "filter": None, "stored_frame_rate": None, "frame_rates": ()},
  **{"is_flipped": False, "is_randomly_cropped": False},
  **{"p_drop_caption": 0.0, "p_short_caption": 0.0},
}


def data_of_flags(options: argparse.Namespace) -> DataConfig:
  """Returns a data section from flags alone.

  Raises:
    ValueError: a flag is missing or wrong.
  """
  missing = [n for n in ("data", "num_frames", "resolution") if not hasattr(options, n)]
  if missing:
    flags = ", ".join(f"--{name}" for name in missing)
    what = f"{options.workdir} is a converted tokenizer, which has no data settings"
    raise ValueError(f"{what}: add {flags}")
  return changed_data(options, DataConfig())


def changed_data(options: argparse.Namespace, data: DataConfig) -> DataConfig:
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
  if hasattr(options, "split_file"):
    changes["split_file"] = options.split_file
  with _flag_names():
    return dataclasses.replace(data, **changes)


def open_source(data: DataConfig, tokenizer):
  """Opens the test clips.

  Raises:
    ValueError: there are none, or the tokenizer cannot encode clips of this size.
  """
  with _flag_names():
    tokenizer.config.latent_shape(data.num_frames, data.resolution)
  return make_source(data, "test")


@contextlib.contextmanager
def _flag_names():
  """Replaces config fields in error messages by the flags of the same names."""
  try:
    yield
  except ValueError as error:
    names = r"\bdata\.(num_frames|resolution|frame_rate|clips_per_file|split_file)\b"
    text = re.sub(names, r"--\1", str(error))
    raise ValueError(text) from error
