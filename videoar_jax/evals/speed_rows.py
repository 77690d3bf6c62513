"""Measurements within a time limit, and their table: each is a row, also if it fails."""

import dataclasses
import gc
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

from videoar_jax.experiment.command_line import one_line
from videoar_jax.interop.atomic import write_text
from videoar_jax.interop.strict_json import write_json

_COLUMNS = ("measurement", "time", "rate", "of the limit", "relative error", "note")
_LONGEST_NOTE = 160  # Characters of an error's message.


class UnavailableError(Exception):
  """A measurement does not run on this machine; the message says why, in a few words."""


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the table; what is None was not measured.

  Attributes:
    name: what was measured.
    status: "done", "failed", "unavailable" or "skipped".
    seconds: time of one call.
    rate: amount of `unit` per second.
    unit: such as "FLOP", "B" or "clips".
    share: of the measured limit, from 0 to 1.
    error: norm of the difference from a reference in float32, over the reference's norm.
    note: what else there is to say, or why it was not measured.
  """

  name: str
  status: str = "done"
  seconds: float | None = None
  rate: float | None = None
  unit: str = ""
  share: float | None = None
  error: float | None = None
  note: str = ""

  def cells(self) -> tuple[str, ...]:
    """Returns the texts of the table's columns."""
    number = None if self.rate is None else with_prefix(self.rate)
    if number is not None and self.unit == "clips":  # Which have no prefix.
      number = f"{self.rate:.3g} "
    rate = "" if number is None else f"{number}{self.unit}/s"
    share = "" if self.share is None else f"{self.share:.0%}"
    error = "" if self.error is None else f"{self.error:.1e}"
    seconds = "" if self.seconds is None else f"{with_prefix(self.seconds)}s"
    note = self.note if self.status in ("done", "unavailable") else f"{self.status}: {self.note}"
    return self.name, seconds, rate, share, error, note


@dataclasses.dataclass(frozen=True)
class Measurement:
  """Something to measure.

  Attributes:
    name: of its row.
    expected_s: seconds that it may take with compiling; only their proportions matter once some
      are measured.
    run: measures it; returns fields of its row, other than `name` and `status`, and perhaps
      "check", a function that returns its relative error.
  """

  name: str
  expected_s: float
  run: Callable[[], dict]


class Report:
  """The table of measurements, which two files in a folder always have up to the last one.

  Args:
    out: the folder, which is made; `bench.md` and `bench.json` in it are replaced.
    facts: what the measurements have in common, such as the device.
  Raises:
    OSError: the folder cannot be made or written to.
  """

  def __init__(self, out: str | os.PathLike, facts: dict[str, str]):
    self.out, self.facts = pathlib.Path(out), facts
    self.rows: list[Row] = []
    self.out.mkdir(parents=True, exist_ok=True)

  def text(self) -> str:
    """Returns the table in Markdown, after a line of facts."""
    table = [_COLUMNS, *(row.cells() for row in self.rows)]
    table = [[cell.replace("|", "/") for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    # Columns of numbers are aligned to the right.
    is_text = [name in ("measurement", "note") for name in _COLUMNS]
    columns = list(zip(widths, is_text, strict=True))
    rule = ["-" * width if text else "-" * (width - 1) + ":" for width, text in columns]
    lines = []
    for row in (table[0], rule, *table[1:]):
      cells = zip(row, columns, strict=True)
      cells = [x.ljust(width) if text else x.rjust(width) for x, (width, text) in cells]
      lines.append(f"| {' | '.join(cells)} |")
    facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
    return "\n".join([facts, "", *lines])

  def write(self, running: str | None = None) -> None:
    """Writes both files.

    Args:
      running: the measurement that is being made; None after the last.
    """
    ending = "" if running is None else f"\nRunning, or killed by: {running}\n"
    write_text(self.out / "bench.md", f"{self.text()}\n{ending}")
    rows = [dataclasses.asdict(row) for row in self.rows]
    write_json(self.out / "bench.json", self.facts | {"running": running, "rows": rows})


def measure_all(
  measurements: Sequence[Measurement],
  report: Report,
  limit_s: float,
  *,
  clock: Callable[[], float] = time.monotonic,
) -> None:
  """Makes the measurements in their order, each of which becomes a row of the report.

  A measurement is skipped if its expected time is more than what is left. Expected times are
  scaled by how long the ones before took, compared with theirs. An error becomes a row with the
  reason, and the next measurement follows.

  Args:
    measurements: the most important first.
    report: the table; its files are written before and after each measurement.
    limit_s: seconds for all. The last one that still seemed to fit may exceed it.
    clock: seconds, as `time.monotonic`.
  Raises:
    OSError: the files cannot be written.
  """
  begin, took_s, expected_s = clock(), 0.0, 0.0
  for number, measurement in enumerate(measurements, 1):
    start, pace = clock(), took_s / expected_s if expected_s else 1.0
    left_s, needed_s = limit_s - (start - begin), measurement.expected_s * pace
    if left_s < max(needed_s, 1e-9):
      note = f"would take about {needed_s:.0f} s of {max(left_s, 0):.0f} s left"
      report.rows.append(Row(measurement.name, "skipped", note=note))
    else:
      _measure(measurement, report)
      gc.collect()  # Arrays that an error's frames have.
      if report.rows[-1].status == "done":
        took_s, expected_s = took_s + clock() - start, expected_s + measurement.expected_s
    report.write()
    name, *texts = report.rows[-1].cells()
    progress = f"[{number}/{len(measurements)}, {clock() - begin:.0f} of {limit_s:.0f} s]"
    print(f"{progress} {name}: {', '.join(filter(None, texts))}", file=sys.stderr, flush=True)


def _measure(measurement: Measurement, report: Report) -> None:
  """Appends a measurement's row to a report; its time is in the files before it is checked."""
  report.write(running=measurement.name)
  try:
    fields = dict(measurement.run())
    check = fields.pop("check", None)
    row = Row(measurement.name, **fields)
  except (UnavailableError, NotImplementedError) as error:  # The latter are of libraries.
    check, row = None, Row(measurement.name, "unavailable", note=one_line(error)[:_LONGEST_NOTE])
  except Exception as error:  # The others are still of use.
    check, row = None, Row(measurement.name, "failed", note=reason(error))
  report.rows.append(row)
  if check is not None:
    report.write(running=f"{measurement.name}, the check of its result")
    try:
      row = dataclasses.replace(row, error=check())
    except Exception as error:
      row = dataclasses.replace(row, note=f"{row.note}; not checked: {reason(error)}")
    report.rows[-1] = row


def reason(error: Exception) -> str:
  """Returns why a measurement failed, in a line of limited length."""
  text = one_line(error)
  if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
    return f"out of memory: {text}"[:_LONGEST_NOTE]
  return f"{type(error).__name__}: {text}"[:_LONGEST_NOTE]


def with_prefix(value: float) -> str:
  """Returns a number with three digits and the prefix of a unit, such as "12.3 k"."""
  if value == 0 or not math.isfinite(value):
    return f"{value:g} "
  value = float(f"{value:.3g}")
  order = math.floor(math.log10(abs(value)))
  exponent = min(15, max(-9, 3 * (order // 3)))
  prefix = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}[exponent]
  return f"{value / 10.0**exponent:.{max(0, 2 - order + exponent)}f} {prefix}"
