"""Formats plans as text."""

import jax

from videoar_jax.nn.layers import count_parameters
from videoar_jax.parallel.hardware import Chip
from videoar_jax.parallel.traffic import axes_of, device_bytes
from videoar_jax.planning import estimate
from videoar_jax.planning.decoding import DecodePlan
from videoar_jax.planning.step_plan import Memory, StepPlan
from videoar_jax.train.trainer import NUM_SHOWN

_SHOWN = f"{NUM_SHOWN} samples in training"
_RATES = (
  f"Times are estimated at {estimate.SHARE_OF_FLOPS:.0%} of the datasheet's bfloat16 FLOP/s and "
  f"{estimate.SHARE_OF_BANDWIDTH:.0%} of its bandwidths"
)


def table(plan: StepPlan, memory: Memory | None, media: Memory | str | None = None) -> str:
  """Returns a step's memory, FLOPs and time.

  Args:
    plan: the step.
    memory: from the compiler; None to estimate it.
    media: that of the samples that training shows, or why they do not compile; None leaves it out.
  """
  stage, chip, trainer = plan.stage, plan.pod.chip, plan.trainer
  cost, clips = plan.estimate(), stage.loop.batch_size
  shape = "x".join(map(str, (stage.data.num_frames, *stage.data.resolution)))
  rows = [
    ("stage", f"{stage.name}, batches of {clips} clips of {shape}"),
    ("devices", f"{plan.mesh.size} ({plan.pod.name}), mesh {estimate.mesh_name(plan.mesh)}"),
    ("parameters", f"{count_parameters(trainer.template.shapes):,}"),
    ("state a device", bytes_text(plan.state_bytes)),
  ]
  if cost is None:
    rows += _memory_rows(memory, None, chip) + _peak_rows(_SHOWN, media, chip)
    return "\n".join([*_aligned(rows), "This family has no step estimate."])
  rows += _memory_rows(memory, None if cost.activation_bytes is None else cost.memory, chip)
  lines = [*_aligned(rows + _peak_rows(_SHOWN, media, chip) + _time_rows(plan, cost))]
  lines.append(f"{_RATES}; parts overlap, so the slowest counts.")
  if stage.mixture:
    lines.append("This is the largest of the stage's shapes; others take at most as long.")
  return "\n".join(lines)


def _time_rows(plan: StepPlan, cost: estimate.Cost) -> list[tuple[str, str]]:
  """Returns a step's FLOPs, traffic and time."""
  run, stage, chip, devices = plan.run, plan.stage, plan.pod.chip, plan.mesh.size
  seconds = cost.seconds(chip, devices)
  slowest = max(seconds, key=seconds.get)
  time, clips = seconds[slowest], stage.loop.batch_size
  rows = [
    ("FLOPs a step", f"{cost.flops:.3g}, executed {cost.executed_flops:.3g}"),
    ("memory traffic a device", bytes_text(cost.memory_traffic)),
    ("sent between devices", bytes_text(cost.link_traffic)),
    ("sent between slices", bytes_text(cost.network_traffic)),
    ("time by part", ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())),
    ("a step", f"{time:.3g} s, bound by {slowest}"),
    ("utilisation", f"{cost.flops / (time * devices * chip.device_flops):.0%} of the peak"),
    ("clips a second", f"{clips / time:.3g}"),
  ]
  if stage.kind == "generator":
    tokens = clips * run.num_tokens(stage, stage.shape)
    rows.append(("tokens a second", f"{tokens / time:,.0f}"))
  days = stage.loop.num_steps * time / 86400
  return [*rows, (f"{stage.loop.num_steps} steps", f"{days:.3g} days")]


def decode_table(
  plan: DecodePlan, memory: Memory | None, pixels: Memory | str | None = None
) -> str:
  """Returns memory, FLOPs and time of sampling clips.

  Args:
    plan: the sampling.
    memory: of the generator's largest program, from the compiler; None to estimate it.
    pixels: of decoding pixels, from the compiler, or why that does not compile; None leaves it out.
  """
  chip, cost, clips = plan.pod.chip, plan.sampling.work, plan.num_clips
  seconds = estimate.sampling_seconds(cost, chip, plan.mesh.size)
  time, held = sum(seconds.values()), plan.parameter_bytes + plan.tokenizer_bytes
  held += cost.cache_bytes + cost.activation_bytes
  shape = "x".join(map(str, (plan.stage.data.num_frames, *plan.stage.data.resolution)))
  what = plan.sampling.description
  rows = [
    ("decode", f"{clips} clips of {shape}, {what}, {plan.dtype.name}, {cost.num_steps} steps"),
    ("devices", f"{plan.mesh.size} ({plan.pod.name}), mesh {estimate.mesh_name(plan.mesh)}"),
    ("parameters", f"{count_parameters(plan.template.shapes):,}"),
    ("parameters a device", bytes_text(plan.parameter_bytes)),
    ("tokenizer a device", bytes_text(plan.tokenizer_bytes)),
    *_encoder_rows(plan),
    ("cache a device", bytes_text(cost.cache_bytes)),
    *_memory_rows(memory, held, chip),
    *_peak_rows("pixels", pixels, chip),
    ("FLOPs", f"{cost.flops:.3g}"),
    ("memory traffic a device", bytes_text(cost.memory_traffic)),
    ("sent between devices", bytes_text(cost.link_traffic)),
    ("time by part", ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())),
    ("all clips", f"{time:.3g} s, {time / plan.sampling.num_parts:.3g} s a latent frame"),
    ("their pixels", f"{plan.pixel_seconds:.3g} s, for products alone"),
    ("clips a second", f"{clips / (time + plan.pixel_seconds):.3g}"),
  ]
  return "\n".join([*_aligned(rows), f"{_RATES}; parts do not overlap."])


def _encoder_rows(plan: DecodePlan) -> list[tuple[str, str]]:
  """Returns the memory of the text encoder, which the peak does not include."""
  num_bytes = plan.encoder_bytes
  return [("text encoder, on one device", f"{bytes_text(num_bytes)} more")] if num_bytes else []


def parameters_table(plan: StepPlan) -> str:
  """Returns each parameter's name, shape, sharding, and bytes per device."""
  shapes, shardings = plan.trainer.abstract_state["params"], plan.trainer.shardings["params"]
  rows = [("parameter", "shape", "split over", "bytes a device")]
  for (path, x), sharding in zip(
    jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True
  ):
    split = ["+".join(axes_of(part)) or "-" for part in sharding.spec]
    split += ["-"] * (len(x.shape) - len(split))
    name = ".".join(str(part.key) for part in path)
    shape = "x".join(map(str, x.shape))
    rows.append((name, shape, " ".join(split), f"{device_bytes(x, sharding):,}"))
  rows.append(("total", "", "", f"{device_bytes(shapes, shardings):,}"))
  return "\n".join(_aligned(rows))


def bytes_text(number: float) -> str:
  """Formats a number of bytes with a unit."""
  for unit in ("B", "KiB", "MiB", "GiB"):
    if number < 1024:
      return f"{number:.3g} {unit}"
    number /= 1024
  return f"{number:.3g} TiB"


def _memory_rows(memory: Memory | None, estimated: float | None, chip: Chip) -> list:
  """Returns memory per device: from the compiler, or the estimate if there is one."""
  if memory is None:
    if estimated is None:
      return []
    share = estimated / chip.device_memory
    return [("memory a device, estimated", f"{bytes_text(estimated)}, {share:.0%} of its memory")]
  share = memory.peak / chip.device_memory
  return [
    ("arguments a device", bytes_text(memory.arguments)),
    ("temporaries a device", bytes_text(memory.temporaries)),
    ("peak a device", f"{bytes_text(memory.peak)}, {share:.0%} of its memory"),
  ]


def _peak_rows(name: str, memory: Memory | str | None, chip: Chip) -> list[tuple[str, str]]:
  """Returns the memory of a program besides the first, or why it does not compile."""
  if memory is None:
    return []
  text = memory
  if isinstance(memory, Memory):
    share = memory.peak / chip.device_memory
    text = f"peak a device {bytes_text(memory.peak)}, {share:.0%} of its memory"
  return [(name, text)]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
  """Returns lines with aligned columns."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in rows)
  return [line.rstrip() for line in lines]
