"""Processes, here threads, wait at barriers; one of them fails and skips some."""

import itertools
import threading
import time
import types

import pytest

from videoar_jax.parallel import barrier

NUM = 3
LAST = ("end", "very end")


class Service:
  """A fake of the run's key-value store and barriers; each thread is the process of its number."""

  def __init__(self):
    self.keys, self.barrier = {}, threading.Barrier(NUM)

  def key_value_set(self, key, value, allow_overwrite):
    assert allow_overwrite
    # Some are slow: the others have long gone on when these read who was where.
    time.sleep(0.01 * int(threading.current_thread().name))
    self.keys[key] = value

  def wait_at_barrier(self, name, timeout_ms):
    assert name == "saves"
    self.barrier.wait(timeout_ms / 1000)
    time.sleep(0.01 * int(threading.current_thread().name))

  def key_value_dir_get(self, prefix):
    return [(key, value) for key, value in self.keys.items() if key.startswith(prefix)]


def meet_all(monkeypatch, ways):
  """Returns the barriers that each process has passed, and its error, each on its own path."""
  state = types.SimpleNamespace(client=Service())
  monkeypatch.setattr(barrier.compat, "distributed_state", lambda: state)
  monkeypatch.setattr(barrier.jax, "process_index", lambda: int(threading.current_thread().name))
  found = [[] for _ in range(NUM)]

  def come(process):
    meet = barrier.Barrier("saves", is_last=lambda key: key in LAST)
    for key in itertools.chain(*ways[process]):
      try:
        meet(key=key, timeout_ms=20_000)
        found[process].append(key)
      except OSError as error:
        found[process].append(str(error))
        # As a save: the last barriers alone are left.
        break
    else:
      return
    for key in LAST:
      meet(key=key, timeout_ms=20_000)
      found[process].append(key)

  threads = [threading.Thread(target=come, args=(n,), name=str(n), daemon=True) for n in range(NUM)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
    assert not thread.is_alive()
  return found


WHOLE = ("written", "committed", *LAST)


def test_all_that_go_the_same_way_pass(monkeypatch):
  assert meet_all(monkeypatch, [[WHOLE] * 20] * NUM) == [[*WHOLE] * 20] * NUM


@pytest.mark.parametrize("failed", range(NUM))
@pytest.mark.parametrize("num_met", [0, 1])
def test_who_waits_learns_who_has_failed_and_all_meet_at_the_end(monkeypatch, failed, num_met):
  ways = [[WHOLE, WHOLE] for _ in range(NUM)]
  ways[failed] = [WHOLE, WHOLE[:num_met], LAST]
  error = f"process {failed} failed; see its log"
  expected = [[*WHOLE, *WHOLE[:num_met], error, *LAST] for _ in range(NUM)]
  expected[failed] = [*WHOLE, *WHOLE[:num_met], *LAST]
  assert meet_all(monkeypatch, ways) == expected


def test_two_that_fail_are_both_named(monkeypatch):
  ways = [[LAST], [WHOLE], [LAST]]
  assert meet_all(monkeypatch, ways)[1][0].startswith("process 0, 2 failed")
