"""Flags of the conversions of public checkpoints, and the calls that they make.

Those of `videoar_jax.convert` that write what a run has trained are there.
"""

import argparse
import pathlib
from collections.abc import Callable

from videoar_jax.experiment.command_line import parse_resolution

WEIGHT_DTYPES = ("float32", "float16", "bfloat16")


def add_paths(parser: argparse.ArgumentParser, checkpoint: str) -> None:
  """Adds the flags of every conversion.

  Args:
    parser: of the conversion.
    checkpoint: what to name, for --help.
  """
  add, unset = parser.add_argument, argparse.SUPPRESS
  add("--checkpoint", required=True, default=unset, help=checkpoint, type=path_of)
  add("--out", required=True, default=unset, help="new folder for the result", type=path_of)


def path_of(text: str) -> pathlib.Path:
  return pathlib.Path(text).expanduser()


def add_parts(
  parser: argparse.ArgumentParser, tokenizer: str, text_encoder: str | None = None
) -> None:
  """Adds the flags of conversions of whole models.

  Args:
    parser: of the conversion.
    tokenizer, text_encoder: what to name, for --help; None for no flag.
  """
  add, unset = parser.add_argument, argparse.SUPPRESS
  add("--tokenizer", default=unset, type=path_of, help=tokenizer)
  if text_encoder is not None:
    add("--text_encoder", default=unset, type=path_of, help=text_encoder)
  add(
    "--dtype",
    choices=WEIGHT_DTYPES,
    default=unset,
    help="of the weights; default: as in the checkpoint",
  )


def add_nova(parser: argparse.ArgumentParser) -> None:
  add_paths(parser, "folder of a pipeline, with transformer/, vae/ and text_encoder/")
  add_parts(
    parser,
    "autoencoder to use instead of vae/, public or converted",
    "folder of a Phi-2 to use instead of text_encoder/",
  )
  parser.add_argument(
    "--num_heads",
    type=int,
    default=argparse.SUPPRESS,
    help="for a transformer of a width that no public one has",
  )
  parser.set_defaults(run=_convert_nova)


def _convert_nova(options: argparse.Namespace) -> str:
  from videoar_jax.converters.nova import convert_nova

  return convert_nova(**settings_of(options))


def settings_of(options: argparse.Namespace) -> dict:
  """Returns the flags of a conversion that were given."""
  return {name: value for name, value in vars(options).items() if name not in ("command", "run")}


def add_infinity(parser: argparse.ArgumentParser) -> None:
  add_paths(parser, "of the transformer: .pth or .safetensors file, or folder of shards")
  add_parts(parser, "image tokenizer, public or converted", "folder of the T5: flan-t5-xl")
  parser.add_argument(
    "--resolution",
    default=argparse.SUPPRESS,
    help="of images by default, such as 1024 or HEIGHTxWIDTH; default: 1024, or 256 for 125M",
  )
  parser.set_defaults(run=_convert_infinity)


def _convert_infinity(options: argparse.Namespace) -> str:
  from videoar_jax.converters.infinity import convert_infinity_model

  settings = settings_of(options)
  if "resolution" in settings:
    settings["resolution"] = parse_resolution(settings["resolution"])
  return convert_infinity_model(**settings)


def add_infinity_star(parser: argparse.ArgumentParser) -> None:
  add_paths(parser, "of the transformer: folder of shards, or .pth or .safetensors file")
  add_parts(parser, "video autoencoder, public or converted", "folder of the T5: flan-t5-xl")
  parser.add_argument(
    "--size", choices=("480p", "720p"), default="480p", help="of the videos it was trained on"
  )
  parser.add_argument(
    "--num_frames",
    type=int,
    default=81,
    help="of a clip by default, 81 or 161; with 161, --video continues a whole clip of 81",
  )
  parser.add_argument(
    "--interactive",
    action="store_true",
    help="it is the interactive model: settings for `sample --interactive`",
  )
  parser.set_defaults(run=_convert_infinity_star)


def _convert_infinity_star(options: argparse.Namespace) -> str:
  from videoar_jax.converters.infinity import convert_star_model

  return convert_star_model(**settings_of(options))


def add_videoar(parser: argparse.ArgumentParser) -> None:
  add, unset = parser.add_argument, argparse.SUPPRESS
  what = parser.add_mutually_exclusive_group(required=True)
  add("--config", required=True, default=unset, help="config file that would train such a model")
  what.add_argument("--map", default=unset, type=path_of, help="JSON table, see docs/weights.md")
  what.add_argument("--template", default=unset, type=path_of, help="JSON table to write, to edit")
  add(
    "--checkpoint", default=unset, type=path_of, help="weights; with --template, lists their names"
  )
  add_parts(parser, "checkpoint of the tokenizer, or a converted one; default: --checkpoint")
  add("--out", default=unset, help="new folder for the result", type=path_of)
  parser.set_defaults(run=_convert_videoar)


def _convert_videoar(options: argparse.Namespace) -> str:
  from videoar_jax.converters.videoar import convert_videoar, write_template

  settings = settings_of(options)
  if "template" in settings:
    known = {"config": "config", "template": "path", "checkpoint": "checkpoint"}
    wrong = settings.keys() - known
    if wrong:
      raise ValueError(f"--{min(wrong)} goes with --map, not with --template; leave it out")
    return write_template(**{known[name]: value for name, value in settings.items()})
  for name in ("checkpoint", "out"):
    if name not in settings:
      raise ValueError(f"--{name} is missing; --map needs it")
  settings["table"] = settings.pop("map")
  return convert_videoar(**settings)


def adds_tokenizer(function: str) -> Callable[[argparse.ArgumentParser], None]:
  """Returns what adds the flags of a conversion in `converters.tokenizers`."""

  def run(options: argparse.Namespace) -> str:
    from videoar_jax.converters import tokenizers

    return getattr(tokenizers, function)(options.checkpoint, options.out)

  def add(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, "the .safetensors or .pth file")
    parser.set_defaults(run=run)

  return add


def add_kl_tokenizer(parser: argparse.ArgumentParser) -> None:
  add_paths(
    parser,
    "folder with config.json and safetensors files, the folder of its pipeline, or a .safetensors "
    "or .pth file with config.json beside it",
  )
  parser.add_argument(
    "--tiling",
    action="store_true",
    help="for the video autoencoder: code clips in tiles of 17 frames, as NOVA's public code does",
  )
  parser.set_defaults(run=_convert_kl_tokenizer)


def _convert_kl_tokenizer(options: argparse.Namespace) -> str:
  from videoar_jax.converters.tokenizers import convert_kl

  return convert_kl(options.checkpoint, options.out, tiling=options.tiling)
