"""How a run is told to stop, and in what time it must."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading

import jax

from videoar_jax.parallel import processes


class Preempted(Exception):
  """A signal asked the run to stop; the state is saved.

  Attributes:
    status: what the process is to end with, as shells have it: 128 + the signal's number.
  """

  def __init__(self, what: str, number: int = signal.SIGINT):
    super().__init__(what)
    self.status = 128 + number


class PreemptionHandler:
  """Whether a run is to stop, and by which signal; see `handle_preemption`."""

  def __init__(self, timeout_s: float):
    self.signal: signal.Signals | None = None
    self._timeout_s = timeout_s
    self._timer: threading.Timer | None = None

  def begin(self, number: signal.Signals) -> None:
    """Begins to stop: what has not stopped in time ends with all its stacks on stderr."""
    self.end()  # Of a stop by another signal, from which on the time counts anew.
    self.signal = number
    self._timer = threading.Timer(self._timeout_s, self._end)
    self._timer.daemon = True
    self._timer.start()
    # A thread in C, for what keeps Python itself from running; it knows no status but 1.
    faulthandler.dump_traceback_later(self._timeout_s + 10, exit=True)

  def end(self) -> None:
    """Says that it has stopped."""
    faulthandler.cancel_dump_traceback_later()
    if self._timer is not None:
      self._timer.cancel()

  def _end(self) -> None:
    faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
    text = f"NOT STOPPED in {self._timeout_s:g} s: it goes on from the last whole checkpoint\n"
    os.write(sys.__stderr__.fileno(), text.encode())
    os._exit(128 + self.signal)

  def is_due(self) -> bool:
    """Says whether to save and stop; to be asked after every step, by all processes."""
    if self.signal is None and processes.is_preemption_agreed():
      self.begin(signal.SIGTERM)
    return self.signal is not None


@contextlib.contextmanager
def handle_preemption(timeout_s: float):
  """Yields a `PreemptionHandler` that is due once Ctrl-C or SIGTERM came; a second one kills.

  Of several processes, all stop after the same step: see `processes.is_preemption_agreed`.

  Args:
    timeout_s: seconds that the stop may take.
  """
  stop = PreemptionHandler(timeout_s)
  is_alone = jax.process_count() == 1

  def handle(number, _):
    number = signal.Signals(number)
    signal.signal(number, previous[number])
    if is_alone:
      stop.begin(number)
    else:
      # All of them stop: JAX's own handler of SIGTERM tells the others.
      os.kill(os.getpid(), signal.SIGTERM)
    print(f"\n{number.name}: saving, then stopping; once more to stop at once", flush=True)

  previous = {}
  for number in (signal.SIGINT, signal.SIGTERM) if is_alone else (signal.SIGINT,):
    previous[number] = signal.signal(number, handle)
  try:
    yield stop
  finally:
    stop.end()
    for number, handler in previous.items():
      signal.signal(number, handler)
