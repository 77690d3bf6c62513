"""Runs with failures or changed devices: their behaviour and results.

Takes minutes: `pytest -m slow tests/test_disturbed.py`.
"""

import concurrent.futures
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from commands import (
  FOUR_WAYS,
  REPOSITORY,
  assert_same_losses,
  command,
  environment,
  start_two,
  wait_for,
)

pytestmark = pytest.mark.slow
DISTURBED = pathlib.Path(__file__).with_name("disturbed.py")


def disturbed(workdir, *flags):
  """Returns the command of a small run with the failure that DISTURBANCE selects."""
  return [sys.executable, str(DISTURBED), *command(workdir, *flags)[3:]]


def outputs_of(processes, timeout_s=900):
  """Returns the output of processes after their end; those that hang print their stacks."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    # All at once: who fills a pipe that nobody reads would stand still.
    reading = [pool.submit(process.communicate) for process in processes]
    concurrent.futures.wait(reading, timeout_s)
    left = [process for process in processes if process.poll() is None]
    for process in left:
      process.send_signal(signal.SIGUSR2)
    time.sleep(3 if left else 0)
    for process in left:
      process.kill()
    outputs = [read.result()[0] for read in reading]
  assert not left, "\n\n".join(["what is left after the time limit:", *outputs])
  return outputs


def test_a_disk_that_is_full_for_one_of_two_processes_costs_one_save(trained, tmp_path):
  """Both processes report it, continue, and end with the metrics of an undisturbed run."""
  environs = {"DISTURBANCE": ""}, {"DISTURBANCE": "disk tokenizer 4"}
  processes = start_two(disturbed(tmp_path / "run", *FOUR_WAYS), environs)
  outputs = outputs_of(processes)
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert "A SAVE FAILED: process 1 failed; see its log. The run" in outputs[0]
  assert "process 1 of 2 on" in outputs[1] and ": A SAVE FAILED: " in outputs[1]
  kept = (tmp_path / "run" / "tokenizer" / "checkpoints").iterdir()
  assert sorted(path.name for path in kept) == ["2", "6"]
  assert_same_losses(tmp_path / "run", trained)


MESHES = (
  (8, "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"),
  (4, "--config.mesh.data=1", "--config.mesh.fsdp=4"),
  (2, "--config.mesh.data=1", "--config.mesh.tensor=2"),
  (8, "--config.mesh.data=1", "--config.mesh.fsdp=4", "--config.mesh.sequence=2"),
)


def check_digests(path):
  """Asserts that restores equal saves; returns the number of restores."""
  lines = [line.split() for line in path.read_text().splitlines()]
  saved = {tuple(line[1:3]): line[3] for line in lines if line[0] == "saved"}
  restored = [line for line in lines if line[0] == "restored"]
  for _, stage, step, digest in restored:
    assert saved[stage, step] == digest, (stage, step)
  return [(stage, int(step)) for _, stage, step, _ in restored]


def test_from_eight_devices_to_four_to_two_to_eight(trained, tmp_path):
  """Interrupted in each stage, a run resumes on other devices with the same weights and losses."""
  log = tmp_path / "digests"
  for number, (num_devices, *mesh) in enumerate(MESHES):
    environ = environment(num_devices) | {"DISTURBANCE_LOG": str(log)}
    # Steps 3 of images, 3 of the tokenizer, 1 of the generator.
    environ["DISTURBANCE"] = f"stop {(3, 4, 4, 100)[number]}"
    arguments = disturbed(tmp_path / "run", *mesh)
    done = subprocess.run(
      arguments, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == (143 if number < 3 else 0), done.stdout + done.stderr[-3000:]
  assert check_digests(log) == [("images", 3), ("tokenizer", 3), ("generator", 1)]
  assert_same_losses(tmp_path / "run", trained)


def test_from_two_processes_to_one_to_two(trained, tmp_path):
  logs = [tmp_path / f"digests{index}" for index in range(2)]
  for number in range(3):
    stop = {"DISTURBANCE": f"stop {(3, 4, 100)[number]}"}
    environs = [stop | {"DISTURBANCE_LOG": str(log)} for log in logs]
    arguments = disturbed(tmp_path / "run", *FOUR_WAYS)
    if number == 1:
      environ = environment(4) | environs[0]
      pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
      processes = [subprocess.Popen(arguments, cwd=REPOSITORY, env=environ, **pipes)]
    else:
      processes = start_two(arguments, environs)
    outputs = outputs_of(processes)
    expected = 143 if number < 2 else 0
    assert [process.returncode for process in processes] == [expected] * len(processes), outputs
  assert check_digests(logs[0]) == [("images", 3), ("tokenizer", 3)]
  # What the second one restored, when it was there again, the first one had saved alone.
  last = [line.split()[2:] for line in logs[1].read_text().splitlines() if "restored" in line]
  first = [line.split()[2:] for line in logs[0].read_text().splitlines() if "restored" in line]
  assert last == first[1:]
  assert_same_losses(tmp_path / "run", trained)


@pytest.mark.parametrize(
  ("index", "disturbance"),
  [(1, "kill media"), (1, "hang media"), (1, "kill save"), (1, "hang save"), (0, "kill report")],
)
def test_two_processes_end_where_one_of_them_does_or_hangs(tmp_path, index, disturbance):
  """Wherever they hang, they end with a status that asks for a retry."""
  loop = "--config.stage.images.loop"
  flags = [*FOUR_WAYS, "--config.stages=('images',)", f"{loop}.media_every=2"]
  # Of a save, three times as long.
  flags += [f"{loop}.step_timeout_s=30", f"{loop}.save_timeout_s=10"]
  environs = [{"DISTURBANCE": ""}, {"DISTURBANCE": ""}]
  environs[index]["DISTURBANCE"] = disturbance
  processes = start_two(disturbed(tmp_path / "run", *flags), environs)
  wait_for(tmp_path / "run" / "images" / "metrics.jsonl", processes)
  began = time.monotonic()
  outputs = outputs_of(processes, 300)
  took = time.monotonic() - began
  statuses = [process.returncode for process in processes]
  print(f"{disturbance}: {statuses} after {took:.0f} s")
  if "kill" in disturbance:
    assert statuses.pop(index) == -signal.SIGKILL, outputs
  else:
    assert " HANGS: ending the process" in "".join(outputs)
  # Of their own, or through what watches over processes for JAX.
  assert set(statuses) <= {134, -signal.SIGABRT}, outputs
  assert took < 150
