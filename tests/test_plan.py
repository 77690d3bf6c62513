"""`python -m videoar_jax.plan`: estimates, results of TPU's compiler, and what is refused."""

import importlib.util
import math
import pathlib
import re
import subprocess
import sys

import pytest

from configs import quickstart, videoar_t2v
from videoar_jax import plan
from videoar_jax.experiment.command_line import read_config
from videoar_jax.experiment.parse import finalize
from videoar_jax.models.videoar.sequences import layout_of
from videoar_jax.parallel.hardware import parse_topology
from videoar_jax.parallel.mesh import MeshConfig, parse_mesh
from videoar_jax.planning import search, step_plan
from videoar_jax.planning.pod import Pod

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = "--config=configs/quickstart.py"
TINY = ["--config.generator.num_layers=1", "--config.stage.generator.loop.batch_size=8"]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)
  for name, value in plan._NO_TPU.items():
    monkeypatch.setenv(name, value)


def run_plan(capsys, *flags):
  status = plan.main([CONFIG, *TINY, *flags])
  output = capsys.readouterr()
  return status, output.out, output.err


def counted_pod(name):
  return Pod(name, *parse_topology(name), is_compiled=False)


def golden_draft(config, name, pod, mesh):
  run = finalize(read_config(config))
  stage = next(stage for stage in run.stages if stage.name == name)
  return step_plan.StepPlan.of(run, stage, pod, parse_mesh(mesh))


def mebibytes(words):
  return float(words[0]) * {"KiB": 2**-10, "MiB": 1, "GiB": 2**10}[words[1].rstrip(",")]


def rows(text):
  cells = [re.split(r"  +", line, maxsplit=1) for line in text.splitlines()]
  return dict(row for row in cells if len(row) == 2)  # Without the sentences below.


def test_counts_follow_the_mesh(capsys):
  tables = []
  for mesh in ("data:8", "fsdp:8"):
    status, out, _ = run_plan(capsys, "--topology=h100:8", f"--mesh={mesh}")
    assert status == 0
    tables.append(rows(out))
  whole, split = (float(table["memory traffic a device"].split()[0]) for table in tables)
  assert tables[0]["FLOPs a step"] == tables[1]["FLOPs a step"] and split < whole
  # Gradients are summed, two times their bytes; or parameters are gathered twice, and gradients
  # scattered.
  sums, parts = (table["sent between devices"].split() for table in tables)
  assert sums[1] == parts[1] and float(parts[0]) == pytest.approx(1.5 * float(sums[0]), rel=0.03)


def test_parameters_are_listed_with_their_split(capsys):
  status, out, _ = run_plan(capsys, "--topology=h100:8", "--mesh=fsdp:4,tensor:2", "--parameters")
  assert status == 0
  listed = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
  assert listed["blocks.mlp.up.kernel"] == ["1x128x384", "-", "fsdp", "tensor", "24,576"]
  assert listed["norm_out.scale"] == ["128", "-", "512"]
  total = int(listed["total"][-1].replace(",", ""))
  assert total == sum(
    int(row[-1].replace(",", "")) for name, row in listed.items() if name != "total"
  )


def test_search_ranks_by_time(capsys):
  status, out, _ = run_plan(capsys, "--topology=h100:8", "--search=4")
  assert status == 0
  times = [float(re.search(r"  ([\d.e-]+) s a step", line)[1]) for line in out.splitlines()]
  assert len(times) == 4 and times == sorted(times) and "remat=none" in out.splitlines()[0]


def test_search_knows_chips_of_two_devices_and_slices(capsys):
  """A tpu7x chip has two devices; a search keeps the mesh's number of slices."""
  flags = ["--topology=tpu7x:2x2x2", "--mesh=slice:2", "--count", "--search=2"]
  status, out, err = run_plan(capsys, *flags, "--config.stage.generator.loop.batch_size=32")
  assert status == 0, err
  for line in out.splitlines():
    sizes = dict(part.split(":") for part in re.search(r"--mesh=(\S+)", line)[1].split(","))
    assert sizes["slice"] == "2" and math.prod(map(int, sizes.values())) == 32


T2V = "configs/videoar_t2v.py:data=x,images=y"
TOKENIZER, UCF101 = "configs/tokenizer_ucf101.py:data=x", "configs/videoar_ucf101.py:data=x"
# Config, stage, pod, mesh, and GiB that a device's part of the step may be counted at.
GOLDEN = {
  "quickstart": ("configs/quickstart.py", "generator", "v5e:2x2", "data:4", 0.0365),
  "ablation": ("configs/ablation.py", "generator", "v5e:2x2", "data:4", 0.0365),
  "tokenizer": (TOKENIZER, "tokenizer", "v5e:4x4", "fsdp:16", 6.33),
  "ucf101": (UCF101, "generator", "v5e:4x4", "fsdp:16", 3.78),
  "I": (T2V, "I", "v5e:16x16", "fsdp:256", 4.13),
  "II": (T2V, "II", "v5p:4x4x8", "fsdp:128", 10.4),
  "III": (T2V, "III", "v5p:4x4x4", "fsdp:64", 17.8),
}


# Of those that compile in minutes, what TPU's compiler says that a device needs at most, in GiB.
COMPILED = {"I": 3.9, "II": 10.2, "III": 17.5}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_plans_are_counted_to_fit(name):
  """Memory per device must not grow unnoticed; if it shrinks, lower the number."""
  config, stage, pod, mesh, budget = GOLDEN[name]
  cost = golden_draft(config, stage, counted_pod(pod), mesh).estimate()
  assert 0.9 * budget < cost.memory / 2**30 <= budget
  assert budget * 2**30 < parse_topology(pod)[0].device_memory


def test_search_leaves_out_what_does_not_divide_alone(monkeypatch):
  """Heads divide over 2 shards of both axes, not over more; other errors are reported."""
  config = quickstart.get_config()
  config.stage.generator.loop.batch_size = 8
  run, pod = finalize(config), counted_pod("v5e:2x4")
  found = search.rank(run, run.stages[-1], pod, slices=1)
  ways = {(item.mesh.tensor, item.mesh.sequence) for item in found}
  assert ways == {(1, 1), (1, 2), (2, 1)}
  monkeypatch.setattr(search, "estimate", lambda *_: int("x"))
  with pytest.raises(ValueError, match="invalid literal"):
    search.rank(run, run.stages[-1], pod, slices=1)


def test_a_tokenizer_is_planned_with_the_scales_of_its_own_stage():
  """The text-to-video run has 384x672 pixels; its tokenizer trains at 256x256."""
  run = finalize(videoar_t2v.get_config("size=tiny,data=x,images=y"))
  made = step_plan.StepPlan.of(run, run.stages[0], counted_pod("h100:1"), MeshConfig(data=1))
  assert run.tokenizer.scales(run.data.resolution)[-1] == (24, 42)
  assert made.trainer.task.schedule[-1] == (16, 16)


def test_the_largest_shape_of_a_mixture_is_planned():
  run = finalize(videoar_t2v.get_config("data=x,images=y"))
  stage = run.stages[1]
  tokens = {}
  for ways in (1, 512):
    largest = step_plan.with_largest_shape(run, stage, ways)
    tokens[ways] = largest.loop.batch_size * layout_of(run, largest.data).length
    for part in stage.mixture:
      for shape in part.shapes:
        num_clips = run.batch_size_of(stage, part, shape, ways)
        assert num_clips % ways == 0 and num_clips * layout_of(run, shape).length <= tokens[ways]
  asked = stage.loop.batch_size * layout_of(run, stage.data).length
  assert 0.99 * asked < tokens[1] <= asked


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--topology=v9:2x2"], "with a chip of v4, v5e"),
    (["--topology=h100"], "CHIP:AxB"),
    (["--topology=h100:4", "--mesh=fsdp:3"], "multiple of 3 devices, but there are 4"),
    (["--topology=h100:4", "--mesh=width:4"], "axes are slice, data"),
    (["--topology=h100:16", "--mesh=fsdp:16"], "batch_size=8 does not divide"),
    (["--topology=h100:8", "--mesh=data:2,tensor:4", "--config.generator.head_dim=65"], "even"),
    (["--topology=h100:4", "--stage=third"], "it has images, tokenizer, frames, generator"),
    (["--topology=h100:4", "--config.generator.dpeth=3"], "dpeth"),
  ],
)
def test_mistakes_are_named_in_one_line(capsys, flags, message):
  status, _, err = run_plan(capsys, *flags)
  assert status == 2 and message in err and err.count("\n") == 1, err


def test_a_missing_config_is_named(capsys):
  assert plan.main(["--config=configs/none.py", "--topology=h100:4"]) == 2
  assert "configs/none.py" in capsys.readouterr().err


@pytest.mark.parametrize(
  "text",
  [
    "Ran out of memory in memory space hbm. Used 20.10G of 15.75G hbm. Exceeded hbm capacity by 4G",
    "the total memory required for HLO temporaries (20.10G) exceeds available HBM (15.75G).",
  ],
)
def test_what_does_not_fit_says_by_how_much(text):
  """For both of the compiler's messages."""
  found = step_plan._describe(Exception(f"RESOURCE_EXHAUSTED: {text}"), "split fsdp")
  assert isinstance(found, step_plan.DoesNotFit)
  assert "20.10G of 15.75G" in str(found) and "4.35G too much" in str(found)
  assert "fsdp" in str(found)


def test_decoding_is_counted(capsys):
  """Weights and cache are read at every step; heads over two devices halve what each holds."""
  tables = []
  for flags in (["--mesh=data:1"], ["--mesh=tensor:2"], ["--mesh=data:1", "--dtype=bfloat16"]):
    pod = "h100:2" if "tensor:2" in flags[0] else "h100:1"
    status, out, err = run_plan(capsys, f"--topology={pod}", "--decode=2", *flags)
    assert status == 0, err
    tables.append({name: text.split() for name, text in rows(out).items()})
  one, split, _ = tables
  cache = [mebibytes(table["cache a device"]) for table in tables]
  assert cache[1] == pytest.approx(cache[0] / 2, rel=0.01) == cache[2]
  # 3 frames of 4 scales; two halves by guidance; float32.
  assert "12 steps" in " ".join(one["decode"]) and "guided," in one["decode"]
  run = finalize(quickstart.get_config())
  layout, config = layout_of(run, run.stages[-1].data), run.generator
  positions = layout.text_length + 2 * layout.frame_size
  keys = 2 * 2 * 1 * config.num_kv_heads * config.head_dim * positions * 2 * 4
  assert cache[0] == pytest.approx(keys / 2**20, rel=0.01)
  held = [mebibytes(table["parameters a device"]) for table in tables]
  reads = [mebibytes(table["memory traffic a device"]) for table in tables]
  assert reads[0] == pytest.approx(12 * (held[0] + cache[0]), rel=0.02)
  assert held[2] == pytest.approx(held[0] / 2, rel=0.01) and split["sent between devices"] != ["0"]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--decode=3", "--mesh=data:2"], "--decode=3 clips do not divide over the 2 shards"),
    (["--decode=0", "--mesh=data:2"], "--decode=0"),
    (["--decode=2", "--stage=tokenizer"], "stage tokenizer trains a tokenizer"),
    (["--decode=1", "--mesh=tensor:2", "--config.generator.num_kv_heads=1"], "kv_heads"),
  ],
)
def test_decoding_that_cannot_be_is_named(capsys, flags, message):
  status, _, err = run_plan(capsys, "--topology=h100:2", *flags)
  assert status == 2 and message in err and err.count("\n") == 1, err


def compiled_plan(*flags):
  """Runs the real compiler in a subprocess; returns its output."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed; pip install 'videoar_jax[plan]'")
  command = [sys.executable, "-m", "videoar_jax.plan", *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "budget"), [([], 0.0375), (["--decode=8"], 0.0115)])
def test_a_pod_that_is_not_there_compiles(flags, budget):
  """Golden values from the real compiler: a small step, and decoding of a frame, in GiB."""
  done = compiled_plan(CONFIG, *TINY, "--topology=v5e:2x2", "--mesh=data:4", *flags)
  assert done.returncode == 0, done.stderr[-2000:]
  peak = mebibytes(rows(done.stdout)["peak a device"].split()) / 1024
  assert 0.7 * budget < peak <= budget


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_golden_plans_compile_to_fit(name):
  config, stage, pod, mesh, counted = GOLDEN[name]
  flags = f"--config={config}", f"--stage={stage}", f"--topology={pod}", f"--mesh={mesh}"
  done = compiled_plan(*flags)
  assert done.returncode == 0, done.stderr[-2000:]
  peak = mebibytes(rows(done.stdout)["peak a device"].split()) / 1024
  assert 0.95 * COMPILED[name] < peak <= COMPILED[name]
  # A count is good to choose a mesh by.
  assert peak == pytest.approx(counted, rel=0.1)


@pytest.mark.slow
def test_a_step_that_is_too_large_says_by_how_much():
  large = ["--config.generator.d_model=16384", "--config.generator.mlp_dim=65536"]
  done = compiled_plan(CONFIG, *TINY, "--topology=v5e:2x2", "--mesh=data:4", *large)
  assert done.returncode == 2, done.stdout[-2000:]
  numbers = re.search(r"needs ([\d.]+)G of ([\d.]+)G of .*?, ([\d.]+)G too much", done.stderr)
  needed, memory, excess = map(float, numbers.groups())
  assert excess == pytest.approx(needed - memory, abs=0.02) and memory == 15.75
  assert "--mesh=fsdp:N" in done.stderr and done.stderr.count("\n") == 1
