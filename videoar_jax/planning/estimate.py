"""What a training step costs on a mesh, by counting alone: memory, arithmetic, bytes moved, time.

Counted is a step of the transformer, or of the autoencoder, and the frozen encoder in front of a
transformer. Left out are LPIPS, discriminators, norms and activations, and of memory what a
tokenizer keeps for its backward pass. The time is the longest of
what products, memory, links and the network between slices take, each at the share of its maker's
number below, as if they went on side by side. Of decoding the transformer is counted, and its small
steps as if they went on one after the other.
"""

import dataclasses
import math

import jax

from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.models.videoar.flops import forward_flops, training_flops, visible_pairs
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import GeneratorConfig
from videoar_jax.parallel.hardware import Chip
from videoar_jax.parallel.mesh import AXES, AnyMesh, num_batch_shards
from videoar_jax.tokenizers.bsq.encoding import part_of
from videoar_jax.tokenizers.bsq.flops import decoder_flops, encoder_flops
from videoar_jax.train.state import State

# Shares of the makers' numbers that large programs reach; an assumption.
SHARE_OF_FLOPS = 0.6
SHARE_OF_BANDWIDTH = 0.7
_BYTES = {"float32": 4, "bfloat16": 2}  # Of an activation.
# Arrays of the encoder's first width that encoding holds at once, with what it remembers of earlier
# frames: as TPU's compiler has it, of clips of 384x672 pixels.
_ENCODER_ARRAYS = 7


@dataclasses.dataclass(frozen=True)
class Cost:
  """A training step; all numbers but `flops` and `executed_flops` are of one device.

  Attributes:
    parameter_bytes: of the parameters that it holds.
    state_bytes: of those, their average, and the optimizer.
    frozen_bytes: of what the step reads and does not train.
    activation_bytes: the most that a transformer's step holds beside that: what is kept for the
      backward pass, and of one block the parameters from all devices and gradients; or what the
      frozen encoder holds before. None where that is not counted.
    flops: of the step, over all devices.
    executed_flops: with what is computed anew.
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
    """Bytes that a device holds at once, as far as is counted."""
    held = self.state_bytes + self.frozen_bytes + self.parameter_bytes
    return held + (self.activation_bytes or 0)

  def seconds(self, chip: Chip, num_devices: int) -> dict[str, float]:
    """Returns how long each of the four takes."""
    share = SHARE_OF_BANDWIDTH / chip.num_devices
    return {
      "products": self.executed_flops / (num_devices * chip.device_flops * SHARE_OF_FLOPS),
      "memory": self.memory_traffic / (chip.bandwidth * share),
      "links": self.link_traffic / (chip.link_bandwidth * share),
      "network": self.network_traffic / (chip.network_bandwidth * share),
    }


def estimate(
  run: RunConfig, stage: StageConfig, abstract: State, shardings, frozen: dict, mesh: AnyMesh
) -> Cost:
  """Counts a step.

  Args:
    run: the run.
    stage: of it.
    abstract: shapes of the stage's state.
    shardings: of every leaf of it, on the mesh.
    frozen: shapes of what it reads and does not train, which each device has whole.
    mesh: devices, or an abstract one.
  """
  own = device_bytes(abstract["params"], shardings["params"])
  gathered, sent = _gathered_bytes(abstract["params"], shardings["params"])
  others = gathered - own
  state = device_bytes(abstract, shardings)
  clips = stage.loop.batch_size / num_batch_shards(mesh)
  if stage.kind == "generator":
    flops, executed = _generator_flops(run, stage)
    passes = 4 if run.generator.remat == "full" else 3
    kept, moved = _generator_activations(run, stage, mesh, clips)
    # A block's parameters and their gradients are whole for as long as it is at work.
    kept = kept / stage.loop.grad_accum_steps + 2 * others / run.generator.num_layers
    kept = round(max(kept, _encoder_bytes(run, stage, clips / stage.loop.grad_accum_steps)))
    # Parameters are gathered on the way there and back, and their gradients scattered.
    sent = 3 * sent + _activations_sent(run, stage, mesh, clips, passes)
  else:
    flops = 3 * _autoencoder_flops(run, stage)
    executed, passes, kept, moved, sent = flops, 3, None, 0.0, 3 * sent
  replicas = mesh.shape["data"]
  # Sums of gradients: sent around and back.
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


@dataclasses.dataclass(frozen=True)
class DecodeCost:
  """The decoding of some clips; all numbers but `num_steps` and `flops` are of one device.

  Attributes:
    num_steps: runs of the transformer, beside that for the prompt.
    parameter_bytes: of the parameters that it holds.
    cache_bytes: of the keys and values of all positions.
    flops: over all devices.
    memory_traffic: bytes of weights and cache that are read.
    link_traffic: bytes sent to other devices.
  """

  num_steps: int
  parameter_bytes: int
  cache_bytes: int
  flops: float
  memory_traffic: float
  link_traffic: float

  def seconds(self, chip: Chip, num_devices: int) -> dict[str, float]:
    """Returns how long each part takes; the clips take their sum."""
    share = SHARE_OF_BANDWIDTH / chip.num_devices
    return {
      "products": self.flops / (num_devices * chip.device_flops * SHARE_OF_FLOPS),
      "memory": self.memory_traffic / (chip.bandwidth * share),
      "links": self.link_traffic / (chip.link_bandwidth * share),
    }


def estimate_decoding(
  config: GeneratorConfig, layout: Layout, num_rows: int, params: dict, cache, mesh: AnyMesh
) -> DecodeCost:
  """Counts the decoding of clips; attention goes over all of the cache, written or not.

  Args:
    config: the network's.
    layout: a clip's sequence.
    num_rows: clips, counted twice where they are guided.
    params: shapes of the parameters, with their shardings.
    cache: shapes of the keys and values, with their shardings.
    mesh: devices, or an abstract one.
  """
  split = jax.tree.map(lambda x: x.sharding, params)
  own, cached = (
    device_bytes(tree, jax.tree.map(lambda x: x.sharding, tree)) for tree in (params, cache)
  )
  used, gathered = _gathered_bytes(params, split)
  sizes, finals = layout.scale_sizes, (layout.num_frames - 1) * (layout.final_size > 0)
  num_steps = layout.num_frames * layout.num_scales + finals
  num_tokens = layout.length - layout.text_length
  length = jax.tree.leaves(cache)[0].shape[-2]
  beside = sum(size * sum(sizes[: s + 1]) for s, size in enumerate(sizes))
  pairs = num_tokens * length + layout.num_frames * beside + finals * layout.final_size**2
  heads = config.num_heads * config.head_dim
  seen = visible_pairs(layout.mask())
  attention = 4 * config.num_layers * heads * (pairs - seen)
  rows = num_rows / num_batch_shards(mesh)
  item = jax.tree.leaves(params)[0].dtype.itemsize
  tensor = mesh.shape["tensor"]
  sums = 4 * config.num_layers * rows * num_tokens * config.d_model * item * (tensor - 1) / tensor
  return DecodeCost(
    num_steps=num_steps,
    parameter_bytes=own,
    cache_bytes=cached,
    flops=num_rows * (forward_flops(config, layout) + attention),
    memory_traffic=num_steps * (used + cached),
    link_traffic=num_steps * gathered + sums,
  )


def device_bytes(shapes, shardings) -> int:
  """Returns the bytes of a tree of arrays on one device."""
  sizes = jax.tree.map(
    lambda x, sharding: math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize,
    shapes,
    shardings,
  )
  return sum(jax.tree.leaves(sizes))


def _gathered_bytes(shapes, shardings) -> tuple[float, float]:
  """Returns the bytes of parameters as a device uses them, and those of them that others send."""
  used = sent = 0.0
  for x, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
    own = math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
    axes = {axis for part in sharding.spec for axis in axes_of(part)}
    ways = sharding.mesh.shape["fsdp"] if "fsdp" in axes else 1
    used += own * ways
    sent += own * (ways - 1)
  return used, sent


def axes_of(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Returns the mesh axes that one entry of a partition names."""
  return (part,) if isinstance(part, str) else tuple(part or ())


def _autoencoder_flops(run: RunConfig, stage: StageConfig) -> int:
  clip = (run.tokenizer, stage.data.num_frames, stage.data.resolution)
  return encoder_flops(*clip) + decoder_flops(*clip)


def _generator_flops(run: RunConfig, stage: StageConfig) -> tuple[float, float]:
  """Returns the operations of a clip, and those with what is computed anew."""
  config, layout, window = run.generator, run.layout_of(stage.data), stage.loss.window
  flops = training_flops(config, layout, window)
  pairs = visible_pairs(layout.mask(window))
  attention = 4 * pairs * config.num_heads * config.head_dim * config.num_layers
  again = {"none": 0, "dots": attention, "full": flops / 3}[config.remat]
  encoder = 0
  if stage.cache is None:
    encoder = encoder_flops(run.tokenizer, stage.data.num_frames, stage.data.resolution)
  return flops + encoder, flops + again + encoder


def _generator_activations(run, stage, mesh, clips: float) -> tuple[float, float]:
  """Returns bytes that the backward pass holds at most, and bytes read and written in a step."""
  config = run.generator
  tokens = clips * run.layout_of(stage.data).length / mesh.shape["sequence"]
  k = config.head_dim
  split = (2 * config.num_heads + 2 * config.num_kv_heads) * k + 3 * config.mlp_dim
  products = 2 * config.d_model + split / mesh.shape["tensor"]
  block = tokens * (4 * config.d_model + products) * _BYTES[config.dtype]
  residual = tokens * config.d_model * _BYTES[config.dtype]
  kept = {
    "none": config.num_layers * block,
    "dots": config.num_layers * (residual + tokens * products * _BYTES[config.dtype]),
    "full": config.num_layers * residual + block,
  }[config.remat]
  # On the way back there are gradients of a block's widest arrays beside them.
  widest = tokens * 3 * config.mlp_dim / mesh.shape["tensor"] * _BYTES[config.dtype]
  # Written and read on the way there, and twice that on the way back.
  return kept + widest, 6 * config.num_layers * block


def _encoder_bytes(run, stage, clips: float) -> float:
  """Returns what the frozen encoder holds while it encodes a device's clips."""
  if stage.cache is not None:
    return 0.0
  config, (height, width) = run.tokenizer, stage.data.resolution
  shape = (max(1, round(clips)), stage.data.num_frames, height, width)
  rows, frames = part_of(config.temporal_stride, shape)
  cells = rows * frames * height * width / config.patch_size**2
  return _ENCODER_ARRAYS * cells * config.base_channels * config.multipliers[0] * 4


def _activations_sent(run, stage, mesh, clips: float, passes: int) -> float:
  """Returns bytes that splitting heads, the MLP and the sequence sends, a device and step."""
  config, sizes = run.generator, mesh.shape
  tokens = clips * run.layout_of(stage.data).length / sizes["sequence"]
  # Each block sums its two outputs over the devices that share it, there and back.
  sums = 2 * passes * tokens * config.d_model * _BYTES[config.dtype]
  sums *= 2 * (sizes["tensor"] - 1) / sizes["tensor"]
  # Queries and results are exchanged for heads, but for each device's own part, and so are keys and
  # values, of which each device gets all of a sequence's where their heads are too few.
  tensor, sequence = sizes["tensor"], sizes["sequence"]
  queries, keys = (
    2 * heads * config.head_dim / tensor for heads in (config.num_heads, config.num_kv_heads)
  )
  parts = queries * (1 - 1 / sequence)
  if config.num_kv_heads % (tensor * sequence) == 0:
    parts += keys * (1 - 1 / sequence)
  elif config.num_kv_heads % tensor == 0:
    parts += keys * (sequence - 1)
  else:
    parts += keys * (tensor * sequence - 1)
  return config.num_layers * (sums + passes * tokens * parts * _BYTES[config.dtype])


def mesh_name(mesh) -> str:
  """Returns a mesh as `--mesh` takes it."""
  return ",".join(f"{axis}:{mesh.shape[axis]}" for axis in AXES if mesh.shape[axis] > 1) or "data:1"
