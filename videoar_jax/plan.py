"""Plans a training step for a pod that is not there: does it fit, how long does it take?

  python -m videoar_jax.plan --config=configs/quickstart.py:size=l --topology=v5p:4x4x4 \\
    --mesh=fsdp:32,sequence:2 --config.stage.generator.loop.batch_size=64

TPU's own compiler, from the package libtpu, compiles the real step; its memory is what a chip will
hold. Time is counted, not measured, see `train/estimate.py`. GPUs are counted only. Fields of the
config are set as for `videoar_jax.main`.
"""

import ast
import dataclasses
import importlib.util
import os
import pathlib
import re
import runpy
import sys

from videoar_jax.command_line import Parser, print_result

# JAX asks for these when it makes a topology; without them it looks for a TPU.
_NO_TPU = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
}
_AXES = ("slice", "data", "fsdp", "sequence", "tensor")
REMAT = ("none", "dots", "full")


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for what the user can mend."""
  parser = Parser(prog="python -m videoar_jax.plan", description=__doc__)
  parser.add_argument("--config", required=True, help="config file, with its argument")
  parser.add_argument("--topology", required=True, help="as v5e:4x8, v5p:4x4x4, h100:4x8")
  parser.add_argument("--mesh", help="as fsdp:32,sequence:2; without it, the config's")
  parser.add_argument("--stage", help="of the config; without it, the last")
  parser.add_argument("--parameters", action="store_true", help="list them; compile nothing")
  parser.add_argument("--count", action="store_true", help="count alone; compile nothing")
  parser.add_argument(
    "--search", type=int, default=0, metavar="N", help="find the N fastest meshes that fit"
  )
  arguments, rest = parser.parse_known_args(argv)
  wrong = [text for text in rest if not text.startswith("--config.")]
  if wrong:
    parser.error(f"unrecognized argument {wrong[0]}")
  os.environ.update(_NO_TPU)
  return print_result(lambda: plan(arguments, rest))


def plan(arguments, overrides: list[str]) -> str:
  """Returns what the command prints.

  Raises:
    ValueError: the config, the topology or the mesh is wrong, or the step does not compile.
  """
  from videoar_jax.parallel.chips import parse_topology
  from videoar_jax.train.config import finalize

  run = finalize(_load_config(arguments.config, overrides))
  chip, num_chips = parse_topology(arguments.topology)
  names = [stage.name for stage in run.stages]
  if arguments.stage is not None and arguments.stage not in names:
    raise ValueError(f"--stage={arguments.stage} is not in the config; it has {', '.join(names)}")
  stage = run.stages[names.index(arguments.stage) if arguments.stage else -1]
  mesh = run.mesh if arguments.mesh is None else _parse_mesh(arguments.mesh)
  is_compiled = chip.is_tpu and not (arguments.parameters or arguments.count)
  place = Place(arguments.topology, chip, num_chips, is_compiled)
  if arguments.search:
    return search(run, stage, place, arguments.search)
  draft = Draft.of(run, stage, place, mesh)
  if arguments.parameters:
    return parameters_table(draft)
  return table(draft, draft.compile() if is_compiled else None)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where to plan for: a topology by name, its chip, how many, and whether to ask the compiler."""

  name: str
  chip: object
  num_chips: int
  is_compiled: bool

  def mesh(self, config):
    """Returns the mesh over the topology's devices, of TPUs; else one without devices.

    Raises:
      ValueError: the sizes do not fit, there is no such topology, or no compiler.
    """
    import jax
    from jax.sharding import AbstractMesh

    from videoar_jax.parallel.sharding import AXES, make_mesh, mesh_sizes

    if not self.is_compiled:
      sizes = mesh_sizes(config, self.num_chips * max(1, config.slice))
      return AbstractMesh(sizes, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))
    return make_mesh(config, list(_devices(self.name, config.slice)))


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes that a device needs for a step, by the compiler."""

  arguments: int
  temporaries: int
  peak: int


@dataclasses.dataclass(frozen=True)
class Draft:
  """A stage's step on a mesh, before anything is compiled."""

  run: object
  stage: object
  place: Place
  mesh: object
  trainer: object
  frozen: dict

  @classmethod
  def of(cls, run, stage, place: Place, mesh_config) -> "Draft":
    """Makes the abstract step.

    Raises:
      ValueError: the mesh does not fit the devices, the network or the batch.
    """
    import jax

    from videoar_jax.parallel.sharding import batch_ways, replicated
    from videoar_jax.train.loop import Trainer
    from videoar_jax.train.state import with_shardings

    mesh = place.mesh(mesh_config)
    if stage.loop.batch_size % batch_ways(mesh):
      raise ValueError(
        f"stage.{stage.name}.loop.batch_size={stage.loop.batch_size} does not divide over the "
        f"{batch_ways(mesh)} ways of mesh.slice x mesh.data x mesh.fsdp; take a multiple"
      )
    task, frozen = _abstract_task(run, stage, mesh)
    trainer = Trainer(task, stage.loop, mesh, run.seed)
    whole = jax.tree.map(lambda _: replicated(mesh), frozen)
    return cls(run, stage, place, mesh, trainer, with_shardings(frozen, whole))

  def compile(self) -> Memory:
    """Compiles the step.

    Raises:
      ValueError: it does not fit into the chip's memory; says by how much.
    """
    import jax

    from videoar_jax.parallel.sharding import replicated

    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(self.mesh))
    batch = _abstract_batch(self.run, self.stage, self.mesh)
    state = self.trainer.abstract_state
    try:
      with jax.set_mesh(self.mesh):
        compiled = self.trainer.step.lower(state, self.frozen, batch, key).compile()
    except jax.errors.JaxRuntimeError as error:
      raise ValueError(self._describe(error)) from error
    found = compiled.memory_analysis()
    peak = found.argument_size_in_bytes + found.temp_size_in_bytes
    peak += found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(found.argument_size_in_bytes, found.temp_size_in_bytes, peak)

  def _describe(self, error: Exception) -> str:
    text = str(error)
    match = re.search(
      r"Used ([\d.]+\w) of ([\d.]+\w) hbm. Exceeded hbm capacity by ([\d.]+\w)", text
    )
    if not match:
      return f"the step does not compile: {text[:600]}"
    used, memory, excess = match.groups()
    return (
      f"the step does not fit: it needs {used} of {memory} of a chip's memory, {excess} too much. "
      "Split parameters further (--mesh=fsdp:N), take a smaller batch_size, "
      "or set generator.remat='full'; --search=3 tries"
    )


def table(draft: Draft, memory: Memory | None) -> str:
  """Returns a step's memory, work and time as text."""
  from videoar_jax.nn.layers import count_parameters
  from videoar_jax.train import estimate

  run, stage, chip = draft.run, draft.stage, draft.place.chip
  trainer = draft.trainer
  cost = estimate.estimate(run, stage, trainer.abstract_state, trainer.shardings, draft.mesh)
  devices = draft.mesh.size
  a_chip = devices // (draft.place.num_chips * draft.mesh.shape["slice"])
  seconds = cost.seconds(chip, devices, a_chip)
  slowest = max(seconds, key=seconds.get)
  time = seconds[slowest]
  rows = [
    ("stage", f"{stage.name}, batches of {stage.loop.batch_size}"),
    ("devices", f"{devices} ({draft.place.name}), mesh {estimate.mesh_name(draft.mesh)}"),
    ("parameters", f"{count_parameters(draft.trainer.template.shapes):,}"),
    ("state a device", _bytes(cost.state_bytes)),
  ]
  if memory is not None:
    share = memory.peak * a_chip / chip.memory
    rows += [
      ("arguments a device", _bytes(memory.arguments)),
      ("temporaries a device", _bytes(memory.temporaries)),
      ("peak a device", f"{_bytes(memory.peak)}, {share:.0%} of its memory"),
    ]
  elif cost.activation_bytes is not None:
    total = cost.state_bytes + cost.parameter_bytes + cost.activation_bytes
    share = total * a_chip / chip.memory
    rows.append(("memory a device, counted", f"{_bytes(total)}, {share:.0%} of its memory"))
  rows += [
    ("operations a step", f"{cost.flops:.3g}, executed {cost.executed_flops:.3g}"),
    ("memory traffic a device", _bytes(cost.memory_traffic)),
    ("sent between devices", _bytes(cost.link_traffic)),
    ("sent between slices", _bytes(cost.network_traffic)),
    ("time by part", ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())),
    ("a step", f"{time:.3g} s, bound by {slowest}"),
    ("utilisation", f"{cost.flops / (time * devices * chip.flops / a_chip):.0%} of the peak"),
    ("clips a second", f"{stage.loop.batch_size / time:.3g}"),
  ]
  if stage.kind == "generator":
    tokens = stage.loop.batch_size * run.layout_of(stage.data).length
    rows.append(("tokens a second", f"{tokens / time:,.0f}"))
  days = stage.loop.num_steps * time / 86400
  rows.append((f"{stage.loop.num_steps} steps", f"{days:.3g} days"))
  width = max(len(name) for name, _ in rows)
  lines = [f"{name:<{width}}  {text}" for name, text in rows]
  lines.append(
    f"Times are counted at {estimate.SHARE_OF_FLOPS:.0%} of the maker's bfloat16 operations and "
    f"{estimate.SHARE_OF_BANDWIDTH:.0%} of its bandwidths, all at once; the slowest part counts."
  )
  return "\n".join(lines)


def parameters_table(draft: Draft) -> str:
  """Returns each parameter's name, shape, split, and bytes on a device."""
  import jax

  from videoar_jax.train.estimate import axes_of, device_bytes

  shapes, shardings = draft.trainer.abstract_state["params"], draft.trainer.shardings["params"]
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
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  lines = [
    "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
  ]
  return "\n".join(line.rstrip() for line in lines)


def search(run, stage, place: Place, num: int) -> str:
  """Returns the fastest meshes and remat policies that fit, by estimate.

  The memory of TPUs is the compiler's, of candidates from the fastest on, until enough fit.
  """
  from videoar_jax.parallel.sharding import MeshConfig, batch_ways
  from videoar_jax.train.estimate import estimate
  from videoar_jax.train.state import state_shardings

  # Shapes are the same on every mesh, and take seconds to find.
  one = dataclasses.replace(place, is_compiled=False, num_chips=1)
  trainer = Draft.of(run, stage, one, MeshConfig(data=1)).trainer
  counted = dataclasses.replace(place, is_compiled=False)
  found = []
  for mesh in _candidates(place.num_chips):
    for remat in REMAT if stage.kind == "generator" else (None,):
      other = run
      if remat is not None:
        generator = dataclasses.replace(run.generator, remat=remat)
        other = dataclasses.replace(run, generator=generator)
      sizes = counted.mesh(mesh)
      if stage.loop.batch_size % batch_ways(sizes):
        continue
      try:
        shardings = state_shardings(trainer.abstract_state, trainer.templates, sizes)
      except ValueError:
        continue  # Something does not divide.
      cost = estimate(other, stage, trainer.abstract_state, shardings, sizes)
      needed = cost.state_bytes + cost.parameter_bytes + (cost.activation_bytes or 0)
      if needed < place.chip.memory:
        found.append((max(cost.seconds(place.chip, place.num_chips).values()), mesh, remat, other))
  lines = []
  for time, mesh, remat, other in sorted(found, key=lambda item: item[0]):
    if len(lines) == num:
      break
    note = "counted only"
    if place.is_compiled:
      try:
        note = f"peak {_bytes(Draft.of(other, stage, place, mesh).compile().peak)}"
      except ValueError:
        continue
    sizes = ",".join(f"{a}:{getattr(mesh, a)}" for a in _AXES if getattr(mesh, a) > 1) or "data:1"
    lines.append(f"--mesh={sizes}  remat={remat or '-'}  {time:.3g} s a step, {note}")
  if not lines:
    raise ValueError(
      f"nothing fits on {place.name}, of {len(found)} meshes that divide; take more chips or a "
      "smaller batch_size"
    )
  return "\n".join(lines)


def _candidates(num_devices: int):
  """Yields meshes over that many devices; heads and sequences over 16 at most."""
  from videoar_jax.parallel.sharding import MeshConfig

  powers = [2**i for i in range(5)]
  for tensor in powers:
    for sequence in powers:
      if num_devices % (tensor * sequence):
        continue
      rest = num_devices // (tensor * sequence)
      for fsdp in (size for size in range(1, rest + 1) if rest % size == 0):
        yield MeshConfig(data=rest // fsdp, fsdp=fsdp, sequence=sequence, tensor=tensor)


def _abstract_task(run, stage, mesh):
  """Returns a stage's task, and the shapes of what it needs and does not train."""
  import jax
  import numpy as np

  from videoar_jax.nn import lpips
  from videoar_jax.train.stages import Stages
  from videoar_jax.train.tokenizer import TokenizerTask

  if stage.kind == "tokenizer":
    frozen = {}
    if stage.loss.perceptual > 0:
      shapes = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in lpips.shapes().items()}
      frozen = {"lpips": shapes}
    return TokenizerTask(run.tokenizer, run.schedule, stage.loss, frozen), frozen
  stages = Stages(run, pathlib.Path(), mesh)
  template = stages.module_template(stages.stage_before(stage, "tokenizer"))
  return stages.make_generator_task(stage, template, template.shapes), template.shapes


def _abstract_batch(run, stage, mesh) -> dict:
  """Returns the shapes of a global batch."""
  import jax
  import jax.numpy as jnp

  from videoar_jax.parallel.sharding import sharding_of

  b, data = stage.loop.batch_size, stage.data
  text = run.text.encoder.null()
  shapes = {"text": ((b, *text.shape), text.dtype), "class_id": ((b,), jnp.int32)}
  if stage.cache is None:
    shapes["video"] = ((b, data.num_frames, *data.resolution, 3), jnp.uint8)
  else:
    grid = run.tokenizer.latent_shape(data.num_frames, data.resolution)
    shapes["latents"] = ((b, *grid, run.tokenizer.num_bits), jnp.bfloat16)
  return {
    name: jax.ShapeDtypeStruct(
      shape, kind, sharding=sharding_of(("batch",) + (None,) * (len(shape) - 1), shape, mesh)
    )
    for name, (shape, kind) in shapes.items()
  }


def _devices(topology: str, num_slices: int):
  """Returns the devices of a TPU topology.

  Raises:
    ValueError: there is none of that name, or libtpu is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError("TPU's compiler is missing; pip install 'videoar_jax[plan]', or add --count")
  import jax
  from jax.experimental import topologies

  name = topology
  try:
    more = {"num_slices": num_slices} if num_slices > 1 else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
  except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
    raise ValueError(
      f"--topology={topology}: the compiler knows no such pod ({error}); known are for instance "
      "v5e:2x2 to 16x16, v5p:2x2x1 to 16x16x16, v6e:2x2 to 16x16"
    ) from error


def _parse_mesh(text: str):
  """Reads `axis:size,axis:size`; what is left out is 1."""
  from videoar_jax.parallel.sharding import MeshConfig

  sizes = dict.fromkeys(_AXES, 1)
  for part in text.split(","):
    match = re.fullmatch(r"(\w+):(\d+)", part)
    if not match or match[1] not in sizes:
      raise ValueError(f"--mesh={text}: {part!r} is not AXIS:SIZE; axes are {', '.join(_AXES)}")
    sizes[match[1]] = int(match[2])
  return MeshConfig(**sizes)


def _load_config(text: str, overrides: list[str]):
  """Returns the config of a file with its argument, and of fields set beside it.

  Raises:
    ValueError: there is no such file, or no such field.
  """
  path, _, argument = text.partition(":")
  if not pathlib.Path(path).is_file():
    raise ValueError(f"--config={text}: there is no file {path}")
  module = runpy.run_path(path)
  if "get_config" not in module:
    raise ValueError(f"--config={path} has no get_config; name a file of configs/")
  config = module["get_config"](argument or None)
  for override in overrides:
    field, equals, value = override.removeprefix("--config.").partition("=")
    *parents, last = field.split(".")
    try:
      section = config
      for name in parents:
        section = section[name]
      if not equals or not hasattr(section, "keys"):
        raise KeyError(field)
      section[last] = _parse_value(value)
    except (KeyError, TypeError) as error:
      reason = error if isinstance(error, TypeError) else "there is no such field"
      raise ValueError(f"{override}: {reason}; write --config.SECTION.FIELD=VALUE") from error
  return config


def _parse_value(text: str):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _bytes(number: float) -> str:
  for unit in ("B", "KiB", "MiB", "GiB"):
    if number < 1024:
      return f"{number:.3g} {unit}"
    number /= 1024
  return f"{number:.3g} TiB"


if __name__ == "__main__":
  sys.exit(main())
