"""Compiled programs in files: found without tracing, and only where they fit."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.parallel import programs
from videoar_jax.parallel.programs import Program, keep_programs_in

X = np.arange(6, dtype=np.float32).reshape(2, 3)
traced = []


def scale(tree, shift, *, factor):
  traced.append(tree["x"].shape)
  return tree["x"] * factor + shift


@pytest.fixture
def folder(tmp_path):
  keep_programs_in(tmp_path / "programs")
  traced.clear()
  yield tmp_path / "programs"
  keep_programs_in(None)


def call(x=X, factor=2):
  """Calls the function as a process does that has never called it."""
  program = Program(scale, static_argnames=("factor",))
  jax.clear_caches()
  return np.asarray(program({"x": x}, np.float32(1), factor=factor))


def test_a_later_process_traces_nothing(folder):
  np.testing.assert_array_equal(call(), 2 * X + 1)
  assert traced and len(list(folder.iterdir())) == 1
  traced.clear()
  np.testing.assert_array_equal(call(X + 3), 2 * (X + 3) + 1)
  np.testing.assert_array_equal(call(jnp.asarray(X)), 2 * X + 1)
  assert not traced


def test_other_shapes_types_and_values_have_programs_of_their_own(folder):
  call()
  np.testing.assert_array_equal(call(X[:1]), 2 * X[:1] + 1)
  np.testing.assert_array_equal(call(factor=3), 3 * X + 1)
  assert call(X.astype(np.float16)).dtype == np.float32
  assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("name", ["_code_hash", "_processor", "installed"])
def test_programs_of_other_code_machines_and_versions_are_not_found(folder, monkeypatch, name):
  call()
  monkeypatch.setattr(programs, name, lambda *_: "another")
  traced.clear()
  call()
  assert traced and len(list(folder.iterdir())) == 2


def test_other_settings_of_jax_have_programs_of_their_own(folder):
  call()
  with jax.default_matmul_precision("highest"):
    call()
  assert len(list(folder.iterdir())) == 2


def test_without_a_folder_nothing_is_written(folder):
  keep_programs_in(None)
  np.testing.assert_array_equal(call(), 2 * X + 1)
  assert not folder.exists()


def test_arrays_on_another_device_are_not_for_files(folder):
  out = Program(scale, static_argnames=("factor",))(
    {"x": jax.device_put(X, jax.devices()[1])}, np.float32(1), factor=2
  )
  assert out.device == jax.devices()[1] and not folder.exists()


def test_a_damaged_file_is_compiled_again(folder, caplog):
  call()
  (path,) = folder.iterdir()
  path.write_bytes(path.read_bytes()[:-1])
  with caplog.at_level(logging.WARNING):
    np.testing.assert_array_equal(call(), 2 * X + 1)
  (line,) = caplog.messages
  assert str(path) in line and "it is cut off or damaged); it is compiled again" in line
  traced.clear()
  call()
  assert not traced  # It was written again.


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_can_write_to_is_not_loaded(folder, caplog, what):
  call()
  (path,) = folder.iterdir()
  assert path.stat().st_mode & 0o077 == 0
  (path if what == "file" else folder).chmod(0o777)
  traced.clear()
  call()
  assert traced and "others can write to it" in caplog.messages[0]


def test_the_oldest_files_go(folder, monkeypatch):
  monkeypatch.setattr(programs, "_MAX_FILES", 2)
  for factor in (2, 3, 4):
    call(factor=factor)
  assert len(list(folder.iterdir())) == 2
  traced.clear()
  call(factor=4)
  assert not traced


def test_what_cannot_be_stored_still_runs(folder, caplog):
  program = Program(lambda x: (x, x + 1))
  with caplog.at_level(logging.INFO):
    np.testing.assert_array_equal(program(X)[1], X + 1)
  assert "is not kept for later processes" in caplog.text and not folder.exists()
