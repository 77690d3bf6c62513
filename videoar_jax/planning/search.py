"""Searches for meshes and remat policies with which a step is fast and fits into memory."""

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
  """A mesh that divides a stage, the run with a remat policy, and the estimate of a step."""

  seconds: float
  product_seconds: float
  memory: float
  mesh: MeshConfig
  run: RunConfig


def search(run: RunConfig, stage: StageConfig, pod: Pod, slices: int, num: int) -> str:
  """Returns the fastest meshes and remat policies that fit, by estimated time.

  For TPUs, the compiler checks the memory of the candidates, fastest first, until enough fit.

  Raises:
    ValueError: none fits, or the family has no estimate of its step.
  """
  candidates = rank(run, stage, pod, slices)
  lines = []
  for seconds, _, memory, mesh, other in candidates:
    if len(lines) == num:
      break
    note = f"estimated {bytes_text(memory)}"
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
      f"nothing fits on {pod.name}, of {len(candidates)} meshes that might fit; take more "
      "chips or a smaller batch_size"
    )
  return "\n".join(lines)


def rank(run: RunConfig, stage: StageConfig, pod: Pod, slices: int) -> list[Found]:
  """Returns the meshes that divide a stage and fit by estimate, the fastest first."""
  abstract = dataclasses.replace(pod, is_compiled=False)
  # Shapes are the same on every mesh, and take seconds to compute.
  one_chip = dataclasses.replace(pod.chip, num_devices=1)
  one = dataclasses.replace(abstract, num_chips=1, chip=one_chip)
  step_plan = StepPlan.of(run, stage, one, MeshConfig(data=1))
  trainer = step_plan.trainer
  num_devices = pod.num_chips * pod.chip.num_devices
  found = []
  for mesh_config in _candidates(num_devices, slices):
    mesh = abstract.mesh(mesh_config)
    try:
      check_divides(run, stage, pod, mesh)
      shardings = state_shardings(trainer.abstract_state, trainer.templates, mesh)
    except ShardingError:
      continue
    largest = with_largest_shape(run, stage, num_batch_shards(mesh))
    for other in _policies(run, stage):
      cost = estimate(other, largest, trainer.abstract_state, shardings, step_plan.frozen, mesh)
      if cost is None:
        raise ValueError("--search: this family has no step estimate; name a mesh: --mesh=...")
      if cost.memory < pod.chip.memory / pod.chip.num_devices:
        parts = cost.seconds(pod.chip, mesh.size)
        found.append(Found(max(parts.values()), parts["products"], cost.memory, mesh_config, other))
  # Ties go to the least arithmetic, then to the least memory.
  return sorted(found, key=lambda item: item[:3])


def _policies(run: RunConfig, stage: StageConfig) -> Iterator[RunConfig]:
  """Yields the run with each remat policy of its generator."""
  if stage.kind != "generator" or not hasattr(run.generator, "remat"):
    yield run
    return
  for remat in REMAT:
    yield dataclasses.replace(run, generator=dataclasses.replace(run.generator, remat=remat))


def _candidates(num_devices: int, slices: int) -> Iterator[MeshConfig]:
  """Yields meshes for slices of `num_devices`; tensor and sequence axes of 16 at most."""
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
