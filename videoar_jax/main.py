"""Trains every stage of a config and writes the final report.

  python -m videoar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

The same command resumes an interrupted run: Ctrl-C and SIGTERM save first. Several processes, each
started with the same command and --distributed, train together; see `parallel/processes.py`.
--config=FILE.py:name=value sets an argument of the file, --config.data.seed=1 any single field;
docs/config.md lists all fields.

Exit statuses: 0, finished; 2, a user error that was found before training; 1, any other error that
would recur, with a traceback if nobody foresaw it; 143 after SIGTERM and 130 after Ctrl-C, when the
run can be resumed; 134, a hang, a lost process or connection, or another failure of the runtime,
after which a retry may succeed.
"""

import contextlib
import logging
import os
import pathlib
import signal
import socket
import sys
import time
import traceback

from absl import app, flags
from ml_collections import ConfigDict

from videoar_jax.experiment.command_line import (
  check_local,
  escape_unprintable,
  one_line,
  read_config,
)
from videoar_jax.experiment.overrides import split_overrides

CONFIG = flags.DEFINE_string(
  "config", None, "Config file, as FILE.py:ARGUMENT; --config.FIELD=VALUE sets one of its fields."
)
DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "This is one of several processes, on Slurm, a TPU slice, or GKE."
)
ALLOW_CHANGED_DATA = flags.DEFINE_bool(
  "allow_changed_data", False, "Resume on data that changed since the run began."
)
STAGE = flags.DEFINE_string("stage", None, "Train only this stage; earlier ones must be finished.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for all output of the run.")
REPORT_TIMEOUT_S = 24 * 3600  # How long other processes wait for the first one to write it.
# Launchers retry after this status, which a process that aborts has, too.
RETRY = 128 + signal.SIGABRT
# Errors of JAX's runtime that a retry would only repeat: the program is wrong, or too large.
_REPEATED = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "OUT_OF_RANGE")
# Environment variable with a folder in which a process writes its exit status unless it is 0. A
# launcher may otherwise see only the signals that kill the other processes.
STATUSES = "VIDEOAR_STATUSES"


def main(argv: list[str]) -> int:
  """Trains the stages; returns the exit status."""
  try:
    config = configure(argv[1:])
  except (ValueError, OSError) as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return leave(2)
  # With absl's handler every line would be printed twice.
  logging.getLogger().handlers.clear()
  escape_unprintable()
  started = time.perf_counter()
  # Without a handler the signal would end the process; training has its own handler.
  signal.signal(
    signal.SIGUSR1, lambda *_: print("SIGUSR1: no steps run now, none are profiled", flush=True)
  )
  from videoar_jax.evals.report import write_report
  from videoar_jax.experiment.run import Run
  from videoar_jax.parallel import processes
  from videoar_jax.runtime.goodput import GoodputTracker, report_at_exit
  from videoar_jax.runtime.preemption import Preempted

  try:
    try:
      processes.start(DISTRIBUTED.value)
      workdir = pathlib.Path(WORKDIR.value).expanduser().absolute()
      run = Run(config, workdir, is_changed_data_allowed=ALLOW_CHANGED_DATA.value)
    except (ConnectionError, TimeoutError):
      raise
    except (ImportError, ValueError, OSError) as error:
      return _end_by(error, 2)
    has_trained = run.train(STAGE.value)
    # Training is done: nothing polls for preemption any more, and there is nothing to save.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if STAGE.value is not None and not run.is_finished:
      if processes.is_first():
        print(f"stage {STAGE.value} is finished; others are not yet")
      return 0
    has_report = run.stages.run.report.num_clips > 0
    is_reported = not has_trained and (run.workdir / "report.md").exists()
    if processes.is_first() and has_report and not is_reported:
      # The duration of a resumed run is not that of this command.
      seconds = time.perf_counter() - started if run.is_new else None
      with report_at_exit(GoodputTracker("report")):
        write_report(
          run.workdir,
          run.stages.run,
          run.stages,
          run.train_source,
          run.test_source,
          seconds=seconds,
        )
    if processes.is_first():
      print(f"report: {run.workdir / 'report.md' if has_report else 'none, report.num_clips=0'}")
    processes.wait_for_all("the report is written", timeout_s=REPORT_TIMEOUT_S)
  except Preempted as stopped:
    if processes.is_first():
      print(f"{stopped}. The same command resumes from there.")
    return leave(stopped.status)
  except KeyboardInterrupt:
    message = "stopped. The same command resumes from the last checkpoint."
    return end(message, 128 + signal.SIGINT)
  except ConnectionError as error:
    return end(f"error: {error}", RETRY)
  except TimeoutError as error:
    # A thread hangs, and Python would wait for it at exit.
    return end(f"error: {error}", RETRY, is_hanging=True)
  except (ImportError, ValueError, OSError, FloatingPointError) as error:
    return _end_by(error, 1)
  except Exception as error:
    return end(traceback.format_exc(), RETRY if is_worth_a_retry(error) else 1)
  return 0


def _end_by(error: Exception, status: int) -> int:
  """Ends the run by an error whose message says what to do; the traceback is for the log file."""
  logging.getLogger(__name__).debug("traceback", exc_info=error)
  return end(f"error: {error}", status)


def is_worth_a_retry(error: Exception) -> bool:
  """Returns whether an unforeseen error is the runtime's, and may not recur."""
  import jax

  return isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(_REPEATED)


def configure(arguments: list[str]) -> ConfigDict:
  """Returns the config of the command line, with its overrides.

  Raises:
    ValueError: a flag or the config file is missing or wrong.
  """
  unknown, overrides = split_overrides(arguments)
  if unknown:
    raise ValueError(f"unknown argument {unknown[0]!r}; flags begin with --")
  if CONFIG.value is None or WORKDIR.value is None:
    raise ValueError("both --config=FILE.py and --workdir=FOLDER are needed")
  check_local(WORKDIR.value, "--workdir")
  return read_config(CONFIG.value, overrides)


def end(message: str, status: int, *, is_hanging: bool = False) -> int:
  """Reports why the run ends; returns the exit status.

  One of several processes, or one that hangs, exits here at once; this ends the others.
  """
  from videoar_jax.parallel import processes

  name = processes.name()
  print(f"{name}: {message}" if name else message, file=sys.stderr, flush=True)
  leave(status)
  if name or is_hanging:
    sys.stdout.flush()
    # Otherwise JAX waits at exit for the others, which wait for this process in a collective.
    os._exit(status)
  return status


def leave(status: int) -> int:
  """Writes a status file if a launcher asked for it; returns the status."""
  if STATUSES in os.environ:
    place = pathlib.Path(os.environ[STATUSES]) / f"{socket.gethostname()}-{os.getpid()}"
    with contextlib.suppress(OSError):
      place.write_text(f"{status}\n")
  return status


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line; returns config overrides and unknown arguments.

  Exits with a one-line message if it is wrong.
  """
  try:
    others, overrides = split_overrides(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))
    return [*flags.FLAGS(others, known_only=False), *overrides]
  except (flags.Error, OSError) as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
  sys.exit(leave(2))


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
