"""Stops a run on SIGINT or SIGTERM, within a time limit."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading

import jax

from videoar_jax.parallel import processes


class Preempted(Exception):
  """A signal stopped the run; its state is saved.

  Attributes:
    status: exit status of the process, by shell convention 128 + the signal's number.
  """

  def __init__(self, what: str, number: int = signal.SIGINT):
    super().__init__(what)
    self.status = 128 + number


class PreemptionHandler:
  """Whether a run must stop, and because of which signal; see `handle_preemption`."""

  def __init__(self, timeout_s: float):
    self.signal: signal.Signals | None = None
    self._timeout_s = timeout_s
    self._timer: threading.Timer | None = None

  def begin(self, number: signal.Signals) -> None:
    """Starts the time limit, after which the process dumps all stacks to stderr and ends."""
    self.end()  # A second signal restarts the time limit.
    self.signal = number
    self._timer = threading.Timer(self._timeout_s, self._end)
    self._timer.daemon = True
    self._timer.start()
    # A C thread, in case Python itself is blocked; its exit status is always 1.
    faulthandler.dump_traceback_later(self._timeout_s + 10, exit=True)

  def end(self) -> None:
    """Cancels the time limit: the run has stopped."""
    faulthandler.cancel_dump_traceback_later()
    if self._timer is not None:
      self._timer.cancel()

  def _end(self) -> None:
    faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
    text = (
      f"NOT STOPPED in {self._timeout_s:g} s: the process ends; run the same command again to "
      "resume from the last complete checkpoint\n"
    )
    os.write(sys.__stderr__.fileno(), text.encode())
    os._exit(128 + self.signal)

  def is_due(self) -> bool:
    """Returns whether to save and stop; all processes must call it after every step."""
    if self.signal is None and processes.is_preemption_agreed():
      self.begin(signal.SIGTERM)
    return self.signal is not None


@contextlib.contextmanager
def handle_preemption(timeout_s: float):
  """Yields a `PreemptionHandler` that is due after Ctrl-C or SIGTERM; a second signal kills.

  In a multi-process run, all stop after the same step: see `processes.is_preemption_agreed`.

  Args:
    timeout_s: time limit for the stop, in seconds.
  """
  stop = PreemptionHandler(timeout_s)
  is_alone = jax.process_count() == 1

  def handle(number, _):
    number = signal.Signals(number)
    signal.signal(number, previous[number])
    if is_alone:
      stop.begin(number)
    else:
      # All processes stop: JAX's own SIGTERM handler notifies the others.
      os.kill(os.getpid(), signal.SIGTERM)
    print(f"\n{number.name}: saving, then stopping; repeat it to stop at once", flush=True)

  previous = {}
  for number in (signal.SIGINT, signal.SIGTERM) if is_alone else (signal.SIGINT,):
    previous[number] = signal.signal(number, handle)
  try:
    yield stop
  finally:
    stop.end()
    for number, handler in previous.items():
      signal.signal(number, handler)
