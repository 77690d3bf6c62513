"""Runs the commands in subprocesses, at a size that trains in seconds."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# A tokenizer that trains in seconds.
TINY_TOKENIZER = [
  "--config.data.resolution=(16,16)",
  "--config.data.num_frames=5",
  "--config.tokenizer.patch_size=2",
  "--config.tokenizer.base_channels=4",
  "--config.tokenizer.multipliers=(1,2)",
  "--config.tokenizer.strides=((2,2),)",
  "--config.tokenizer.num_groups=2",
  "--config.tokenizer.schedule=1 2 4",
  "--config.report.num_clips=4",
]
# The quickstart at that size, with one generator stage. Images keep Muon, whose program is the
# larger one.
TINY = [
  *TINY_TOKENIZER,
  "--config.stages=('images','tokenizer','generator')",
  "--config.stage.images.data.crop_from=(16,16)",
  "--config.stage.images.data.resolution=(8,8)",
  "--config.tokenizer.refine_channels=4",
  "--config.generator.patch_sizes=(1,1,2)",
  "--config.generator.num_layers=2",
  "--config.generator.d_model=32",
  "--config.generator.head_dim=16",
  "--config.generator.mlp_dim=64",
  "--config.stage.tokenizer.loop.optimizer.kind=adamw",
  "--config.stage.generator.loop.optimizer.kind=adamw",
  "--config.tokenizer.num_bits=8",
  "--config.report.num_prompts=4",
  "--config.stage.images.loop.num_steps=4",
  "--config.stage.images.loop.batch_size=4",
  "--config.stage.tokenizer.loop.batch_size=4",
  "--config.stage.tokenizer.loop.num_steps=6",
  "--config.stage.generator.loop.batch_size=4",
  "--config.stage.generator.loop.num_steps=6",
  *(
    f"--config.stage.{stage}.loop.{name}={value}"
    for stage in ("images", "tokenizer", "generator")
    for name, value in (
      *(("save_every", 2), ("media_every", 100)),
      *(("eval_every", 3), ("eval_batches", 2)),
    )
  ),
]


def command(workdir, *extra, config="configs/quickstart.py:size=tiny"):
  """Returns the command that trains a run."""
  main = [sys.executable, "-m", "videoar_jax.main"]
  return [*main, f"--config={config}", f"--workdir={workdir}", *TINY, *extra]


def environment(num_devices=1):
  """Returns the environment of a process with this many devices."""
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # They take longer than the steps.
    "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
  }


def run(arguments, num_devices=1, **kwargs):
  """Runs a command and waits for its end."""
  return subprocess.run(
    arguments,
    cwd=REPOSITORY,
    env=environment(num_devices),
    capture_output=True,
    text=True,
    timeout=600,
    **kwargs,
  )


def run_until(text, arguments):
  """Runs a command until it prints a text, and kills it; returns the line."""
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
  with subprocess.Popen(arguments, cwd=REPOSITORY, env=environment(), **pipes) as process:
    lines = []
    for line in process.stdout:
      lines.append(line)
      if text in line:
        process.kill()
        return line
  raise AssertionError("".join(lines)[-3000:])


def losses(workdir):
  """Returns stage -> step -> all metrics of that step except times."""
  found = {}
  for stage in ("images", "tokenizer", "generator"):
    lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps)), f"steps of {stage} are there twice, or out of order"
    for record in records:
      record.pop("steps_per_s")
      record.pop("tokens_per_s", None)
    found[stage] = {record["step"]: record for record in records}
  return found


FOUR_WAYS = ("--config.mesh.data=1", "--config.mesh.fsdp=4")


def start_two(flags, environs=({}, {})):
  """Starts a command as two processes with two devices each, and their own environments."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    coordinator = f"localhost:{free.getsockname()[1]}"
  processes = []
  for index, own in enumerate(environs):
    variables = {"VIDEOAR_COORDINATOR": coordinator, "VIDEOAR_NUM_PROCESSES": "2"}
    variables["VIDEOAR_PROCESS"] = str(index)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environ = environment(2) | variables | own
    processes.append(subprocess.Popen(flags, cwd=REPOSITORY, env=environ, **pipes))
  return processes


def assert_same_losses(workdir, other, names=("loss",)):
  """Compares the losses of all steps of two runs, and which steps have them."""
  ours = losses(workdir)
  for stage, steps in losses(other).items():
    for name in names:
      expected = {step: record[name] for step, record in steps.items() if name in record}
      found = {step: record[name] for step, record in ours[stage].items() if name in record}
      assert found.keys() == expected.keys()
      np.testing.assert_allclose(
        list(found.values()), list(expected.values()), rtol=1e-5, atol=1e-5
      )


def wait_for(path, processes):
  """Waits until a file exists."""
  deadline = time.monotonic() + 300
  while not path.exists() and time.monotonic() < deadline:
    ended = [process for process in processes if process.poll() is not None]
    assert not ended, [(process.returncode, process.stdout.read()[-3000:]) for process in ended]
    time.sleep(0.002)
