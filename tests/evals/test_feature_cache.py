"""Features are computed once, in blocks, by several processes."""

import jax
import numpy as np
import pytest

from videoar_jax.evals import feature_cache

KEY = {"clips": [1, 2], "network": "a"}
ITEMS = list(range(11))


@pytest.fixture
def embed(monkeypatch, tmp_path):
  monkeypatch.setenv("VIDEOAR_JAX_DATA", str(tmp_path))
  monkeypatch.setattr(feature_cache, "BLOCK", 4)
  calls = []

  def apply(part):
    calls.append(list(part))
    return np.array([[i, 2 * i] for i in part], np.float32)

  apply.calls = calls
  return apply


def features_of(embed, key=KEY):
  return feature_cache.features_of(ITEMS, embed, 2, key, "clips")


def test_each_block_is_computed_once(embed):
  wanted = np.array([[i, 2 * i] for i in ITEMS])
  np.testing.assert_array_equal(features_of(embed), wanted)
  assert embed.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
  embed.calls.clear()
  np.testing.assert_array_equal(features_of(embed), wanted)
  assert not embed.calls
  features_of(embed, KEY | {"network": "b"})
  assert len(embed.calls) == 3


def test_what_is_damaged_or_missing_is_computed_again(embed):
  wanted = features_of(embed)
  folder = feature_cache.folder_of(KEY)
  names = sorted(path.name for path in folder.iterdir())
  assert names == ["000000.npz", "000004.npz", "000008.npz"]
  (folder / names[0]).write_bytes((folder / names[0]).read_bytes()[:90])
  (folder / names[2]).unlink()
  np.savez(folder / names[1], features=np.zeros((4, 3), np.float32))  # Of another width.
  embed.calls.clear()
  np.testing.assert_array_equal(features_of(embed), wanted)
  assert [part[0] for part in embed.calls] == [0, 4, 8]


def test_processes_compute_a_part_each(embed, monkeypatch):
  """What one has written, another does not compute again; rows come from where they were made."""
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  sent = {}

  def allgather(x):
    sent.setdefault(jax.process_index(), []).append(x)
    return np.stack([x, np.zeros_like(x)])

  monkeypatch.setattr(feature_cache.multihost_utils, "process_allgather", allgather)
  computed = {}
  for process in range(2):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    embed.calls.clear()
    features_of(embed)
    computed[process] = [part[0] for part in embed.calls]
  assert computed == {0: [0, 8], 1: [4]}
  rows = [np.stack([sent[process][k] for process in range(2)]) for k in range(2)]
  replies = iter(rows)
  monkeypatch.setattr(feature_cache.multihost_utils, "process_allgather", lambda x: next(replies))
  found = features_of(embed)
  np.testing.assert_array_equal(found, np.array([[i, 2 * i] for i in ITEMS]))


def test_a_network_is_known_by_its_weights():
  one = {"a": np.ones(3), "b": np.zeros(2)}
  assert feature_cache.fingerprint(one) == feature_cache.fingerprint(dict(reversed(one.items())))
  assert feature_cache.fingerprint(one) != feature_cache.fingerprint(one | {"a": np.full(3, 2.0)})
