"""Which programs are compiled."""

from collections.abc import Callable

import jax


def compiled_by(call: Callable) -> tuple[object, list[str | None]]:
  """Returns a call's result, and the names of the programs that it compiled."""
  names = []

  def note(name, seconds, **facts):
    if name.endswith("backend_compile_duration"):
      names.append(facts.get("fun_name"))

  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    return call(), names
  finally:
    jax.monitoring.unregister_event_duration_listener(note)
