"""Which steps are bad: a number that is not finite, or a loss far above its average."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from videoar_jax.interop.atomic import write_text

_MEMORY = 100  # Steps that the average goes over, and before which no loss is far above it.
MAX_BAD_IN_A_ROW = 20  # Of steps that may be skipped: more are no accident of their samples.
# A perfect reconstruction has an infinite PSNR.
_MAY_BE_INFINITE = ("psnr",)

AnomalyState = dict[str, Array]


def init() -> AnomalyState:
  """Returns the average of no loss, how many steps it is of, and how many bad ones came last."""
  count = jnp.zeros((), jnp.int32)
  return {"loss": jnp.zeros((), jnp.float32), "count": count, "num_bad": jnp.copy(count)}


def update(
  guard: AnomalyState, metrics: dict[str, Float[Array, ""]], spike: float | None
) -> tuple[Bool[Array, ""], AnomalyState]:
  """Says whether a step is bad; a bad one does not count for the average.

  Args:
    guard: of the steps before.
    metrics: of the step, `loss` and the norms of all gradients among them.
    spike: how many times the average a loss may be, after the first steps; None for any. Of an
      average below 0, it may be as far above it as it could of its opposite.
  Returns:
    Whether it is bad, and the guard for the next step.
  """
  loss, average, count = metrics["loss"], guard["loss"], guard["count"]
  judged = [value for name, value in metrics.items() if name not in _MAY_BE_INFINITE]
  is_bad = ~jnp.all(jnp.isfinite(jnp.stack([jnp.asarray(value, jnp.float32) for value in judged])))
  if spike is not None:
    is_bad |= (count >= _MEMORY) & (loss > average + (spike - 1) * jnp.abs(average))
  share = jnp.maximum(1.0 / (count + 1), 1.0 / _MEMORY)
  good = {"loss": average + share * (loss - average), "count": count + 1}
  good["num_bad"] = jnp.zeros_like(count)
  bad = guard | {"num_bad": guard["num_bad"] + 1}
  return is_bad, {name: jnp.where(is_bad, bad[name], good[name]) for name in guard}


def reason(values: dict[str, float]) -> str:
  """Returns which of a bad step's numbers is not what it should be."""
  bad = [
    name
    for name, value in values.items()
    if name not in _MAY_BE_INFINITE and not math.isfinite(value)
  ]
  return "loss" if "loss" in bad or not bad else bad[0]


def _step_of(line: str) -> float:
  """Returns the step of a line; that of one which was cut off, by a kill, is after all others."""
  try:
    return json.loads(line)["step"]
  except ValueError:
    return math.inf


def write_bad_step(
  folder: pathlib.Path, step: int, name: str, value: float, samples: dict[str, np.ndarray]
) -> pathlib.Path:
  """Adds a step whose `name` is not what it should be, and this process's samples, to a file.

  A run that went on from a checkpoint makes steps again: what the file has of them goes.

  Returns:
    The file; each process has its own.
  """
  process = jax.process_index()
  path = folder / (f"bad_steps.{process}.jsonl" if process else "bad_steps.jsonl")
  rows = {field: values.tolist() for field, values in samples.items()}
  lines = path.read_text().splitlines() if path.exists() else []
  kept = [line for line in lines if _step_of(line) < step]
  kept.append(json.dumps({"step": step, name: str(value), **rows}))
  write_text(path, "\n".join(kept) + "\n")
  return path
