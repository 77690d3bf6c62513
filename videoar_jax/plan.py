"""Plans a training step ahead of time for a TPU topology: does it fit, and how long does it take?

  python -m videoar_jax.plan --config=configs/quickstart.py:size=l --topology=v5p:4x4x4 \\
    --mesh=fsdp:32,sequence:2 --config.stage.generator.loop.batch_size=64

TPU's compiler, from the package libtpu, compiles the real step on any machine and reports the
memory that a chip will need, for a step and for the samples that training shows. Time is estimated,
see `planning/estimate.py`. For GPUs, memory is estimated too. Fields of the config are set as for
`videoar_jax.main`. With --decode=N, sampling of N clips together is planned instead: the largest
program of the generator, and the decoding of pixels.

  python -m videoar_jax.plan --model=FOLDER --topology=v6e:2x4 --mesh=tensor:8 --dtype=bfloat16
  python -m videoar_jax.plan --like=infinity_star_480p --topology=v6e:2x4 --mesh=tensor:8

plan the sampling of a model, or of one with the layout of a public one, which needs no files.
"""

import os
import sys

from videoar_jax.experiment.command_line import Parser, print_result, read_config
from videoar_jax.experiment.overrides import split_overrides

# JAX needs these to create a topology; without them it looks for a TPU. The last one lets several
# plans run at once, since none uses a TPU.
_NO_TPU = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for user errors."""
  parser = Parser(prog="python -m videoar_jax.plan", description=__doc__)
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--config", help="config file, with its argument")
  what.add_argument("--model", help="folder of a model from `convert`; its weights are not read")
  what.add_argument("--like", metavar="NAME", help="public model, without any of its files")
  parser.add_argument("--topology", required=True, help="such as v5e:4x8, v5p:4x4x4, h100:4x8")
  parser.add_argument("--mesh", help="such as fsdp:32,sequence:2; default: the config's")
  parser.add_argument("--stage", help="stage to plan; default: the last one")
  parser.add_argument("--parameters", action="store_true", help="list parameters; compile nothing")
  parser.add_argument("--count", action="store_true", help="only estimate; compile nothing")
  parser.add_argument(
    "--search", type=int, default=0, metavar="N", help="find the N fastest meshes that fit"
  )
  parser.add_argument(
    "--decode",
    type=int,
    metavar="N",
    help="plan sampling of N clips together; default for models: 1",
  )
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="float32", help="type for --decode"
  )
  others, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
  arguments = parser.parse_args(others)
  is_step = arguments.search or arguments.parameters
  if arguments.decode is not None and is_step:
    parser.error("--decode goes with neither --search nor --parameters")
  if arguments.decode is None and arguments.config is None and not is_step:
    arguments.decode = 1  # A model is there to be sampled.
  os.environ.update(_NO_TPU)
  return print_result(lambda: plan(arguments, overrides))


def plan(arguments, overrides: list[str]) -> str:
  """Makes a plan; returns the output of the command.

  Raises:
    ValueError: the config, the topology or the mesh is wrong, or the step does not compile.
  """
  from videoar_jax.converters.layouts import run_of
  from videoar_jax.experiment.load import find_run
  from videoar_jax.experiment.parse import finalize

  if overrides and arguments.config is None:
    raise ValueError(f"{overrides[0]} goes with --config, not with --model or --like")
  if arguments.config is not None:
    return _plan(arguments, finalize(read_config(arguments.config, overrides)))
  if arguments.model is not None:
    return _plan(arguments, find_run(arguments.model)[1])
  with run_of(arguments.like) as run:
    return _plan(arguments, run)


def _plan(arguments, run) -> str:
  """Plans a run, see `plan`."""
  from videoar_jax.parallel.hardware import parse_topology
  from videoar_jax.parallel.mesh import parse_mesh
  from videoar_jax.planning.decoding import DecodePlan
  from videoar_jax.planning.pod import Pod
  from videoar_jax.planning.search import search
  from videoar_jax.planning.step_plan import StepPlan
  from videoar_jax.planning.tables import decode_table, parameters_table, table

  chip, num_chips = parse_topology(arguments.topology)
  names = [stage.name for stage in run.stages]
  if arguments.stage is not None and arguments.stage not in names:
    raise ValueError(f"--stage={arguments.stage} is not in the config; it has {', '.join(names)}")
  stage = run.stages[names.index(arguments.stage) if arguments.stage else -1]
  mesh = stage.mesh if arguments.mesh is None else parse_mesh(arguments.mesh)
  is_compiled = chip.is_tpu and not (arguments.parameters or arguments.count)
  pod = Pod(arguments.topology, chip, num_chips, is_compiled)
  if arguments.decode is not None:
    decode_plan = DecodePlan.of(run, stage, pod, mesh, arguments.decode, arguments.dtype)
    if not is_compiled:
      return decode_table(decode_plan, None)
    memory = decode_plan.compile()
    return decode_table(decode_plan, memory, _or_reason(decode_plan.compile_pixels))
  if arguments.search:
    return search(run, stage, pod, mesh.slice, arguments.search)
  step_plan = StepPlan.of(run, stage, pod, mesh)
  if arguments.parameters:
    return parameters_table(step_plan)
  if not is_compiled:
    return table(step_plan, None)
  return table(step_plan, step_plan.compile(), _or_reason(step_plan.compile_media))


def _or_reason(compile_program):
  """Returns the memory of a program, or why it does not fit."""
  from videoar_jax.planning.step_plan import DoesNotFit

  try:
    return compile_program()
  except DoesNotFit as error:
    return str(error)


if __name__ == "__main__":
  sys.exit(main())
