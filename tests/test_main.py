"""With what the command ends, by which launchers tell whether to give it again."""

import os
import signal
import types

import pytest

from videoar_jax import main
from videoar_jax.experiment import run
from videoar_jax.experiment.command_line import add_field, read_config
from videoar_jax.parallel import processes
from videoar_jax.runtime.preemption import Preempted


@pytest.fixture
def command(monkeypatch, tmp_path):
  """Returns a function that runs the command with something else to do in place of training."""
  handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
  for flag, value in (("CONFIG", {}), ("WORKDIR", tmp_path), ("STAGE", "I"), ("DISTRIBUTED", 0)):
    monkeypatch.setattr(main, flag, types.SimpleNamespace(value=value))
  monkeypatch.setattr(processes, "start", lambda is_distributed: None)

  def give(train):
    fake = types.SimpleNamespace(train=train, workdir=tmp_path, is_finished=False)
    monkeypatch.setattr(run, "Run", lambda config, workdir: fake)
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
    (RuntimeError("another process is gone"), 134),
    (TypeError("nobody foresaw this"), 134),
  ],
)
def test_each_end_has_its_status(command, capsys, error, status):
  assert command(fail(error)) == status
  assert str(error) in "".join(capsys.readouterr())


def test_one_of_several_processes_ends_at_once_and_so_does_what_hangs(command, monkeypatch):
  ends = []
  monkeypatch.setattr(os, "_exit", ends.append)
  command(fail(TimeoutError("the save hangs")))
  monkeypatch.setattr(processes, "name", lambda: "process 1 of 2")
  for error in (RuntimeError("another process is gone"), ValueError(), KeyboardInterrupt()):
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
  """SIGUSR1 ends nothing; SIGTERM is nobody's where nothing is left to save."""

  def train(only):
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

  assert command(train) == 0
  assert "SIGUSR1: no steps run now" in capsys.readouterr().out
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_flags_set_fields_that_the_config_file_does_not(tmp_path):
  """Those that it does set are left to the library of flags, which knows their types."""
  file = tmp_path / "config.py"
  file.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(arg=None):\n"
    "  return ConfigDict({'seed': 1, 'stage': {'one': {}}, 'data': {'path': '3'}})\n"
  )
  new = ["--config.mesh.fsdp=2", "--config.data.num_objects=(1, 2)", "--config.data.filter=a > 1"]
  new += ["--config.stage.one.continues=True", "--config.stage.one.loop.ema_decay=.5"]
  others = ["main", "--config", str(file), "--config.seed=3", "--config.data.path=x", "--stage=one"]
  rest, added = main._part_fields([*others, *new])
  assert rest == others
  config = read_config(str(file)).lock()
  for name, value in added.items():
    add_field(config, name, value)
  assert config.to_dict() == {
    "seed": 1,
    "data": {"path": "3", "num_objects": (1, 2), "filter": "a > 1"},
    "mesh": {"fsdp": 2},
    "stage": {"one": {"continues": True, "loop": {"ema_decay": 0.5}}},
  }
  with pytest.raises(ValueError, match=r"config\.seed is a value"):
    add_field(config, "seed.x", 1)
  with pytest.raises(ValueError, match="no section 'two'; it has one"):
    add_field(config, "stage.two.loop", 1)
