"""`python -m videoar_jax.playground`: its user errors, and what it starts."""

import socket
import sys

import pytest
import tiny_runs
from drawn_model import make_studio

from videoar_jax import playground
from videoar_jax.experiment import parse
from videoar_jax.page import server


@pytest.fixture
def served(monkeypatch):
  """Returns what would be served; gradio need not be there."""
  calls = []
  monkeypatch.setattr(server, "check_installed", lambda: None)
  monkeypatch.setattr(server, "serve", lambda *arguments: calls.append(arguments))
  return calls


@pytest.fixture
def workdir(tmp_path):
  """A run that has not trained yet."""
  parse.save_config(tiny_runs.make_config(), tmp_path / "config.json")
  return tmp_path


def expect_error(capsys, *arguments):
  """Runs a command that must fail; returns its one line on stderr."""
  try:
    status = playground.main(list(arguments))
  except SystemExit as stopped:
    status = stopped.code
  out, error = capsys.readouterr()
  assert (status, out) == (2, "") and error.startswith("error: ") and error.count("\n") == 1
  return error


def test_playground_warms_up_and_serves(served, workdir, monkeypatch, capsys):
  studio = make_studio()
  loaded = []

  def load_studio(model, **settings):
    loaded.append((model, settings["dtype"]))
    return studio, "a model"

  monkeypatch.setattr(server, "load_studio", load_studio)
  flags = [f"--workdir={workdir}", "--model=other", "--port=0", "--dtype=bfloat16"]
  assert playground.main(flags) == 0
  ((made, view, title, listener),) = served
  assert made is studio and title == "a model" and loaded == [("other", "bfloat16")]
  assert view.workdir == workdir
  assert studio.model.steps  # What visitors ask for is compiled before.
  host, port = listener.getsockname()
  listener.close()
  assert host == "127.0.0.1" and f"http://127.0.0.1:{port} " in capsys.readouterr().out


def test_playground_names_what_is_missing(served, workdir, capsys, monkeypatch):
  error = expect_error(capsys, f"--workdir={workdir}/none")
  assert "none does not exist; train with --workdir=" in error
  error = expect_error(capsys, f"--workdir={workdir}", "--port=0")
  assert "no checkpoint" in error
  assert "--workdir" in expect_error(capsys)
  assert not served
  monkeypatch.undo()
  monkeypatch.setitem(sys.modules, "gradio", None)
  error = expect_error(capsys, f"--workdir={workdir}")
  assert "pip install 'videoar_jax[playground]'" in error


def test_playground_needs_a_free_port(served, workdir, capsys):
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    error = expect_error(capsys, f"--workdir={workdir}", f"--port={port}")
    assert f"--port={port} of 127.0.0.1 is in use; name another one" in error
  assert "from 0 to 65535" in expect_error(capsys, f"--workdir={workdir}", "--port=70000")
  error = expect_error(capsys, f"--workdir={workdir}", "--host=192.0.2.1", "--port=0")
  assert "--host=192.0.2.1: " in error and "name an address of this machine" in error
  assert not served


def test_playground_says_where_it_is():
  listener = server.open_port("127.0.0.1", 0)
  try:
    port = listener.getsockname()[1]
    assert server.address(listener) == f"http://127.0.0.1:{port}"
  finally:
    listener.close()
