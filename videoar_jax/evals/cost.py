"""What a generator's clips cost, beside how good they are."""

import jax

from videoar_jax.experiment.schema import RunConfig
from videoar_jax.models.base import ClipShape
from videoar_jax.nn.layers import count_parameters
from videoar_jax.train.state import Template


def cost_of(
  model,
  run: RunConfig,
  shape: ClipShape,
  *,
  seconds_a_clip: float,
  steps_a_clip: int | None,
) -> dict:
  """Returns a clip's costs, for a result file.

  Args:
    model: the generator.
    run: its run.
    shape: of the clips.
    seconds_a_clip: in full batches, after compilation.
    steps_a_clip: how often the network runs for a clip; None if that is not known.
  """
  mesh = getattr(model, "mesh", None)
  return {
    "seconds_a_clip": seconds_a_clip,
    "steps_a_clip": steps_a_clip,
    "tokens_a_clip": run.family.num_tokens(run, shape),
    "parameters": count_parameters(Template.of(run.family.make_module(run)).shapes),
    "device": jax.devices()[0].device_kind,
    "num_devices": 1 if mesh is None else mesh.size,
  }


def cost_lines(cost: dict) -> list[str]:
  """Formats the costs but for seconds and steps, for a table."""
  return [
    f"{'tokens a clip':26}{cost['tokens_a_clip']:8,}",
    f"{'parameters':26}{cost['parameters']:8,}",
    f"{'device':26}  {cost['num_devices']} x {cost['device']}",
  ]
