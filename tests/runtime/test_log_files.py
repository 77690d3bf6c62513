"""The package's log: what comes before its file, and names that are not UTF-8."""

import logging

import pytest

from videoar_jax.parallel import processes
from videoar_jax.runtime.log_files import held_log, start_errors_log, start_log

log = logging.getLogger("videoar_jax.data")


@pytest.fixture(autouse=True)
def no_handlers(monkeypatch):
  root = logging.getLogger("videoar_jax")
  for name, value in (("handlers", []), ("level", root.level), ("propagate", False)):
    monkeypatch.setattr(root, name, value)
  yield
  for handler in root.handlers:
    handler.close()


def test_what_was_logged_before_the_log_has_a_file_is_written_to_it_once(tmp_path, capsys):
  with held_log():
    log.debug("a detail")
    log.warning("a caption is cut")
    start_log(tmp_path / "log.txt")
    log.info("started")
  log.info("trained")
  printed = capsys.readouterr()
  assert printed.out.splitlines() == ["a caption is cut", "started", "trained"]
  assert not printed.err
  lines = (tmp_path / "log.txt").read_text().splitlines()
  assert [line.split(" ", 2)[2] for line in lines] == [
    "DEBUG videoar_jax.data: a detail",
    "WARNING videoar_jax.data: a caption is cut",
    "INFO videoar_jax.data: started",
    "INFO videoar_jax.data: trained",
  ]


def test_warnings_before_an_error_are_printed(capsys):
  with pytest.raises(ValueError), held_log():
    log.info("opened")
    log.warning("a caption is cut")
    raise ValueError
  assert capsys.readouterr().err == "a caption is cut\n"
  assert not logging.getLogger("videoar_jax").handlers


def test_other_processes_print_errors_alone(monkeypatch, capsys):
  monkeypatch.setattr(processes, "is_first", lambda: False)
  monkeypatch.setattr(processes, "name", lambda: "process 1 of 2")
  with held_log():
    log.warning("a caption is cut")
    log.error("no disk")
    start_errors_log()
  with pytest.raises(ValueError), held_log():
    log.warning("a caption is cut")
    raise ValueError
  assert capsys.readouterr().err == "process 1 of 2: no disk\n"


def test_names_that_are_not_utf_8_are_escaped(tmp_path, monkeypatch, capfd):
  start_log(tmp_path / "log.txt")
  log.info("skipped %s", "caf\udce9.mp4")
  assert "Logging error" not in capfd.readouterr().err
  assert (tmp_path / "log.txt").read_text().endswith(r"skipped caf\udce9.mp4" + "\n")
