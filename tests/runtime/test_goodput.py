"""Accounting of a run's time."""

import time

import jax
import pytest

from videoar_jax.runtime.goodput import GoodputTracker, StepRate


def test_clock_parts_sum_to_one_and_compiling_is_counted_once(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  clock = GoodputTracker()
  with clock.measure("data"):
    now[0] = 0.25
    # What was compiled within is no data.
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 0.125)
  now[0] = 0.5
  expected = {"steps": 0.5, "compiling": 0.25, "data": 0.25}
  assert clock.shares() == pytest.approx(expected)


def test_clock_counts_the_start_and_what_a_run_before_lost(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  clock = GoodputTracker()
  clock.count("data", 1.0)
  now[0] = 5.0
  clock.count_rest("start")
  clock.lose(10.0)
  now[0] = 10.0
  expected = {"steps": 0.25, "compiling": 0, "data": 0.05, "start": 0.2, "lost work": 0.5}
  assert clock.shares() == pytest.approx(expected)
  assert "goodput of 20 s: steps 25%" in clock.report()


def test_clock_counts_the_wait_for_each_item_and_names_the_rest(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])

  def read():
    for item in "ab":
      now[0] += 1.0
      yield item

  clock, items = GoodputTracker("encoding"), []
  for item in clock.each("data", read()):
    items.append(item)
    now[0] += 3.0
  assert items == ["a", "b"]
  assert clock.shares() == pytest.approx({"encoding": 0.75, "compiling": 0, "data": 0.25})


def test_clock_tells_what_came_from_the_cache():
  clock = GoodputTracker()
  for event in ("hits", "hits", "misses"):
    jax.monitoring.record_event(f"/jax/compilation_cache/cache_{event}")
  assert f"2 programs from {jax.config.jax_compilation_cache_dir}, 1 not" in clock.report()


def test_compiling_is_counted_where_jax_compiles():
  clock = GoodputTracker()
  jax.jit(lambda x: x * time.time())(1.0)  # A constant that no cache knows.
  assert clock.shares()["compiling"] > 0


def test_rates_are_of_the_steps_since_the_last_line(monkeypatch):
  """Old slow steps do not count, nor does work between steps; waiting for data does."""
  now = [0.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  clock = GoodputTracker()
  now[0] = 50.0
  clock.count_rest("start")
  clock.lose(1000.0)
  rate = StepRate(clock, step=10)
  now[0] += 8.0
  assert rate.at(12) == pytest.approx(2 / 8)
  rate.restart(12)
  now[0] += 2.0
  for name in ("checkpoints", "samples", "evaluation"):
    with clock.measure(name):
      now[0] += 100.0
      jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 30.0)
  jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 7.0)
  now[0] += 7.0
  assert rate.at(16) == pytest.approx(4 / 2)
  with clock.measure("data"):
    now[0] += 6.0
  assert rate.at(16) == pytest.approx(4 / 8)
