"""Which steps are bad: a loss or gradient that is not finite, or a loss far above its average."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

_MEMORY = 100  # Steps that the average goes over, and before which no loss is far above it.

Guard = dict[str, Array]


def init() -> Guard:
  """Returns the average of no loss, and the number of steps that it is of."""
  return {"loss": jnp.zeros((), jnp.float32), "count": jnp.zeros((), jnp.int32)}


def judge(
  guard: Guard, metrics: dict[str, Float[Array, ""]], spike: float | None
) -> tuple[Bool[Array, ""], Guard]:
  """Says whether a step is bad; a bad one does not count for the average.

  Args:
    guard: of the steps before.
    metrics: with the step's `loss` and `gradient_norm`.
    spike: how many times the average a loss may be, after the first steps; None for any.
  Returns:
    Whether it is bad, and the guard for the next step.
  """
  loss, average, count = metrics["loss"], guard["loss"], guard["count"]
  is_bad = ~(jnp.isfinite(loss) & jnp.isfinite(metrics["gradient_norm"]))
  if spike is not None:
    is_bad |= (count >= _MEMORY) & (loss > spike * average)
  share = jnp.maximum(1.0 / (count + 1), 1.0 / _MEMORY)
  after = {"loss": average + share * (loss - average), "count": count + 1}
  return is_bad, {name: jnp.where(is_bad, guard[name], after[name]) for name in guard}


def write_bad_step(
  folder: pathlib.Path, step: int, name: str, value: float, samples: dict[str, np.ndarray]
) -> pathlib.Path:
  """Adds a step whose `name` is not what it should be, and this process's samples, to a file.

  Returns:
    The file; each process has its own.
  """
  process = jax.process_index()
  path = folder / (f"bad_steps.{process}.jsonl" if process else "bad_steps.jsonl")
  rows = {field: values.tolist() for field, values in samples.items()}
  with path.open("a") as file:
    file.write(json.dumps({"step": step, name: str(value), **rows}) + "\n")
  return path
