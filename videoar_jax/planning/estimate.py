"""Estimates a training step on a mesh without compiling it: memory, FLOPs, bytes moved, time.

The estimate covers the transformer or the autoencoder, and the frozen encoder of a transformer's
stage. It leaves out LPIPS, discriminators, norms and activations, and the memory that a tokenizer
keeps for its backward pass. Products, memory, links and the network between slices are assumed to
overlap fully, each at the share of its datasheet value below; the slowest sets the time. For
decoding, the estimate covers the transformer only, and assumes that nothing overlaps.
"""

import dataclasses

import jax
import jax.numpy as jnp

from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.models.base import SamplingWork
from videoar_jax.parallel.hardware import Chip
from videoar_jax.parallel.mesh import AXES, num_batch_shards
from videoar_jax.parallel.rules import AnyMesh
from videoar_jax.parallel.traffic import device_bytes, gathered_bytes
from videoar_jax.train.state import State

# Shares of the datasheet values that large programs reach; an assumption.
SHARE_OF_FLOPS = 0.6
SHARE_OF_BANDWIDTH = 0.7


@dataclasses.dataclass(frozen=True)
class Cost:
  """Cost of a training step; per device, except for `flops` and `executed_flops`.

  Attributes:
    parameter_bytes: bytes of the parameters.
    state_bytes: bytes of the parameters, their average, and the optimizer.
    frozen_bytes: bytes of frozen parameters.
    activation_bytes: the most that a transformer's step holds besides these: activations kept for
      the backward pass, with gathered parameters and gradients of one block; or the activations of
      the frozen encoder, which runs before. None if not estimated.
    flops: of the step, over all devices.
    executed_flops: the same with rematerialization.
    memory_traffic: bytes read and written.
    link_traffic: bytes sent to devices of its slice; it receives as many.
    network_traffic: bytes sent to other slices.
  """

  parameter_bytes: int
  state_bytes: int
  frozen_bytes: int
  activation_bytes: int | None
  flops: float
  executed_flops: float
  memory_traffic: float
  link_traffic: float
  network_traffic: float

  @property
  def memory(self) -> float:
    """Estimated bytes that a device holds at once."""
    held = self.state_bytes + self.frozen_bytes + self.parameter_bytes
    return held + (self.activation_bytes or 0)

  def seconds(self, chip: Chip, num_devices: int) -> dict[str, float]:
    """Returns the seconds that each of the four parts takes."""
    share = SHARE_OF_BANDWIDTH / chip.num_devices
    return {
      "products": self.executed_flops / (num_devices * chip.device_flops * SHARE_OF_FLOPS),
      "memory": self.memory_traffic / (chip.bandwidth * share),
      "links": self.link_traffic / (chip.link_bandwidth * share),
      "network": self.network_traffic / (chip.network_bandwidth * share),
    }


def estimate(
  run: RunConfig, stage: StageConfig, abstract: State, shardings, frozen: dict, mesh: AnyMesh
) -> Cost | None:
  """Estimates a step; returns None if the family does not support it.

  Args:
    run: the run.
    stage: of the run.
    abstract: shapes of the stage's state.
    shardings: of every leaf of the state, on the mesh.
    frozen: shapes of frozen parameters, which are replicated.
    mesh: devices, or an abstract mesh.
  """
  own = device_bytes(abstract["params"], shardings["params"])
  gathered, sent = gathered_bytes(abstract["params"], shardings["params"])
  others = gathered - own
  state = device_bytes(abstract, shardings)
  clip = (run.tokenizer, stage.data.num_frames, stage.data.resolution)
  if stage.kind == "generator":
    work = run.family.step_work(run, stage, mesh)
    if work is None:
      return None
    clips = stage.loop.batch_size / num_batch_shards(mesh) / stage.loop.grad_accum_steps
    encoder = 0 if stage.cache is not None else run.tokenizer_family.flops(*clip)[0]
    flops, executed = work.flops + encoder, work.executed_flops + encoder
    kept = work.activation_bytes / stage.loop.grad_accum_steps
    # A block's parameters and gradients are unsharded while it runs.
    kept = round(max(kept + 2 * others * work.live_share, _encoder_bytes(run, stage, clips)))
    passes, moved = work.passes, work.moved_bytes
    # Parameters are gathered in the forward and backward pass, and gradients are reduce-scattered.
    sent = 3 * sent + work.sent_bytes
  else:
    flops = 3 * sum(run.tokenizer_family.flops(*clip))
    executed, passes, kept, moved, sent = flops, 3, None, 0.0, 3 * sent
  replicas = mesh.shape["data"]
  # All-reduce of gradients: reduce-scatter and all-gather.
  sent += 2 * own * (replicas - 1) / replicas
  slices = mesh.shape["slice"]
  return Cost(
    parameter_bytes=own,
    state_bytes=state,
    frozen_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(frozen)),
    activation_bytes=kept,
    flops=stage.loop.batch_size * flops,
    executed_flops=stage.loop.batch_size * executed,
    memory_traffic=2 * state + 2 * own + passes * gathered + moved,
    link_traffic=sent,
    network_traffic=2 * own * (slices - 1) / slices,
  )


def sampling_seconds(work: SamplingWork, chip: Chip, num_devices: int) -> dict[str, float]:
  """Returns the seconds of each part of sampling; the total is their sum."""
  share = SHARE_OF_BANDWIDTH / chip.num_devices
  return {
    "products": work.flops / (num_devices * chip.device_flops * SHARE_OF_FLOPS),
    "memory": work.memory_traffic / (chip.bandwidth * share),
    "links": work.link_traffic / (chip.link_bandwidth * share),
  }


def _encoder_bytes(run: RunConfig, stage: StageConfig, clips: float) -> float:
  """Returns the bytes that the frozen encoder holds while it encodes a device's clips."""
  if stage.cache is not None:
    return 0.0
  shape = (max(1, round(clips)), stage.data.num_frames, *stage.data.resolution)
  share = jnp.dtype(run.tokenizer_dtype).itemsize / 4
  return share * run.tokenizer_family.encode_bytes(run.tokenizer, shape)


def mesh_name(mesh) -> str:
  """Returns a mesh as `--mesh` takes it."""
  return ",".join(f"{axis}:{mesh.shape[axis]}" for axis in AXES if mesh.shape[axis] > 1) or "data:1"
