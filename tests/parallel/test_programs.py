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


def kept(folder):
  return sorted(folder.glob("*.program"))


def test_a_later_process_traces_nothing(folder):
  np.testing.assert_array_equal(call(), 2 * X + 1)
  assert traced and len(kept(folder)) == 1
  traced.clear()
  np.testing.assert_array_equal(call(X + 3), 2 * (X + 3) + 1)
  np.testing.assert_array_equal(call(jnp.asarray(X)), 2 * X + 1)
  assert not traced


def test_other_shapes_types_and_values_have_programs_of_their_own(folder):
  call()
  np.testing.assert_array_equal(call(X[:1]), 2 * X[:1] + 1)
  np.testing.assert_array_equal(call(factor=3), 3 * X + 1)
  assert call(X.astype(np.float16)).dtype == np.float32
  assert len(kept(folder)) == 4


@pytest.mark.parametrize("name", ["_processor", "installed"])
def test_programs_of_other_machines_and_versions_are_not_found(folder, monkeypatch, name):
  call()
  monkeypatch.setattr(programs, name, lambda *_: "another")
  traced.clear()
  call()
  assert traced and len(kept(folder)) == 2


def test_other_settings_of_jax_have_programs_of_their_own(folder):
  call()
  with jax.default_matmul_precision("highest"):
    call()
  assert len(kept(folder)) == 2


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
  (path,) = kept(folder)
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
  (path,) = kept(folder)
  assert path.stat().st_mode & 0o077 == 0
  (path if what == "file" else folder).chmod(0o777)
  traced.clear()
  call()
  assert traced and "others can write to it" in caplog.messages[0]


@pytest.mark.parametrize("is_same", [True, False])
def test_edited_code_is_traced_and_compiled_if_its_program_differs(
  folder, monkeypatch, caplog, is_same
):
  call()
  monkeypatch.setattr(programs, "_code_hash", lambda: "edited")
  edited = scale if is_same else lambda tree, shift, *, factor: scale(tree, shift, factor=5)
  monkeypatch.setattr(edited, "__qualname__", "scale")
  monkeypatch.setattr(edited, "__name__", "scale")
  program = Program(edited, static_argnames=("factor",))
  traced.clear()
  jax.clear_caches()
  with caplog.at_level(logging.INFO, logger=programs.log.name):
    out = program({"x": X}, np.float32(1), factor=2)
  np.testing.assert_array_equal(out, (2 if is_same else 5) * X + 1)
  said = [record.getMessage() for record in caplog.records if record.name == programs.log.name]
  assert [line.partition(": ")[2] for line in said] == (
    [] if is_same else ["none is kept for this code, machine and these versions"]
  )
  assert traced and len(kept(folder)) == (1 if is_same else 2)


def test_programs_from_the_cache_of_jax_are_not_stored(folder, tmp_path, caplog):
  """Stored again, they would be found, and fail when they are called."""
  values = (
    jax.config.jax_compilation_cache_dir,
    jax.config.jax_persistent_cache_min_compile_time_secs,
  )
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  programs.compilation_cache.reset_cache()
  jax.clear_caches()
  try:
    jax.jit(scale, static_argnames="factor")({"x": X}, np.float32(1), factor=2)
    assert any((tmp_path / "jax").iterdir())
    for _ in range(3):
      np.testing.assert_array_equal(call(), 2 * X + 1)
  finally:
    jax.config.update("jax_compilation_cache_dir", values[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", values[1])
    programs.compilation_cache.reset_cache()
  assert jax.config.jax_enable_compilation_cache and len(kept(folder)) == 1
  assert not caplog.messages


def test_a_program_that_fails_is_compiled_again(folder, monkeypatch, caplog):
  call()

  def load(*arguments, **settings):
    def fail(*arguments):
      raise jax.errors.JaxRuntimeError("INTERNAL: no such function")

    return fail

  with monkeypatch.context() as patch:
    patch.setattr(programs.serialize_executable, "deserialize_and_load", load)
    np.testing.assert_array_equal(call(), 2 * X + 1)
  assert "no such function); it is compiled again" in caplog.text


def test_files_not_used_for_longest_go(folder, monkeypatch):
  monkeypatch.setattr(programs, "_MAX_FILES", 4)
  for factor in (2, 3, 4):
    call(factor=factor)
  assert len(kept(folder)) == 2
  traced.clear()
  call(factor=4)
  assert not traced


def test_what_cannot_be_stored_still_runs(folder, caplog):
  program = Program(lambda x: (x, x + 1))
  with caplog.at_level(logging.INFO):
    np.testing.assert_array_equal(program(X)[1], X + 1)
  assert "is not kept for later processes" in caplog.text and not folder.exists()
