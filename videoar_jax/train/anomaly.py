"""Detects bad steps: a metric that is not finite, or a loss far above its average."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from videoar_jax.interop.atomic import write_text
from videoar_jax.interop.strict_json import to_json

_MEMORY = 100  # Steps in the running average; spikes are not detected before as many steps.
MAX_BAD_IN_A_ROW = 20  # Steps to skip in a row; after more, the samples are not the cause.
# A perfect reconstruction has an infinite PSNR.
_MAY_BE_INFINITE = ("psnr",)

AnomalyState = dict[str, Array]


def init() -> AnomalyState:
  """Returns the initial state: average loss, number of steps in it, and bad steps in a row."""
  count = jnp.zeros((), jnp.int32)
  return {"loss": jnp.zeros((), jnp.float32), "count": count, "num_bad": jnp.copy(count)}


def update(
  guard: AnomalyState, metrics: dict[str, Float[Array, ""]], spike: float | None
) -> tuple[Bool[Array, ""], AnomalyState]:
  """Returns whether a step is bad, and the updated state; bad steps do not enter the average.

  Args:
    guard: state after the previous step.
    metrics: metrics of the step, including `loss` and all gradient norms.
    spike: factor over the average loss above which a loss is bad, after the first steps; None for
      no limit. The distance to the average is relative to its absolute value, so that averages
      below 0 work, too.
  Returns:
    Whether the step is bad, and the state for the next step.
  """
  loss, average, count = metrics["loss"], guard["loss"], guard["count"]
  checked = [value for name, value in metrics.items() if name not in _MAY_BE_INFINITE]
  is_bad = ~jnp.all(jnp.isfinite(jnp.stack([jnp.asarray(value, jnp.float32) for value in checked])))
  if spike is not None:
    is_bad |= (count >= _MEMORY) & (loss > average + (spike - 1) * jnp.abs(average))
  share = jnp.maximum(1.0 / (count + 1), 1.0 / _MEMORY)
  good = {"loss": average + share * (loss - average), "count": count + 1}
  good["num_bad"] = jnp.zeros_like(count)
  bad = guard | {"num_bad": guard["num_bad"] + 1}
  return is_bad, {name: jnp.where(is_bad, bad[name], good[name]) for name in guard}


def reason(values: dict[str, float]) -> str:
  """Returns the name of the metric that makes a step bad."""
  bad = [
    name
    for name, value in values.items()
    if name not in _MAY_BE_INFINITE and not math.isfinite(value)
  ]
  return "loss" if "loss" in bad or not bad else bad[0]


def _step_of(line: str) -> float:
  """Returns the step of a line; infinity for a line that was cut off by a kill."""
  try:
    return json.loads(line)["step"]
  except ValueError:
    return math.inf


def write_bad_step(
  folder: pathlib.Path, step: int, name: str, value: float, samples: dict[str, np.ndarray]
) -> pathlib.Path:
  """Adds a bad step, its bad metric `name`, and this process's samples to a file.

  Lines of this step and later ones are removed: a resumed run repeats those steps.

  Returns:
    The file; each process has its own.
  """
  process = jax.process_index()
  path = folder / (f"bad_steps.{process}.jsonl" if process else "bad_steps.jsonl")
  rows = {field: values.tolist() for field, values in samples.items()}
  lines = path.read_text().splitlines() if path.exists() else []
  kept = [line for line in lines if _step_of(line) < step]
  kept.append(to_json({"step": step, name: str(value), **rows}))
  write_text(path, "\n".join(kept) + "\n")
  return path
