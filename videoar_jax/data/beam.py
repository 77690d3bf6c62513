"""Prepares shards on Apache Beam: its direct runner, Dataflow, Flink or Spark.

Workers run the same function as local processes, on one shard at a time. The list of files may be
far larger than a pipeline may be (Dataflow takes 10 MB), so it is a file in the output folder, of
which the pipeline has the places; it is removed at the end.
"""

import functools
import json
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState, create_runner

from videoar_jax.data.output_folder import OutputFolder
from videoar_jax.data.prepare import Job, Runner, Write
from videoar_jax.interop.strict_json import to_json

_JOBS = "jobs.jsonl"  # A line for each shard: [name, files].
_BLOCK_BYTES = 2**20
# Their servers have flags that Beam's Python package does not know.
_HAVE_OTHER_FLAGS = ("flink", "spark", "portable")


def beam_runner(name: str, flags: list[str]) -> Runner:
  """Returns a runner that uses Apache Beam.

  Args:
    name: a runner of Beam, such as "direct" or "dataflow".
    flags: flags of Beam, as `--NAME` or `--NAME=VALUE`.
  Raises:
    ValueError: the runner or a flag is unknown.
    ImportError: the runner needs another package.
  """
  create_runner(name)
  options = PipelineOptions([f"--runner={name}", *flags])
  _check_flags(name, flags, options)

  def run(write: Write, jobs: list[Job], out: OutputFolder) -> Iterator[int]:
    blocks = _write_jobs(out, jobs)
    pipeline = beam.Pipeline(options=options)
    _ = (
      pipeline
      | "blocks" >> beam.Create(blocks)
      | "spread blocks" >> beam.Reshuffle()
      | "jobs" >> beam.FlatMap(functools.partial(_read_jobs, out.place))
      | "spread jobs" >> beam.Reshuffle()
      | "write" >> beam.Map(write)
    )
    try:
      state = pipeline.run().wait_until_finish()
    except Exception as error:  # Its text may be a worker's traceback.
      cause = (str(error).strip() or repr(error)).splitlines()[-1]
      raise ValueError(f"--runner={name}: the pipeline failed: {cause}") from error
    if state != PipelineState.DONE:
      raise ValueError(f"--runner={name}: the pipeline ended as {state}; see the runner's log")
    out.remove(_JOBS)
    yield sum(len(files) for _, files in jobs)

  return run


def _check_flags(name: str, flags: list[str], options: PipelineOptions) -> None:
  for flag in flags:
    if not flag.startswith("--"):
      raise ValueError(f"{flag!r} is no flag; write flags of Beam as --NAME=VALUE")
  if not name.lower().startswith(_HAVE_OTHER_FLAGS):
    everything = options.get_all_options(retain_unknown_options=True)
    if unknown := sorted(everything.keys() - options.get_all_options().keys()):
      raise ValueError(f"--{unknown[0]} is a flag neither of this command nor of Apache Beam")


def _write_jobs(out: OutputFolder, jobs: list[Job]) -> list[tuple[int, int]]:
  """Writes the list of jobs; returns the first and last byte of blocks of about a megabyte."""
  blocks, start = [], 0
  with out.writing(_JOBS) as path, path.open("wb") as file:
    for job in jobs:
      file.write(to_json(job).encode() + b"\n")
      if file.tell() - start >= _BLOCK_BYTES:
        blocks.append((start, file.tell()))
        start = file.tell()
    if file.tell() > start:
      blocks.append((start, file.tell()))
  return blocks


def _read_jobs(place: str, block: tuple[int, int]) -> Iterator[Job]:
  for line in OutputFolder(place).read_range(_JOBS, *block).splitlines():
    name, files = json.loads(line)
    yield name, files
