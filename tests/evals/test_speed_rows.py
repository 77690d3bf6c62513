"""The table of measurements: time limit, failures, files."""

import json

import pytest

from videoar_jax.evals.speed_rows import (
  Measurement,
  Report,
  Row,
  UnavailableError,
  measure_all,
  with_prefix,
)


class Clock:
  """Seconds that pass only when told."""

  def __init__(self):
    self.now = 100.0

  def __call__(self) -> float:
    return self.now

  def taking(self, seconds: float, **fields):
    """Returns a measurement's function that takes so long."""

    def run() -> dict:
      self.now += seconds
      return {"seconds": seconds, **fields}

    return run


def measured(tmp_path, clock, limit_s, *measurements):
  report = Report(tmp_path / "out", {"device": "cpu"})
  measure_all([Measurement(*each) for each in measurements], report, limit_s, clock=clock)
  return report.rows


def test_what_does_not_fit_is_skipped(tmp_path):
  """What follows may fit again."""
  clock = Clock()
  rows = measured(
    tmp_path,
    clock,
    20.0,
    ("first", 10.0, clock.taking(12.0)),
    ("long", 20.0, clock.taking(1.0)),
    ("short", 5.0, clock.taking(6.0)),
    ("last", 5.0, clock.taking(1.0)),
  )
  assert [row.status for row in rows] == ["done", "skipped", "done", "skipped"]
  # The first one took 1.2 times what was expected.
  assert rows[1].note == "would take about 24 s of 8 s left"
  assert rows[3].note == "would take about 6 s of 2 s left"
  assert clock.now == 118.0


def test_a_fast_machine_skips_less(tmp_path):
  clock = Clock()
  tasks = [(f"{i}", 50.0, clock.taking(10.0)) for i in range(8)]
  rows = measured(tmp_path, clock, 60.0, *tasks)
  assert [row.status for row in rows] == ["done"] * 6 + ["skipped"] * 2


def test_nothing_is_measured_without_time(tmp_path):
  clock = Clock()
  rows = measured(tmp_path, clock, 0.5, ("first", 1.0, clock.taking(1.0)))
  assert rows[0].status == "skipped" and clock.now == 100.0


def test_failures_are_rows(tmp_path, capsys):
  clock = Clock()

  def fail(error):
    def run():
      clock.now += 1
      raise error

    return run

  no_memory = RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 5 bytes " + 300 * "x")
  rows = measured(
    tmp_path,
    clock,
    30.0,
    ("absent", 4.0, fail(UnavailableError("is not | installed"))),
    ("large", 4.0, fail(no_memory)),
    ("wrong", 4.0, fail(ValueError("3 is not 4"))),
    ("foreign", 4.0, fail(NotImplementedError("Q must be bf16, got float32"))),
    ("unchecked", 4.0, clock.taking(2.0, note="good", check=fail(TypeError("no")))),
    ("checked", 4.0, clock.taking(0.5, check=lambda: 0.125)),
  )
  statuses = ["unavailable", "failed", "failed", "unavailable", "done", "done"]
  assert [row.status for row in rows] == statuses
  assert rows[1].note.startswith("out of memory: RESOURCE_EXHAUSTED: Out of memory allocating")
  assert len(rows[1].note) == 160
  assert rows[2].note == "ValueError: 3 is not 4"
  assert rows[3].note == "Q must be bf16, got float32"
  assert rows[4].seconds == 2.0 and rows[4].error is None
  assert rows[4].note == "good; not checked: TypeError: no"
  assert rows[5].error == 0.125
  text = (tmp_path / "out" / "bench.md").read_text()
  lines = text.splitlines()
  assert lines[0] == "device cpu" and len(lines) == 4 + 6 and "Running" not in text
  assert len({len(line) for line in lines[2:]}) == 1  # Columns are aligned,
  assert {line.count("|") for line in lines[2:]} == {7}  # and a note opens no other one.
  assert "is not / installed" in text and "failed: ValueError: 3 is not 4" in text
  found = json.loads((tmp_path / "out" / "bench.json").read_text())
  assert found["device"] == "cpu" and found["running"] is None
  assert found["rows"][5]["seconds"] == 0.5 and found["rows"][5]["error"] == 0.125
  progress = capsys.readouterr().err.splitlines()
  assert len(progress) == 6 and progress[-1] == "[6/6, 8 of 30 s] checked: 500 ms, 1.2e-01"


@pytest.mark.parametrize("is_checking", [False, True])
def test_a_killed_run_leaves_what_it_has(tmp_path, is_checking):
  clock = Clock()

  def stop():
    raise KeyboardInterrupt

  last = clock.taking(1.0, check=stop) if is_checking else stop
  with pytest.raises(KeyboardInterrupt):
    measured(tmp_path, clock, 60.0, ("first", 1.0, clock.taking(1.0)), ("last", 1.0, last))
  found = json.loads((tmp_path / "out" / "bench.json").read_text())
  assert [row["name"] for row in found["rows"]] == ["first"] + is_checking * ["last"]
  assert found["running"] == "last" + is_checking * ", the check of its result"
  assert f"killed by: {found['running']}" in (tmp_path / "out" / "bench.md").read_text()


def test_cells():
  row = Row("product", seconds=2.5e-5, rate=7.9e14, unit="FLOP", share=0.834, error=0.00291)
  assert row.cells() == ("product", "25.0 µs", "790 TFLOP/s", "83%", "2.9e-03", "")
  assert Row("clip", rate=0.0312, unit="clips").cells()[2] == "0.0312 clips/s"
  assert Row("product", "failed", note="why").cells() == ("product", "", "", "", "", "failed: why")


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0.0, "0 "),
    (1.0, "1.00 "),
    (999.6, "1.00 k"),
    (0.0123, "12.3 m"),
    (123456, "123 k"),
    (4.8e12, "4.80 T"),
    (2e-10, "0.200 n"),
    (3e19, "30000 P"),
    (float("nan"), "nan "),
  ],
)
def test_prefixes(value, text):
  assert with_prefix(value) == text
