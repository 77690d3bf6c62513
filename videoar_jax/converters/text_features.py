"""Computes features of prompts with a pretrained text encoder, to a file for `text.tokenizer`."""

import os
import pathlib

from videoar_jax.text.features import SUFFIX, write_features
from videoar_jax.text.pretrained import PretrainedText
from videoar_jax.text.prompts import read_prompts


def write_text_features(
  text_encoder: str | os.PathLike,
  prompts_file: str | os.PathLike,
  out: str | os.PathLike,
  length: int,
  dtype: str,
) -> str:
  """Writes features of prompts, and of ""; returns a summary.

  Args:
    text_encoder: folder of the encoder.
    prompts_file: a prompt a line.
    out: a file, or a new folder of files.
    length: largest number of tokens; longer prompts are cut.
    dtype: of the encoder's weights.
  Raises:
    ValueError, OSError: names the flag or the file, and the reason.
  """
  out = pathlib.Path(out).expanduser()
  if out.suffix != SUFFIX and out.exists():
    raise ValueError(
      f"--out={out} is there already; name a file that ends in {SUFFIX}, or a folder"
    )
  prompts = list(dict.fromkeys(["", *read_prompts(prompts_file)]))
  try:
    encoder = PretrainedText(os.fspath(text_encoder), length, dtype)
  except ValueError as error:
    raise ValueError(f"--text_encoder={text_encoder}: {error}") from error
  longest = write_features(out, encoder, prompts)
  lines = [
    f"{out}: {len(prompts):,} prompts, that of no words included; train with "
    f"config.text.tokenizer={out}, config.text.length={longest}"
  ]
  if encoder.num_cut:
    lines.append(f"{encoder.num_cut:,} prompts were cut to --length={length} tokens")
  return "\n".join(lines)
