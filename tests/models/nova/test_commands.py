"""Plans and benchmarks of NOVA, through the commands."""

import re

import jax
import jax.numpy as jnp
import pytest
from tiny_nova import make_config

from videoar_jax import bench, plan
from videoar_jax.experiment import parse
from videoar_jax.models.nova import flops, orders, work
from videoar_jax.models.nova.network import template_of
from videoar_jax.models.nova.task import plan_of
from videoar_jax.nn.layers import count_parameters
from videoar_jax.parallel import roofline
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.train.state import Template


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  for name, value in plan._NO_TPU.items():
    monkeypatch.setenv(name, value)


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "tiny.py"
  path.write_text(
    "from tiny_nova import make_config\n"
    "def get_config(arg=None):\n"
    "  return make_config(**{'stage.generator.loop.batch_size': 8, 'generator.num_heads': 2})\n"
  )
  return f"--config={path}"


def rows(text):
  cells = [re.split(r"  +", line, maxsplit=1) for line in text.splitlines()]
  return dict(row for row in cells if len(row) == 2)


def run_plan(capsys, *flags):
  status = plan.main(list(flags))
  output = capsys.readouterr()
  assert status == 0, output.err
  return rows(output.out)


def test_a_step_is_planned(config, capsys):
  tables = [
    run_plan(capsys, config, f"--topology=h100:{num}", f"--mesh={mesh}")
    for num, mesh in ((1, "data:1"), (8, "fsdp:4,sequence:2"), (8, "fsdp:4,tensor:2"))
  ]
  run = parse.finalize(make_config(**{"generator.num_heads": 2}))
  stage = run.stages[-1]
  encoder = run.tokenizer_family.flops(run.tokenizer, 5, (16, 16))[0]
  total = 8 * (run.family.flops(run, stage)[1] + encoder)
  for table in tables:
    assert table["FLOPs a step"] == f"{total:.3g}, executed {total:.3g}"
  assert tables[0]["sent between devices"] == "0 B" != tables[1]["sent between devices"]
  assert tables[1]["sent between devices"] != tables[2]["sent between devices"]
  assert float(tables[1]["tokens a second"].replace(",", "")) > 0


def test_the_search_finds_meshes(config, capsys):
  assert plan.main([config, "--topology=h100:8", "--search=3"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3 and "remat=none" in lines[0]
  times = [float(re.search(r"  ([\d.e-]+) s a step", line)[1]) for line in lines]
  assert times == sorted(times)


def test_sampling_is_planned(config, capsys):
  tables = [
    run_plan(capsys, config, f"--topology=h100:{n}", "--decode=2", f"--mesh=tensor:{n}")
    for n in (1, 2)
  ]
  run = parse.finalize(make_config(**{"generator.num_heads": 2}))
  # Three frames; of each, the temporal encoder runs once and the spatial transformer three times.
  assert "guided" in tables[0]["decode"] and "12 steps" in tables[0]["decode"]
  sizes = work.sizes_of(run, run.stages[-1])
  # Keys and values of one layer, of both passes of guidance.
  cache = 2 * 2 * 2 * sizes.temporal * run.generator.d_model * 4
  found = [table["cache a device"].split() for table in tables]
  assert [unit for _, unit in found] == ["KiB", "KiB"]
  assert float(found[0][0]) == pytest.approx(cache / 2**10, rel=0.01)
  assert float(found[1][0]) == pytest.approx(cache / 2**11, rel=0.01)
  plan_ = plan_of(run.generator, run.sampling, (3, 4, 4))
  total = 2 * flops.sampling_flops(run.generator, sizes, plan_)
  assert tables[0]["FLOPs"] == f"{total:.3g}"


def test_the_planned_program_of_sampling_is_the_samplers():
  """It compiles, and makes what `sample_latents` makes."""
  run = parse.finalize(make_config())
  stage, mesh = run.stages[-1], make_mesh(MeshConfig(data=1), jax.devices()[:1])
  template = Template.of(run.family.make_module(run))
  made = work.sampling_program(run, stage, template, mesh, 2, jnp.dtype("bfloat16"))
  module = run.family.make_module(run)(jax.random.key(0))
  module = jax.tree.map(lambda x: x.astype(jnp.bfloat16), module)
  texts = jnp.ones((2, 16), jnp.int32)
  with jax.set_mesh(mesh):
    found = made.program.lower(*made.arguments).compile()(
      module, texts, jnp.uint32(3), jnp.arange(2, dtype=jnp.int32)
    )
  expected = run.family.sample_latents(run, stage, module, texts, 3)
  assert found.shape == (2, 3, 4, 4, 2) and bool(jnp.isfinite(found).all())
  # The weights are bfloat16, and some operations are fused otherwise.
  assert float(jnp.abs(found - expected).mean()) < 0.05 * float(jnp.abs(expected).mean())


def test_it_is_timed(config, capsys, monkeypatch):
  def interleave(calls, repeats):
    for call in calls.values():
      jax.block_until_ready(call())
    seconds = {"forward": 0.5, "with gradient": 2.0, "whole step": 4.0, "clip": 4.0}
    rates = {"product": 1e5, "read": 1e6}
    return {
      name: call.amount / rates[name] if name in rates else seconds[name]
      for name, call in calls.items()
    }

  monkeypatch.setattr(roofline, "interleave", interleave)
  assert bench.main(["train", config, "--batch_size=2", "--repeats=1"]) == 0
  *_, forward, gradient, _ = capsys.readouterr().out.splitlines()
  run = parse.finalize(make_config(**{"generator.num_heads": 2}))
  sizes = work.sizes_of(run, run.stages[-1])
  for line, count in ((forward, flops.forward_flops), (gradient, flops.training_flops)):
    expected = 2 * count(run.generator, sizes, 4) / 1e9
    assert float(line.split()[-3]) == pytest.approx(expected, abs=0.06)
  assert bench.main(["sample", config, "--batch_size=2", "--repeats=1"]) == 0
  last = capsys.readouterr().out.splitlines()
  # No more than all weights each time that the head runs.
  steps = int(re.search(r"(\d+) steps", last[-2])[1])
  shapes = template_of(run.generator).shapes
  sets = 3 * len(orders.set_sizes(3, 16))
  head = shapes["head"]
  in_steps = head["embed"], head["out"], *(head["blocks"][name] for name in ("up", "down", "norm"))
  read = 3 * count_parameters(shapes["temporal"]) + sets * count_parameters(shapes["spatial"])
  # All but what needs the noisy tokens is read once for a set.
  read += sets * (count_parameters(head) + count_parameters(in_steps))
  assert steps == read // count_parameters(shapes) > 0
