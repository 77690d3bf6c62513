"""`python -m videoar_jax.ablation`: differences between variants, shared stages, the table."""

import json
import os
import pathlib
import re
import time
import types

import pytest

from configs import ablation as ablation_config
from configs import families as families_config
from videoar_jax import ablation
from videoar_jax.experiment import parse
from videoar_jax.experiment import run as runs
from videoar_jax.experiment.diff import differing_fields
from videoar_jax.runtime.preemption import Preempted

CONFIG = pathlib.Path(ablation_config.__file__)
VARIANTS = ablation_config.VARIANTS


def made(accuracy=0.5, loss=0.3, drift=-2.0, step=0.1):
  """Scores of a run."""
  return {
    "teacher_forced": {"loss": loss, "bit_accuracy": 0.9},
    "prompts": {"generated": {"all": {"size": accuracy, "all": 0.0}}},
    "drift_points": drift,
    "seconds_a_step": step,
  }


def test_variants_differ_in_what_the_papers_tables_say():
  values = {name: ablation_config.get_config(f"variant={name}").to_dict() for name in VARIANTS}
  corruption = "stage.generator.loss.corruption"
  steps = {
    ("baseline", "rope"): ["generator.positions: 'learned' -> 'rope'"],
    ("rope", "time"): [f"{corruption}.delta: 0.0 -> 0.01"],
    ("time", "inheritance"): [f"{corruption}.has_inheritance: False -> True"],
    ("inheritance", "frame_mask"): ["stage.generator.loss.p_frame_mask: 0.0 -> 0.2"],
    ("inheritance", "full_frame"): ["generator.context: 'scales' -> 'full_frame'"],
    ("inheritance", "clean"): [f"{corruption}.p_max: 0.1 -> 0.0"],
    ("inheritance", "contiguous"): ["generator.rope_is_interleaved: True -> False"],
  }
  assert set(VARIANTS) == {name for pair in steps for name in pair}
  for (one, other), wanted in steps.items():
    assert differing_fields(values[one], values[other]) == wanted
  for name in VARIANTS:
    for argument in (f"variant={name}", f"variant={name},quick=1"):
      run = parse.finalize(ablation_config.get_config(argument))
      assert run.stages[-1].kind == "generator" and run.stages[-1].cache is not None


def test_table_has_means_and_deviations():
  found = {"a": [made(0.5, 0.30), made(0.7, 0.32), made(0.6, 0.34)], "b": [made()], "c": []}
  labels = {"a": "first", "b": "second", "c": "third"}
  assert ablation.summary(found["a"])["size"] == {
    "mean": pytest.approx(60),
    "deviation": pytest.approx(10),
  }
  header, rule, *rows = ablation.table(labels, found).splitlines()
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *rows)]
  assert len(rows) == 2 and rule.count("---") == len(cells[0])
  first, second = (dict(zip(cells[0], row, strict=True)) for row in cells[1:])
  assert first["variant"] == "first" and first["seeds"] == "3"
  assert first["held-out loss"] == "0.3200 ± 0.0200"
  assert first["held-out bits, %"] == "90.00 ± 0.00"
  assert first["size, %"] == "60 ± 10"
  assert "motion, %" not in first and "gFVD" not in first
  assert (second["size, %"], second["drift, points"], second["s a step"]) == ("50", "-2", "0.100")


def test_a_step_takes_its_median_since_the_run_went_on(tmp_path):
  path, lines = tmp_path / "metrics.jsonl", []
  for first, seconds in ((0, 7.0), (4, 0.5)):
    for step in range(first + 1, first + 5):
      # The third step is slow.
      seconds_here = seconds + (5 if step - first == 3 else 0)
      lines.append(json.dumps({"step": step, "steps_per_s": 1 / seconds_here}))
  path.write_text("\n".join(lines))
  assert ablation.seconds_a_step(path, 4) == pytest.approx(0.5)
  assert ablation.seconds_a_step(path, 8) is None
  path.write_text("\n".join(lines[:4]))
  assert ablation.seconds_a_step(path, 0) == pytest.approx(7.0)


def test_drift_is_of_the_look_alone():
  first = {"size": 1.0, "colour": 0.9, "shape": 0.5, "background": 1.0, "motion": 1.0, "all": 0.5}
  last = {"size": 0.9, "colour": 0.5, "shape": 0.3, "background": 1.0, "motion": 0.0, "all": 0.0}
  found = ablation.drift_points({"generated": [first, {}, last], "real": [last, last, first]})
  assert found == pytest.approx(100 * (2.7 - 3.4) / 4)
  assert ablation.drift_points(None) is None


class FakeRun:
  """Trains instantly. Records its calls, and may be preempted."""

  started, stop_at = [], None

  def __init__(self, config, workdir):
    self.workdir, self.settings = workdir, parse.finalize(config)
    self.stages = types.SimpleNamespace(run=self.settings, latest_step=lambda stage: 0)
    self.config = config

  def train(self):
    if self.workdir.name == FakeRun.stop_at:
      raise Preempted("SIGINT: stopped at step 3 of 4")
    FakeRun.started.append(self)
    folder = self.workdir / self.settings.stages[-1].name
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    records = ({"step": i, "steps_per_s": 4.0} for i in (1, 2, 3))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    return is_new


@pytest.fixture
def fakes(monkeypatch):
  """Fakes training; returns the runs that are trained and scored."""
  monkeypatch.setattr(runs, "Run", FakeRun)
  monkeypatch.setattr(FakeRun, "started", [])
  scored = []

  def score(folder, run, options):
    scored.append(folder.name)
    return made(accuracy=0.5 if folder.name.endswith("0") else 0.7)

  monkeypatch.setattr(ablation, "_score", score)
  return scored


def ablate(workdir, *flags, config=f"{CONFIG}:quick=1"):
  return ablation.main([f"--workdir={workdir}", f"--config={config}", *flags])


def test_variants_share_the_tokenizer_and_go_on(tmp_path, fakes, monkeypatch, capsys):
  monkeypatch.setattr(FakeRun, "stop_at", "time_1")
  workdir = tmp_path / "new"
  assert ablate(workdir, "--seeds=2") == 0
  assert "SIGINT: stopped at step 3 of 4. The same command resumes" in capsys.readouterr().out
  assert fakes == [*(f"{name}_0" for name in VARIANTS), "baseline_1", "rope_1"]
  shared, *variants = FakeRun.started
  assert shared.workdir == workdir / "shared" and shared.settings.generator is None
  assert [stage.kind for stage in shared.settings.stages] == ["tokenizer"]
  assert [cache.name for cache in shared.settings.caches] == ["cache"]
  assert [run.settings.seed for run in variants] == [0] * len(VARIANTS) + [1] * 2
  for run in variants:
    link = run.workdir / "tokenizer"
    assert not os.path.isabs(os.readlink(link)) and link.samefile(workdir / "shared" / "tokenizer")
    assert run.settings.caches[0].folder(run.workdir) == workdir / "shared" / "cache"
    wanted = ablation_config.get_config(f"quick=1,variant={run.workdir.name[:-2]}")
    assert run.config.generator == wanted.generator
    assert run.config.stage.generator == wanted.stage.generator
  numbers = json.loads((workdir / "ablation.json").read_text())
  assert [len(numbers[name]["runs"]) for name in VARIANTS] == [2, 2] + [1] * (len(VARIANTS) - 2)

  fakes.clear()
  monkeypatch.setattr(FakeRun, "stop_at", None)
  assert ablate(workdir, "--seeds=2") == 0
  assert fakes == [f"{name}_1" for name in list(VARIANTS)[2:]]
  printed = capsys.readouterr().out
  assert (workdir / "ablation.md").read_text() in printed
  assert all(f"| {label} | 2 |" in printed for label in VARIANTS.values())
  assert "| 60 ± 14 |" in printed and "| 0.250 |" not in printed and "| 0.250 ± 0.000 |" in printed
  fakes.clear()
  assert ablate(workdir, "--seeds=1", "--num_clips=5") == 0
  assert fakes == [f"{name}_0" for name in VARIANTS]  # Scored anew, on other clips.


@pytest.mark.parametrize(
  ("flags", "config", "wanted"),
  [
    (["--seeds=0"], f"{CONFIG}", "--seeds=0 must be at least 1"),
    (["--num_clips=0"], f"{CONFIG}", "--num_clips=0 must be at least 1"),
    ([], f"{CONFIG}:variant=rope", "all variants are trained; remove variant="),
    ([], f"{CONFIG}:quik=1", "config argument 'quik=1' is unknown; known, with defaults"),
    ([], f"{CONFIG.parent / 'quickstart.py'}", "has no VARIANTS; name a file like"),
    ([], f"{CONFIG.parent / 'common.py'}", "has no get_config"),
    ([], "none.py", "--config=none.py does not exist; name a file"),
  ],
)
def test_bad_input_is_one_line(tmp_path, fakes, capsys, flags, config, wanted):
  assert ablate(tmp_path / "new", *flags, config=config) == 2
  printed, error = capsys.readouterr()
  assert printed == "" and error.startswith("error: ") and error.count("\n") == 1
  assert wanted in error
  assert not (tmp_path / "new").exists()


def test_an_unknown_variant_is_named():
  with pytest.raises(ValueError, match="variant='ropes' is unknown; there are baseline, rope"):
    ablation_config.get_config("variant=ropes")


def test_processor_time_adds_up_over_interruptions(tmp_path, monkeypatch):
  path, clock = tmp_path / "processor_s.json", iter([10.0, 13.0, 100.0, 104.0])
  monkeypatch.setattr(time, "process_time", lambda: next(clock))
  with pytest.raises(KeyboardInterrupt), ablation.processor_time(path):
    raise KeyboardInterrupt
  with ablation.processor_time(path) as used:
    pass
  assert used() == 7.0


@pytest.mark.parametrize("stages", [("tokenizer",), ("generator",), ("generator", "tokenizer")])
def test_stages_are_those_that_are_shared_and_then_generators(tmp_path, fakes, capsys, stages):
  path = tmp_path / "config.py"
  path.write_text(
    "from configs import ablation\nVARIANTS = {'a': 'a'}\ndef get_config(arg=None):\n"
    f"  config = ablation.get_config('quick=1')\n  config.stages = {stages}\n  return config\n"
  )
  assert ablate(tmp_path / "new", config=str(path)) == 2
  assert f"config.stages={stages} must begin with a tokenizer" in capsys.readouterr().err


def test_each_family_has_its_own_tokenizer(tmp_path, fakes):
  config = str(CONFIG.parent / "families.py")
  assert ablate(tmp_path, "--seeds=1", config=f"{config}:quick=1") == 0
  assert fakes == [f"{name}_0" for name in families_config.VARIANTS]
  assert [run.workdir.name for run in FakeRun.started[:2]] == ["shared_videoar", "shared_nova"]
  for run in FakeRun.started[2:]:
    family = run.workdir.name.split("_")[0]
    assert run.config.family == family
    assert (run.workdir / "tokenizer").resolve() == tmp_path / f"shared_{family}" / "tokenizer"


def test_families_train_half_and_twice_the_steps():
  steps, clips = {}, {}
  for name in families_config.VARIANTS:
    config = families_config.get_config(f"variant={name}")
    family, time = name.rsplit("_", 1)
    steps[family, time] = [config.stage[x].loop.num_steps for x in ("frames", "generator")]
    caches = [config.stage[f"{x}_latents"].num_clips for x in ("frames", "generator")]
    assert clips.setdefault(family, caches) == caches  # They are shared.
  for family in ("videoar", "nova"):
    assert steps[family, "twice"] == [2 * n for n in steps[family, "one"]]
    assert [2 * n for n in steps[family, "half"]] == steps[family, "one"]
  with pytest.raises(ValueError, match="variant='nova' is unknown; there are videoar_half, nova"):
    families_config.get_config("variant=nova")


@pytest.mark.slow
def test_two_families_from_end_to_end(tmp_path):
  flags = ["--seeds=1", "--num_clips=4", "--num_long_clips=2"]
  assert ablate(tmp_path, *flags, config=f"{CONFIG.parent / 'families.py'}:quick=1") == 0
  table = (tmp_path / "ablation.md").read_text()
  assert all(f"| {label} | 1 | 0.0" in table for label in families_config.VARIANTS.values())


@pytest.mark.slow
def test_a_quick_ablation_from_end_to_end(tmp_path, capsys):
  flags = ["--seeds=1", "--num_clips=4", "--num_long_clips=2"]
  assert ablate(tmp_path, *flags) == 0
  table = (tmp_path / "ablation.md").read_text()
  assert all(f"| {label} | 1 |" in table for label in VARIANTS.values())
  losses = re.findall(r"\| 1 \| (0\.\d+) \|", table)
  assert len(set(losses)) > 3 and all(0.4 < float(loss) < 0.8 for loss in losses)
  capsys.readouterr()
  assert ablate(tmp_path, *flags) == 0
  assert (tmp_path / "ablation.md").read_text() == table
