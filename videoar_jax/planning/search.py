"""Looks for the meshes and remat policies that make a step fast and let it fit."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.parallel.mesh import AXES, MeshConfig, num_batch_shards
from videoar_jax.parallel.rules import ShardingError
from videoar_jax.planning.estimate import estimate
from videoar_jax.planning.pod import Pod
from videoar_jax.planning.step_plan import DoesNotFit, StepPlan, check_divides, with_largest_shape
from videoar_jax.planning.tables import bytes_text
from videoar_jax.train.state import state_shardings

REMAT = ("none", "dots", "full")


class Found(NamedTuple):
  """A mesh that divides a stage, with the policy of its run, and what is counted of a step."""

  seconds: float
  product_seconds: float
  memory: float
  mesh: MeshConfig
  run: RunConfig


def search(run: RunConfig, stage: StageConfig, pod: Pod, slices: int, num: int) -> str:
  """Returns the fastest meshes and remat policies that fit, by estimate.

  The memory of TPUs is the compiler's, of candidates from the fastest on, until enough fit.

  Raises:
    ValueError: none fits, or the family does not count its step.
  """
  found = rank(run, stage, pod, slices)
  lines = []
  for seconds, _, memory, mesh, other in found:
    if len(lines) == num:
      break
    note = f"counted {bytes_text(memory)}"
    if pod.is_compiled:
      try:
        note = f"peak {bytes_text(StepPlan.of(other, stage, pod, mesh).compile().peak)}"
      except DoesNotFit:
        continue
    sizes = ",".join(f"{a}:{getattr(mesh, a)}" for a in AXES if getattr(mesh, a) > 1) or "data:1"
    remat = getattr(other.generator, "remat", "-") if stage.kind == "generator" else "-"
    days = stage.loop.num_steps * seconds / 86400
    lines.append(f"--mesh={sizes}  remat={remat}  {seconds:.3g} s a step, {days:.3g} days, {note}")
  if not lines:
    raise ValueError(
      f"nothing fits on {pod.name}, of {len(found)} meshes that divide and may fit; take more "
      "chips or a smaller batch_size"
    )
  return "\n".join(lines)


def rank(run: RunConfig, stage: StageConfig, pod: Pod, slices: int) -> list[Found]:
  """Returns the meshes that divide a stage and fit, as far as is counted, the fastest first."""
  counted = dataclasses.replace(pod, is_compiled=False)
  # Shapes are the same on every mesh, and take seconds to find.
  one = dataclasses.replace(counted, num_chips=1, chip=dataclasses.replace(pod.chip, num_devices=1))
  draft = StepPlan.of(run, stage, one, MeshConfig(data=1))
  trainer = draft.trainer
  num_devices = pod.num_chips * pod.chip.num_devices
  found = []
  for mesh_config in _candidates(num_devices, slices):
    mesh = counted.mesh(mesh_config)
    try:
      check_divides(run, stage, pod, mesh)
      shardings = state_shardings(trainer.abstract_state, trainer.templates, mesh)
    except ShardingError:
      continue
    largest = with_largest_shape(run, stage, num_batch_shards(mesh))
    for other in _policies(run, stage):
      cost = estimate(other, largest, trainer.abstract_state, shardings, draft.frozen, mesh)
      if cost is None:
        raise ValueError("--search: this family's step is not counted; name a mesh: --mesh=...")
      if cost.memory < pod.chip.memory / pod.chip.num_devices:
        parts = cost.seconds(pod.chip, mesh.size)
        found.append(Found(max(parts.values()), parts["products"], cost.memory, mesh_config, other))
  # Of those as fast, that of the least work, and then of the least memory.
  return sorted(found, key=lambda item: item[:3])


def _policies(run: RunConfig, stage: StageConfig) -> Iterator[RunConfig]:
  """Yields the run with each policy of what its generator computes anew."""
  if stage.kind != "generator" or not hasattr(run.generator, "remat"):
    yield run
    return
  for remat in REMAT:
    yield dataclasses.replace(run, generator=dataclasses.replace(run.generator, remat=remat))


def _candidates(num_devices: int, slices: int) -> Iterator[MeshConfig]:
  """Yields meshes over slices of so many devices; heads and sequences over 16 at most."""
  powers = [2**i for i in range(5)]
  for tensor in powers:
    for sequence in powers:
      if num_devices % (tensor * sequence):
        continue
      rest = num_devices // (tensor * sequence)
      for fsdp in (size for size in range(1, rest + 1) if rest % size == 0):
        yield MeshConfig(
          data=rest // fsdp, fsdp=fsdp, sequence=sequence, tensor=tensor, slice=slices
        )
