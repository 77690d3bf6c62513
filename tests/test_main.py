"""Exit statuses of the command, by which launchers decide whether to retry."""

import os
import signal
import types

import jax
import pytest
from absl.testing import flagsaver

from videoar_jax import main
from videoar_jax.experiment import run
from videoar_jax.parallel import processes
from videoar_jax.runtime.preemption import Preempted


@pytest.fixture(autouse=True)
def flags_as_before():
  with flagsaver.flagsaver():
    yield


@pytest.fixture
def command(monkeypatch, tmp_path):
  """Returns a function that runs the command with another function in place of training."""
  monkeypatch.setattr(main, "configure", lambda arguments: None)
  handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
  values = {"WORKDIR": tmp_path, "STAGE": "I", "DISTRIBUTED": 0, "ALLOW_CHANGED_DATA": 0}
  for flag, value in values.items():
    monkeypatch.setattr(main, flag, types.SimpleNamespace(value=value))
  monkeypatch.setattr(processes, "start", lambda is_distributed: None)

  def give(train):
    fake = types.SimpleNamespace(train=train, workdir=tmp_path, is_finished=False)
    monkeypatch.setattr(run, "Run", lambda config, workdir, **_: fake)
    return main.main([])

  yield give
  for number, handler in handlers.items():
    signal.signal(number, handler)


def fail(error):
  def train(only):
    raise error

  return train


@pytest.mark.parametrize(
  ("error", "status"),
  [
    (Preempted("SIGTERM: stopped", signal.SIGTERM), 143),
    (Preempted("SIGINT: stopped", signal.SIGINT), 130),
    (KeyboardInterrupt(), 130),
    (ValueError("a wrong field"), 1),
    (OSError("no room"), 1),
    (ImportError("a name of JAX is gone"), 1),
    (ConnectionError("the bucket is out of reach"), 134),
    (FloatingPointError("nan"), 1),
    (TimeoutError("the save hangs"), 134),
    (jax.errors.JaxRuntimeError("UNAVAILABLE: another process is gone"), 134),
    (jax.errors.JaxRuntimeError("INTERNAL: a device is lost"), 134),
    # What would recur is not restarted twenty times.
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1),
    (RuntimeError("nobody foresaw this"), 1),
    (TypeError("nobody foresaw this"), 1),
  ],
)
def test_each_end_has_its_status(command, monkeypatch, capsys, error, status):
  monkeypatch.setattr(os, "_exit", lambda status: None)  # As what hangs ends.
  assert command(fail(error)) == status
  assert str(error) in "".join(capsys.readouterr())


@pytest.mark.parametrize(
  ("error", "status"),
  [
    (ValueError("a wrong field"), 2),
    (FileNotFoundError("no clips"), 2),
    (ConnectionError("the bucket is out of reach"), 134),
    (TypeError("nobody foresaw this"), 1),
  ],
)
def test_a_mistake_that_is_found_while_a_run_is_opened_has_the_status_of_a_wrong_flag(
  command, monkeypatch, capsys, error, status
):
  monkeypatch.setattr(processes, "start", lambda is_distributed: fail(error)(None))
  assert command(fail(error)) == status
  lines = capsys.readouterr().err.strip().splitlines()
  assert lines[-1].endswith(str(error)) and (len(lines) == 1) == (status != 1)


def test_one_of_several_processes_ends_at_once_and_so_does_what_hangs(command, monkeypatch):
  ends = []
  monkeypatch.setattr(os, "_exit", ends.append)
  command(fail(TimeoutError("the save hangs")))
  monkeypatch.setattr(processes, "name", lambda: "process 1 of 2")
  gone = jax.errors.JaxRuntimeError("UNAVAILABLE: another process is gone")
  for error in (gone, ValueError(), KeyboardInterrupt()):
    command(fail(error))
  assert ends == [134, 134, 1, 130]


def test_statuses_are_left_for_the_launcher(command, monkeypatch, tmp_path):
  folder = tmp_path / "statuses"
  monkeypatch.setenv(main.STATUSES, str(folder))
  assert command(fail(ValueError("nowhere to leave it"))) == 1
  folder.mkdir()
  assert command(lambda only: None) == 0 and not list(folder.iterdir())
  stopped = Preempted("stopped", signal.SIGTERM)
  for error in (TypeError("nobody foresaw this"), ValueError("a wrong field"), stopped):
    status = command(fail(error))
    (left,) = folder.iterdir()
    assert left.read_text() == f"{status}\n"
  with pytest.raises(SystemExit):
    main.parse_flags(["main", "--confg=x"])
  assert left.read_text() == "2\n"


def test_signals_outside_of_steps(command, capsys):
  """SIGUSR1 ends nothing; SIGTERM has its default effect when nothing is left to save."""

  def train(only):
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

  assert command(train) == 0
  assert "SIGUSR1: no steps run now" in capsys.readouterr().out
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


CONFIG = """
from ml_collections import ConfigDict

def get_config(arg="1"):
  loop = {"num_steps": 1, "batch_size": 2}
  return ConfigDict({"seed": int(arg), "stages": ("one",), "stage": {"one": {"kind": "tokenizer",
    "loop": loop}}})
"""


def configure(*flags):
  """Returns the config of a command line."""
  return main.configure(main.parse_flags(["main", "--workdir=x", *flags])[1:])


@pytest.mark.parametrize("is_apart", [False, True])
def test_config_and_fields_take_their_values_with_and_without_an_equals_sign(tmp_path, is_apart):
  (tmp_path / "config.py").write_text(CONFIG)
  values = {"config": f"{tmp_path / 'config.py'}:3", "config.data.resolution": "(32, 16)"}
  flags = [part for name, x in values.items() for part in (f"--{name}", x)]
  flags = flags if is_apart else [f"--{name}={x}" for name, x in values.items()]
  config = configure(*flags, "--stage=one", "--config.data.is_flipped")
  assert config.seed == 3 and config.data.is_flipped
  assert config.data.resolution == (32, 16) and config.stage.one.loop.batch_size == 2


def test_flags_may_stand_in_a_file(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)
  (tmp_path / "flags").write_text(f"--config={tmp_path / 'config.py'}\n--config.seed=7\n")
  assert configure(f"--flagfile={tmp_path / 'flags'}").seed == 7


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("{file}", "--config.data.sed=1"), "config.data.sed is not a field; did you mean 'seed'?"),
    (("{file}", "--config.seed", "x"), "--config.seed=x: invalid literal"),
    (("{file}", "x"), "unknown argument 'x'; flags begin with --"),
    (("--config=nowhere.py",), "--config=nowhere.py does not exist"),
    ((), "both --config=FILE.py and --workdir=FOLDER are needed"),
  ],
)
def test_mistakes_in_the_command_line_end_with_one_line(tmp_path, capsys, flags, message):
  (tmp_path / "config.py").write_text(CONFIG)
  with pytest.raises(ValueError) as raised:
    configure(*(flag.format(file=f"--config={tmp_path / 'config.py'}") for flag in flags))
  assert message in str(raised.value) and "\n" not in str(raised.value)
  # As the command has it.
  main.parse_flags(["main", "--workdir=x", "--config=nowhere.py"])
  assert main.main(["main"]) == 2
  error = capsys.readouterr().err
  assert error == "error: --config=nowhere.py does not exist; name a file of configs/\n"
