"""Analytic costs of Infinity's training step: FLOPs, memory and traffic."""

from videoar_jax.models.base import Stage, StepWork
from videoar_jax.models.infinity import flops
from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity.layout import Layout
from videoar_jax.parallel.mesh import num_batch_shards

_BYTES = {"float32": 4, "bfloat16": 2}  # Of an activation.
_NORMED = 6  # Arrays of a layer's width besides its products: three norms, three sums.


def step_work(config: InfinityConfig, layout: Layout, stage: Stage, mesh) -> StepWork:
  """Estimates the network's part of a training step.

  Args:
    config: the network.
    layout: of an image.
    stage: with the batch size.
    mesh: devices, or an abstract one.
  """
  images = stage.loop.batch_size / num_batch_shards(mesh)
  tokens = images * layout.length / mesh.shape["sequence"]
  total = flops.training_flops(config, layout)
  recomputed = {
    "none": 0,
    "dots": flops.attention_flops(config, layout),
    "full": flops.layer_flops(config, layout),
  }[config.remat]
  passes = 4 if config.remat == "full" else 3
  kept, moved = _activations(config, mesh, tokens)
  return StepWork(
    flops=total,
    executed_flops=total + recomputed,
    passes=passes,
    activation_bytes=kept,
    moved_bytes=moved,
    sent_bytes=_activations_sent(config, mesh, tokens, passes),
    live_share=1 / config.num_layers,
  )


def _activations(config: InfinityConfig, mesh, tokens: float) -> tuple[float, float]:
  """Returns peak bytes kept for the backward pass, and bytes read and written in a step."""
  m, tensor, item = config.d_model, mesh.shape["tensor"], _BYTES[config.dtype]
  # Outputs of three branches; queries, keys, values, queries to the prompt, and the MLP's input.
  products = 3 * m + (4 * m + config.mlp_dim) / tensor
  # Both mixtures of values, the MLP's other side, and float32 weights over the prompt's rows.
  over_rows = config.num_heads * config.text_length * 4 / item
  layer = _NORMED * m + products + (2 * m + config.mlp_dim + over_rows) / tensor
  kept = {
    "none": config.num_layers * layer,
    "dots": config.num_layers * (m + products) + layer,
    "full": config.num_layers * m + layer,
  }[config.remat]
  # Logits of both values of each bit and their gradients, in float32.
  logits = 2 * 2 * config.token_width * 4 / item
  # Written and read in the forward pass, and twice that in the backward pass.
  moved = 6 * (config.num_layers * layer + logits)
  return tokens * (kept + logits) * item, tokens * moved * item


def _activations_sent(config: InfinityConfig, mesh, tokens: float, passes: int) -> float:
  """Returns bytes sent per device and step because heads, MLP and sequence are sharded."""
  tensor, sequence = mesh.shape["tensor"], mesh.shape["sequence"]
  # Each layer sums its three outputs over the devices that share it, forward and backward.
  sums = 3 * 2 * (tensor - 1) / tensor * config.d_model
  # All-to-all of queries, keys, values and results, without each device's own part.
  parts = 4 * config.d_model / tensor * (1 - 1 / sequence)
  return config.num_layers * passes * tokens * (sums + parts) * _BYTES[config.dtype]
