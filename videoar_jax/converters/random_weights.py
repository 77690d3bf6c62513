"""Models of random weights with the layouts of public ones: for plans, and for trials."""

import math
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Mapping

import ml_dtypes  # noqa: F401  # Registers bfloat16 with numpy.
import numpy as np

from videoar_jax.converters.layouts import FEATURES, public_layout, run_of
from videoar_jax.experiment import model_folder
from videoar_jax.interop import tensors
from videoar_jax.tokenizers import files
from videoar_jax.train.state import Template, flatten

Shapes = Mapping[str, tuple[int, ...]]

_SPREAD = 0.02  # Standard deviation of kernels and tables.
_PART = 2**24  # Numbers that are drawn at a time.


def write_random(like: str, out: pathlib.Path, *, dtype: str = "bfloat16") -> str:
  """Writes a model of random weights; returns a summary.

  Memory holds one parameter at a time. Instead of a text encoder there are features of "" alone.

  Args:
    like: name of the public model, one of `layouts.NAMES`.
    out: new folder.
    dtype: of the generator's weights.
  Raises:
    ValueError, OSError: names the name or the folder, and the reason.
  """
  layout = public_layout(like)
  files.check_new(out)
  with run_of(like) as run:
    generator = _shapes_of(Template.of(run.family.make_module(run)))
    tokenizer = _shapes_of(Template.of(run.tokenizer_family.make_module(run.tokenizer)))
  kind = np.dtype(dtype)
  weights = model_folder.Weights(
    {name: (shape, kind) for name, shape in generator.items()}, _maker(generator, kind)
  )
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    parts = {name: folder / name for name in (model_folder.TOKENIZER, FEATURES)}
    make = _maker(tokenizer, np.dtype(np.float32))
    files.save_each(parts[model_folder.TOKENIZER], layout.tokenizer, tokenizer, make)
    tensors.write(parts[FEATURES], {"": _draw("", (1, layout.config.text_dim), 1.0)})
    model_folder.write(out, layout.settings, layout.tokenizer.source, weights, parts)
  num = sum(map(math.prod, tokenizer.values()))
  return (
    f"{out}: {weights.num_parameters:,} random parameters of type {kind.name}, and a tokenizer's "
    f'{num:,}; plan with --model={out}, or sample with --prompt=""'
  )


def _shapes_of(template: Template) -> Shapes:
  return {name: leaf.shape for name, leaf in flatten(template.shapes).items()}


def _maker(shapes: Shapes, dtype: np.dtype) -> Callable[[str], np.ndarray]:
  """Returns a function from a parameter's name to its value."""

  def make(name: str) -> np.ndarray:
    last = name.rpartition(".")[2]
    if last in ("scale", "bias"):
      return np.full(shapes[name], last == "scale", dtype)
    return _draw(name, shapes[name], _SPREAD, dtype)

  return make


def _draw(
  name: str, shape: tuple[int, ...], spread: float, dtype: np.dtype | type = np.float32
) -> np.ndarray:
  """Returns normally distributed numbers that depend on the name; part by part, to save memory."""
  draws, values = np.random.default_rng(zlib.crc32(name.encode())), np.empty(shape, dtype)
  flat = values.reshape(-1)
  for start in range(0, len(flat), _PART):
    part = flat[start : start + _PART]
    part[:] = spread * draws.standard_normal(len(part), np.float32)
  return values
