"""Turns public checkpoints into files of this package.

  python -m videoar_jax.convert infinity_tokenizer --checkpoint=FILE --out=FOLDER

FILE is a .safetensors file, or a .pth file, which needs PyTorch. Of a .pth file nothing but tensors
is read: one that holds code is refused.
"""

import argparse
import pathlib
import pickle
import sys

import numpy as np

from videoar_jax.command_line import Formatter, Parser, one_line


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for what the user can mend."""
  options = _parser().parse_args(argv)
  try:
    _COMMANDS[options.command](options)
  except (ValueError, OSError) as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 2
  return 0


def infinity_tokenizer(options: argparse.Namespace) -> None:
  """Convert Infinity's image tokenizer.

  Raises:
    ValueError, OSError: names the file and what is wrong with it.
  """
  from videoar_jax.nn.layers import count_parameters
  from videoar_jax.tokenizer import files, infinity

  checkpoint, out = pathlib.Path(options.checkpoint), pathlib.Path(options.out)
  files.check_new(out)
  tensors, unused = read_tensors(checkpoint, part="vae")
  try:
    config, params = infinity.import_params(tensors)
  except ValueError as error:
    raise ValueError(f"{checkpoint}: {error}") from error
  source = f"Infinity's image tokenizer, from {checkpoint.name}"
  files.save_tokenizer(out, files.Saved(config, None, source), params)
  unused += [key for key in tensors if key in infinity.NOT_NEEDED]
  print(f"{out}: {infinity.summary(config)}, {count_parameters(params):,} parameters")
  if unused:
    print(f"not needed, left out: {', '.join(unused)}")


_COMMANDS = {"infinity_tokenizer": infinity_tokenizer}


def _parser() -> argparse.ArgumentParser:
  parser = Parser(
    prog="python -m videoar_jax.convert", description=__doc__, formatter_class=Formatter
  )
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for name, function in _COMMANDS.items():
    text = function.__doc__.splitlines()[0]
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.add_argument("--checkpoint", required=True, help="file to convert")
    command.add_argument("--out", required=True, help="new folder for the result")
  return parser


def read_tensors(
  path: pathlib.Path, *, part: str | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Reads the tensors of a checkpoint.

  Args:
    path: a .safetensors or .pth file.
    part: the entry of a .pth file to read, where it has one of this name.
  Returns:
    (tensors by key, names of the entries beside the part).
  Raises:
    ValueError, OSError: the file is missing, damaged, of another kind, or not of tensors alone.
  """
  if not path.is_file():
    raise ValueError(f"{path} is not a file; give --checkpoint the path of one")
  if path.suffix == ".safetensors":
    return _read_safetensors(path), []
  if path.suffix in (".pth", ".pt"):
    loaded = _load_pth(path)
    inner = loaded.get(part) if isinstance(loaded, dict) else None
    unused = [] if inner is None else [str(key) for key in loaded if key != part]
    return _to_arrays(path, loaded if inner is None else inner), unused
  raise ValueError(f"{path} is neither a .safetensors nor a .pth file; name it as what it is")


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  try:
    return load_file(path)
  except SafetensorError as error:
    raise ValueError(f"{path} is cut off or damaged ({error}); fetch it again") from error
  except (KeyError, TypeError) as error:
    raise ValueError(f"{path} has a type of numbers that NumPy lacks ({error})") from error


def _load_pth(path: pathlib.Path):
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f"{path} is opened with PyTorch, which is not installed: run `python -m pip install "
      "'torch>=2.6'` (the extra `convert`), or give a .safetensors file"
    ) from error
  try:
    return torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    if "global" not in str(error).lower().partition("weights only load failed")[2]:
      raise ValueError(f"{path} is cut off or damaged; fetch it again") from error
    raise ValueError(
      f"{path} holds code beside its tensors, which was not run. If you trust who made it, save "
      "its tensors alone, and convert that file"
    ) from error
  except (RuntimeError, EOFError, ValueError, KeyError, AssertionError) as error:
    reason = one_line(error)[:120]
    raise ValueError(f"{path} is cut off or damaged ({reason}); fetch it again") from error


def _to_arrays(path: pathlib.Path, tensors) -> dict[str, np.ndarray]:
  if not isinstance(tensors, dict):
    raise ValueError(f"{path} holds a {type(tensors).__name__}, not tensors by key")
  other = [str(key) for key, value in tensors.items() if not hasattr(value, "is_floating_point")]
  if other:
    raise ValueError(f"{path} holds entries that are not tensors: {', '.join(other)}")
  return {
    key: (value.float() if value.is_floating_point() else value).numpy()
    for key, value in tensors.items()
  }


if __name__ == "__main__":
  sys.exit(main())
