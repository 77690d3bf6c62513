"""`python -m videoar_jax.plan`: what it counts, what TPU's compiler says, and what is refused."""

import importlib.util
import math
import pathlib
import re
import subprocess
import sys

import pytest

from configs import quickstart, videoar_t2v
from videoar_jax import plan
from videoar_jax.parallel.chips import parse_topology
from videoar_jax.parallel.sharding import MeshConfig
from videoar_jax.planning import draft, search
from videoar_jax.planning.pod import Pod
from videoar_jax.train.config import finalize

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = "--config=configs/quickstart.py"
TINY = ["--config.generator.depth=1", "--config.stage.generator.loop.batch_size=8"]


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


def rows(text):
  return dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines()[:-1])


def test_counts_follow_the_mesh(capsys):
  tables = []
  for mesh in ("data:8", "fsdp:8"):
    status, out, _ = run_plan(capsys, "--topology=h100:8", f"--mesh={mesh}")
    assert status == 0
    tables.append(rows(out))
  whole, split = (float(table["memory traffic a device"].split()[0]) for table in tables)
  assert tables[0]["operations a step"] == tables[1]["operations a step"] and split < whole
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
  """A v4 chip is two devices; a search stays on as many slices as the mesh has."""
  flags = ["--topology=v4:2x2x2", "--mesh=slice:2", "--count", "--search=2"]
  status, out, err = run_plan(capsys, *flags, "--config.stage.generator.loop.batch_size=32")
  assert status == 0, err
  for line in out.splitlines():
    sizes = dict(part.split(":") for part in re.search(r"--mesh=(\S+)", line)[1].split(","))
    assert sizes["slice"] == "2" and math.prod(map(int, sizes.values())) == 32


@pytest.mark.parametrize("text_length", [72, 73])
def test_search_leaves_out_what_does_not_divide_alone(monkeypatch, text_length):
  """Some lengths divide over 2 ways of a sequence, others do not; any other error is told."""
  config = quickstart.get_config()
  config.text.length, config.stage.generator.loop.batch_size = text_length, 8
  run, pod = finalize(config), counted_pod("h100:8")
  length = run.layout_of(run.stages[-1].data).length
  found = search.rank(run, run.stages[-1], pod, slices=1)
  ways = {item.mesh.sequence for item in found}
  assert ways == {n for n in (1, 2, 4, 8) if length % n == 0}
  monkeypatch.setattr(search, "estimate", lambda *_: int("x"))
  with pytest.raises(ValueError, match="invalid literal"):
    search.rank(run, run.stages[-1], pod, slices=1)


def test_a_tokenizer_is_planned_with_the_scales_of_its_own_stage():
  """The text-to-video run is of 384x672 pixels, its tokenizer learns at 256x256."""
  run = finalize(videoar_t2v.get_config("size=tiny,data=x,images=y"))
  made = draft.Draft.of(run, run.stages[0], counted_pod("h100:1"), MeshConfig(data=1))
  assert run.schedule[-1] == (24, 42) and made.trainer.task.schedule[-1] == (16, 16)


def test_the_largest_shape_of_a_mixture_is_planned():
  run = finalize(videoar_t2v.get_config("data=x,images=y"))
  stage = run.stages[1]
  tokens = {}
  for ways in (1, 512):
    largest = draft.with_largest_shape(run, stage, ways)
    tokens[ways] = largest.loop.batch_size * run.layout_of(largest.data).length
    for part in stage.mixture:
      for shape in part.shapes:
        num_clips = run.batch_size_of(stage, shape, ways)
        assert num_clips % ways == 0 and num_clips * run.layout(*shape).length <= tokens[ways]
  asked = stage.loop.batch_size * run.layout_of(stage.data).length
  assert 0.99 * asked < tokens[1] <= asked


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--topology=v9:2x2"], "chips are v4, v5e"),
    (["--topology=h100"], "CHIP:AxB"),
    (["--topology=h100:4", "--mesh=fsdp:3"], "multiple of 3 devices, but there are 4"),
    (["--topology=h100:4", "--mesh=width:4"], "axes are slice, data"),
    (["--topology=h100:16", "--mesh=fsdp:16"], "batch_size=8 does not divide"),
    (["--topology=h100:8", "--mesh=data:2,tensor:4", "--config.generator.head_width=65"], "even"),
    (["--topology=h100:8", "--mesh=data:1,sequence:8"], "mesh.sequence=8; take another"),
    (["--topology=h100:4", "--stage=third"], "it has images, tokenizer, generator"),
    (["--topology=h100:4", "--config.generator.dpeth=3"], "dpeth"),
  ],
)
def test_mistakes_are_named_in_one_line(capsys, flags, message):
  status, _, err = run_plan(capsys, *flags)
  assert status == 2 and message in err and err.count("\n") == 1, err


def test_a_missing_config_is_named(capsys):
  assert plan.main(["--config=configs/none.py", "--topology=h100:4"]) == 2
  assert "configs/none.py" in capsys.readouterr().err


def test_what_does_not_fit_says_by_how_much():
  text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.10G of 15.75G hbm. "
  text += "Exceeded hbm capacity by 4.35G."
  message = str(draft._describe(Exception(text), "split fsdp"))
  assert "20.10G of 15.75G" in message and "4.35G too much" in message and "fsdp" in message


@pytest.mark.slow
def test_a_pod_that_is_not_there_compiles():
  """The real compiler: a small step has a peak, and one that is too large says by how much."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed; pip install 'videoar_jax[plan]'")
  command = [sys.executable, "-m", "videoar_jax.plan", CONFIG, *TINY, "--topology=v5e:2x2"]
  done = subprocess.run([*command, "--mesh=fsdp:4"], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  assert "peak a device" in rows(done.stdout)
  large = [
    *command,
    "--mesh=data:4",
    "--config.generator.width=16384",
    "--config.generator.depth=2",
  ]
  done = subprocess.run(large, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and "too much" in done.stderr, done.stderr[-2000:]
