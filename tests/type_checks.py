"""What checks annotations in the tests, and what stands in for the package's own classes."""

from typing import Self

import beartype

# An int will do for a float, as it does for Python's own checkers.
_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def check(annotated):
  """Checks a function's or class's annotations; `Self` is the class that a method is written in."""
  hints = getattr(annotated, "__annotations__", {})
  for name, hint in hints.items():
    if hint is Self:
      hints[name] = f"{annotated.__module__}.{annotated.__qualname__.rpartition('.')[0]}"
  return _check(annotated)


def stand_in(cls, **members):
  """Returns an instance of a class that was never initialised, with members of its own."""
  members = {k: staticmethod(v) if callable(v) else v for k, v in members.items()}
  return object.__new__(type(cls.__name__, (cls,), members))
